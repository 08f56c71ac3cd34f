"""Command-line flags made from the settings of a run: one flag a field, grouped in ``--help`` as in the YAML file."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

# Short names for what is set most often.
ALIASES = {
    "relu_budget": "--budget",
    "data.dataset": "--dataset",
    "data.data_dir": "--data-dir",
    "network.name": "--network",
    "network.width": "--width",
    "network.model": "--model",
    "network.weights": "--weights",
}
Command = TypeVar("Command", bound=Callable[..., Any])
_SEPARATOR = "__"  # click wants an identifier where the flag has dots


class GroupedCommand(click.Command):
    """Prints its own options first, then the settings of a run, a section each."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(_section(parameter), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def config_options(command: Command) -> Command:
    """Adds ``--config FILE`` and a flag for each setting; the command receives them all as keyword arguments.

    Turn them into a config with :func:`read_config`.
    """
    from linearize.config import RunConfig

    for key, field, kind, default in reversed(list(_fields(RunConfig, RunConfig()))):
        flags = [f"--{key.replace('_', '-')}"] + ([ALIASES[key]] if key in ALIASES else [])
        described = f"{field.description}  [{'unset' if default is None else default}]"
        option = click.option(
            *flags, key.replace(".", _SEPARATOR), metavar=_metavar(kind), type=_Scalar(kind), help=described
        )
        command = option(command)
    config = click.option(
        "--config", type=click.Path(path_type=Path), help="YAML file of settings; the flags below go before it"
    )
    return config(command)


def read_config(options: dict[str, Any]) -> Any:
    """The :class:`linearize.config.RunConfig` of ``--config`` and the setting flags, which it takes out of ``options``.

    Raises:
        linearize.errors.ConfigError: a setting is unknown, of the wrong type or out of range.
    """
    from linearize.config import config_keys, load_config

    path = options.pop("config")
    given = {key: options.pop(key.replace(".", _SEPARATOR)) for key in config_keys()}
    return load_config(path, {key: value for key, value in given.items() if value is not None})


def _fields(
    model: type[BaseModel], defaults: BaseModel, prefix: str = ""
) -> Iterator[tuple[str, FieldInfo, Any, object]]:
    for name, field in model.model_fields.items():
        default = getattr(defaults, name)
        if isinstance(default, BaseModel):
            yield from _fields(type(default), default, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field, field.annotation, default


def _section(parameter: click.Parameter) -> str:
    section, _, leaf = (parameter.name or "").rpartition(_SEPARATOR)
    return f"Settings: {section.replace(_SEPARATOR, '.')}" if leaf and section else "Options"


class _Scalar(click.ParamType[Any]):
    """Text to the plain value that YAML would give; what the value may be is for the config to say."""

    name = "scalar"

    def __init__(self, kind: Any) -> None:
        self.kinds = _kinds(kind)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        if bool in self.kinds and value.lower() in ("true", "false"):
            return value.lower() == "true"
        for kind in (int, float):
            if kind in self.kinds:
                try:
                    return kind(value)
                except ValueError:
                    continue
        return value


def _kinds(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _metavar(kind: Any) -> str:
    names = []
    for part in _kinds(kind):
        if get_origin(part) is Literal:
            names += [str(choice) for choice in get_args(part)]
        elif part is bool:
            names += ["true", "false"]
        elif part is not type(None):
            names.append({int: "INTEGER", float: "NUMBER", str: "TEXT"}[part])
    return "|".join(names)
