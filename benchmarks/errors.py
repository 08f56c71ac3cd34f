"""The errors of the benchmarks; all are :class:`pi_runtime.errors.PiError`, so that the command line prints one line.

PiError
└── BenchmarkError
    ├── ResultsError    a results file that is missing, damaged or of another schema
    ├── ReportError     a figure that a report does not have
    └── MeasureError    a backend that gave something which is no logits, or a setting that cannot be measured
"""

from pi_runtime.errors import PiError


class BenchmarkError(PiError):
    """Base of every error of the benchmarks."""


class ResultsError(BenchmarkError):
    """A results file cannot be read."""


class ReportError(BenchmarkError):
    """A report cannot be made as it was asked for."""


class MeasureError(BenchmarkError):
    """A measurement cannot be made, or its outcome is not an inference."""
