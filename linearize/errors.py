"""The errors of linearization. Each prints as one line that says what was wrong and what to do.

LinearizeError
├── ConfigError       an unknown key, a wrong type, a value out of range
├── DataError         a dataset that is unknown, missing, empty or corrupt
├── CheckpointError   a checkpoint that is missing, truncated or of another network
├── NetworkError      a network of the user's that cannot be built, traced or masked
└── BudgetError       a ReLU budget that the network cannot meet
"""


class LinearizeError(Exception):
    """Base of every error that a user of linearization is meant to see."""


class ConfigError(LinearizeError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(LinearizeError):
    """A dataset is unknown, missing, empty or corrupt."""


class CheckpointError(LinearizeError):
    """A checkpoint is missing, truncated or belongs to another network."""


class NetworkError(LinearizeError):
    """A network of the user's cannot be built or traced, or its ReLUs cannot be masked."""


class RankError(LinearizeError):
    """Another process of a torchrun job failed or ended."""


class BudgetError(LinearizeError):
    """A ReLU budget is not positive or exceeds what the network has."""
