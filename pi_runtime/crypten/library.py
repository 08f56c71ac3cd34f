"""Imports CrypTen 0.4.1 on any supported torch.

CrypTen's ONNX converter imports ``torch.onnx._internal.registration`` as it loads. torch 2.9 removed that module; the
only name taken from it serves CrypTen's own torch exporter, which is not used here. Where torch lacks the module, an
empty one stands in its place during the import and is taken away after, so that ``torch.onnx`` looks to others as torch
made it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from types import ModuleType
from typing import Any

from pi_runtime.errors import BackendError

_REMOVED_MODULE = "torch.onnx._internal.registration"


def import_crypten() -> Any:
    """Returns the ``crypten`` package, imported quietly.

    Raises:
        BackendError: CrypTen is not installed, or does not load beside the installed torch.
    """
    if "crypten" in sys.modules:
        return sys.modules["crypten"]
    placeholder = _placeholder()
    if placeholder is not None:
        sys.modules[_REMOVED_MODULE] = placeholder
    try:
        # Deprecated imports and invalid escapes inside CrypTen are nothing that a user of this package can act on.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            crypten = importlib.import_module("crypten")
            importlib.import_module("crypten.communicator")
    except ImportError as error:
        raise BackendError(f"the crypten backend cannot load CrypTen ({error}); install crypten==0.4.1") from error
    finally:
        if placeholder is not None:
            sys.modules.pop(_REMOVED_MODULE, None)
    return crypten


def _placeholder() -> ModuleType | None:
    if importlib.util.find_spec("torch.onnx._internal") is not None and (
        importlib.util.find_spec(_REMOVED_MODULE) is not None
    ):
        return None
    module = ModuleType(_REMOVED_MODULE, "Stands in for a module that torch removed and CrypTen 0.4.1 imports.")
    module.registry = None  # type: ignore[attr-defined]
    return module
