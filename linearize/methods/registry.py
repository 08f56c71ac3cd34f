"""Methods by name, imported when they are used."""

from importlib import import_module

from linearize.config import MethodName
from linearize.errors import ConfigError
from linearize.methods.base import Method

_HOMES: dict[MethodName, str] = {
    "autorep": "linearize.methods.autorep:autorep",
    "bcd": "linearize.methods.bcd:coordinate_descent",
    "gradual": "linearize.methods.gradual:gradual",
    "layer_culling": "linearize.methods.layer_culling:layer_culling",
    "random_mask": "linearize.methods.random_mask:random_mask",
    "sensitivity": "linearize.methods.sensitivity:sensitivity",
    "snl": "linearize.methods.snl:snl",
    "taylor": "linearize.methods.taylor:taylor",
}


def method_names() -> tuple[str, ...]:
    """All names, sorted."""
    return tuple(_HOMES)


def find_method(name: str) -> Method:
    """The method of a name. Raises ConfigError, with the known names, if there is none."""
    for known, home in _HOMES.items():
        if known == name:
            module, _, function = home.partition(":")
            method: Method = getattr(import_module(module), function)
            return method
    raise ConfigError(f"method must be one of {', '.join(_HOMES)}, got {name!r}")
