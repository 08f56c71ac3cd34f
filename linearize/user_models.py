"""Networks named on the command line: `torchvision:resnet18`, or `package.module:function` of the user's own.

Naming a function of one's own imports its module and calls it: name code that you trust. Weights come from safetensors
files, which hold no code.
"""

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import fx, nn

from linearize.any_network import mask_relus
from linearize.errors import CheckpointError, NetworkError
from linearize.rng import derived_seed

_TORCHVISION = "torchvision"
_GIVEN = "given"


def is_spec(name: str) -> bool:
    """Whether a network's name is one of these, and not one of `linearize.networks`."""
    return ":" in name


def given_name(model: nn.Module) -> str:
    """What checkpoints call a network that was given to `linearize.linearize`: it cannot be built from its name."""
    return f"{_GIVEN}:{type(model).__name__}"


def runs_code(name: str) -> bool:
    """Whether building a network of this name imports a module of the user's."""
    return is_spec(name) and name.partition(":")[0] not in (_TORCHVISION, _GIVEN)


def build_user_network(
    spec: str, num_classes: int, input_shape: Sequence[int], *, seed: int = 0, weights: Path | None = None
) -> fx.GraphModule:
    """The network of a spec with all-ones masks, in eval mode, on the CPU.

    spec: `torchvision:NAME`, a classifier of torchvision.models, is made for num_classes classes. `MODULE:FUNCTION` is
    called with those of num_classes and input_shape that it has parameters for, and must return a torch.nn.Module;
    modules are looked for in the current directory too. input_shape: [C, H, W]. seed: of the initial weights, for
    constructors that draw from torch's generator. weights: see `load_weights`; they are those of the network before its
    ReLUs are masked.
    Raises NetworkError (wrong name, no Module, other number of classes, see `mask_relus`), CheckpointError (weights).
    """
    construct = _constructor(spec, num_classes, tuple(input_shape))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        model = construct()
    if not isinstance(model, nn.Module):
        raise NetworkError(f"{spec} must return a torch.nn.Module, got {type(model).__name__}")
    if weights is not None:
        load_weights(model, weights)
    masked = mask_relus(model, input_shape)
    with torch.no_grad():
        classes = masked(torch.zeros(1, *input_shape)).shape[1]
    if classes != num_classes:
        raise NetworkError(
            f"{spec} returns {classes} logits, the images have {num_classes} classes; they must be equal"
        )
    return masked


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a network with the tensors of a safetensors file, which must be those of its state_dict, name by name.

    Masks (`*.relu_mask`) may be missing and stay as they are. Raises CheckpointError: no such file, not safetensors, or
    a tensor is missing, unknown or of another shape (named).
    """
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; name a safetensors file of the network's weights") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a safetensors file ({error}); safetensors.torch.save_model(model, ...) writes one"
        ) from None
    wanted = model.state_dict()
    present = {tensor.data_ptr() for key, tensor in wanted.items() if key in tensors}
    for key, tensor in wanted.items():
        # Of a tensor under several names the file may hold one.
        if key not in tensors and not key.endswith("relu_mask") and tensor.data_ptr() not in present:
            raise CheckpointError(f"{path}: lacks {key} of the network{_closest(key, tensors)}")
        if key in tensors and tensors[key].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {key} is of shape {tuple(tensors[key].shape)}, in the network it is {tuple(tensor.shape)}; "
                "the weights are those of another network or number of classes"
            )
    for key in tensors:
        if key not in wanted:
            raise CheckpointError(f"{path}: {key} is not in the network{_closest(key, wanted)}")
    model.load_state_dict(tensors, strict=False)


def _constructor(spec: str, num_classes: int, input_shape: tuple[int, ...]) -> Callable[[], Any]:
    home, _, name = spec.partition(":")
    if home == _GIVEN:
        raise NetworkError(
            f"the network is a {name} that was given to linearize.linearize; load_checkpoint(path, model=...) takes it"
        )
    if home == _TORCHVISION:
        return _torchvision(name, num_classes)
    function = _find(spec, home, name)
    given = {"num_classes": num_classes, "input_shape": input_shape}
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        taken = given
    else:
        taken = {parameter.name: given[parameter.name] for parameter in parameters if parameter.name in given}
    required = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and parameter.name not in taken
    ]
    if required:
        raise NetworkError(f"{spec} asks for {', '.join(required)}; it can be given num_classes and input_shape only")
    return lambda: function(**taken)


def _torchvision(name: str, num_classes: int) -> Callable[[], nn.Module]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise NetworkError(f"torchvision has no classifier {name!r}{_closest(name, known)}; see torchvision.models")
    return lambda: models.get_model(name, weights=None, num_classes=num_classes)


def _find(spec: str, home: str, name: str) -> Callable[..., Any]:
    if os.getcwd() not in sys.path:
        # Last, so that a file beside the user's does not stand in for an installed package.
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(home)
    except ImportError as error:
        raise NetworkError(
            f"{spec}: cannot import {home} ({error}); name torchvision:NAME or an importable package.module:function"
        ) from error
    function = getattr(module, name, None)
    if not callable(function) or isinstance(function, nn.Module):
        found = "nothing" if function is None else f"a {type(function).__name__}"
        raise NetworkError(f"{spec}: {name} must be a function that returns a network, {home} has {found} of that name")
    return function  # type: ignore[no-any-return]


def _closest(key: str, known: Any) -> str:
    match = difflib.get_close_matches(key, list(known), n=1)
    return f"; the closest name is {match[0]}" if match else ""
