"""The backends by name. A new one is a file and a line here."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from pi_runtime.backend import Backend
from pi_runtime.errors import ConfigError

# Where each class lives; imported when it is asked for, as CrypTen and onnxruntime take seconds to load.
_BACKENDS = {
    "plaintext": "pi_runtime.plaintext_backend:PlaintextBackend",
    "crypten": "pi_runtime.crypten.backend:CryptenBackend",
    "crypten-unmasked": "pi_runtime.crypten.backend:UnmaskedCryptenBackend",
    "preset": "pi_runtime.preset.backend:PresetBackend",
}

BACKEND_NAMES = tuple(_BACKENDS)


def check_backend(name: str) -> None:
    """Raises ConfigError where there is no backend ``name``."""
    if name not in _BACKENDS:
        raise ConfigError(f"backend must be one of {', '.join(BACKEND_NAMES)}, got {name!r}")


def open_backend(name: str, **options: Any) -> Backend:
    """Makes the backend ``name``; use it as a context manager.

    options: what its class takes: ``threads`` for every one, ``port`` for those that use the network,
        ``hosts`` for those whose roles can live apart (:mod:`pi_runtime.net.hosts`).

    Raises:
        ConfigError: there is no such backend, or it has no such option.
        BackendError: it cannot run here.
    """
    known = backend_options(name)
    for option in options:
        if option not in known:
            raise ConfigError(f"backend {name} has no option {option!r}; it takes {', '.join(known)}")
    backend: Backend = _class_of(name)(**options)
    return backend


def backend_options(name: str) -> tuple[str, ...]:
    """Names of the options of the backend ``name``.

    Raises:
        ConfigError: there is no such backend.
    """
    check_backend(name)
    return tuple(inspect.signature(_class_of(name)).parameters)


def _class_of(name: str) -> type[Backend]:
    module, _, attribute = _BACKENDS[name].partition(":")
    kind: type[Backend] = getattr(import_module(module), attribute)
    return kind
