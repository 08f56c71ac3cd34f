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
    "spu-cheetah": "pi_runtime.spu.backend:SpuCheetahBackend",
    "spu-semi2k": "pi_runtime.spu.backend:SpuSemi2kBackend",
}
# These live in a Python of their own: what raises BackendError where it is not there, and what it has.
_CHECKS = dict.fromkeys(("spu-cheetah", "spu-semi2k"), "pi_runtime.spu.interpreter:spu_interpreter")
_PACKAGES = dict.fromkeys(_CHECKS, "pi_runtime.spu.interpreter:PINS")

BACKEND_NAMES = tuple(_BACKENDS)


def check_backend(name: str) -> None:
    """Finds out at once what would stop the backend ``name`` here.

    Raises:
        ConfigError: there is no such backend.
        BackendError: what it needs is not installed.
    """
    _check_name(name)
    if name in _CHECKS:
        _named(_CHECKS[name])()


def own_packages(name: str) -> dict[str, str]:
    """Versions of what the backend ``name`` runs on outside of this package's environment; empty for most."""
    return dict(_named(_PACKAGES[name])) if name in _PACKAGES else {}


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
    _check_name(name)
    return tuple(inspect.signature(_class_of(name)).parameters)


def _check_name(name: str) -> None:
    if name not in _BACKENDS:
        raise ConfigError(f"backend must be one of {', '.join(BACKEND_NAMES)}, got {name!r}")


def _class_of(name: str) -> type[Backend]:
    kind: type[Backend] = _named(_BACKENDS[name])
    return kind


def _named(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
