"""The errors of the runtime. Each prints as one line that says what was wrong and what to do.

PiError
├── ConfigError             a flag, setting or path that cannot be used
├── ExportError             a network that cannot become an exported graph
├── GraphError              an ONNX file that is damaged or outside the operator set
├── BackendError            a backend that cannot run here (missing package, dead process, occupied port)
└── ProtocolError           (never raised itself)
    ├── LocalProtocolError  we misused the protocol: spent material, wrong order
    └── RemoteProtocolError the peer broke the protocol, or went away
"""


class PiError(Exception):
    """Base of every error that a user of the runtime is meant to see."""


class ConfigError(PiError):
    """A flag, setting or path cannot be used."""


class ExportError(PiError):
    """A network cannot be exported."""


class GraphError(PiError):
    """An ONNX file is damaged, or holds something outside the operator set."""


class BackendError(PiError):
    """A backend cannot run here."""


class ProtocolError(PiError):
    """Base of both sides of a broken protocol; raise one of its children."""


class LocalProtocolError(ProtocolError):
    """This side misused the protocol, for example by using one-time material twice."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow, or went away."""
