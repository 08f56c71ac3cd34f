"""The verb ``simulate``: what accuracy the secure network has, for any scale, without running the protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from linearize.data import Dataset
    from pi_runtime.graph import Graph
    from pi_runtime.preset.precision_table import PrecisionTable, Row

_PATH = click.Path(path_type=Path)
MOST_FRAC_BITS = 22  # with the 8 integer bits of MaxPool's edge it is the most that 32-bit gates hold


class _Scales(click.ParamType[tuple[int, ...]]):
    """``8-16``, ``12`` or ``8,10,12-14``: fraction bits in ascending order."""

    name = "scales"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if not isinstance(value, str):
            return tuple(value)
        found: set[int] = set()
        for part in value.split(","):
            first, dash, last = part.partition("-")
            try:
                low, high = int(first), int(last if dash else first)
            except ValueError:
                self.fail(f"{value!r} must be numbers or ranges, as 12 or 8-16", param, ctx)
            if not 1 <= low <= high <= MOST_FRAC_BITS:
                self.fail(f"{part!r} must be from 1 to {MOST_FRAC_BITS} fraction bits, in ascending order", param, ctx)
            found.update(range(low, high + 1))
        return tuple(sorted(found))


@click.command()
@click.argument("model", type=_PATH)
@click.option(
    "--frac-bits",
    type=_Scales(),
    metavar="BITS",
    help="fraction bits of the activations, 8-16 or 8,12; numbers are calibrated for each  [the plan of the graph]",
)
@click.option(
    "--images", default=1000, show_default=True, type=click.IntRange(min=1), help="test images, drawn at random"
)
@click.option("--data", type=_PATH, help="directory with train/<class>/* and test/<class>/*  [the data of the run]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="of images and truncation noise")
@click.option("--output", type=_PATH, help="JSON file; CSV and PNG go beside it  [precision.json beside the model]")
def simulate(
    model: Path, frac_bits: tuple[int, ...] | None, images: int, data: Path | None, seed: int, output: Path | None
) -> None:
    """What accuracy MODEL has under the `preset` protocol, at any scale, without running it.

    MODEL is an ONNX file or the directory of a run. The bit-exact simulator, with the protocol's truncation noise, runs
    over test images; its logits are compared with onnxruntime's. Go on with the same command after a break: rows that
    are there are kept.
    """
    from linearize.progress import Reporter
    from pi_runtime.onnx_graph import load_onnx
    from pi_runtime.preset.precision import choose_subject, fill_table
    from pi_runtime.preset.precision_table import write_csv, write_figure

    path = model / "model.onnx" if model.is_dir() else model
    output = output or path.with_name("precision.json" if path.name == "model.onnx" else f"{path.stem}.precision.json")
    reporter = Reporter()
    dataset = read_dataset(path, data, load_onnx(path), reporter)
    subject = choose_subject(
        path,
        training=dataset.train.images.numpy(),
        test=dataset.test.images.numpy(),
        labels=dataset.test.labels.numpy(),
        count=images,
        seed=seed,
    )
    with reporter.task("simulate", len(subject.images) * len(frac_bits or (0,))) as task:
        table = fill_table(subject, frac_bits, output, advance=task.advance, tell=task.say)
    write_csv(table, output.with_suffix(".csv"))
    write_figure(table, output.with_suffix(".png"))
    _print(table)
    _answer(table, output)


def add_simulate_verb(group: click.Group) -> None:
    """Adds ``simulate`` to ``group``."""
    group.add_command(simulate)


def read_dataset(model: Path, data: Path | None, graph: Graph, reporter: Any) -> Dataset:
    """The images that ``model`` was trained on: of ``data``, or of the run whose directory the file lies in.

    Raises:
        ConfigError: neither is there, or the classes are not those of the network.
        LinearizeError: the images cannot be read.
    """
    from linearize.config import DataConfig, load_config
    from linearize.data import load_dataset
    from pi_runtime.errors import ConfigError
    from pi_runtime.images import class_names

    run = model.parent / "config.yaml"
    if data is not None:
        config = DataConfig(dataset="folder", data_dir=str(data), image_size=graph.input_shape[-1])
    elif run.is_file():
        config = load_config(run).data
    else:
        raise ConfigError(
            f"{model} is in no run directory (there is no {run.name} beside it); give --data DIR with"
            " train/<class>/* and test/<class>/*"
        )
    dataset = load_dataset(config, reporter)
    wanted = class_names(graph)
    if graph.metadata.get("class_names") is not None and list(dataset.class_names) != wanted:
        raise ConfigError(
            f"the data has the classes {', '.join(dataset.class_names)}, the network {', '.join(wanted)}; give the"
            " data that it was trained on"
        )
    return dataset


def _answer(table: PrecisionTable, output: Path) -> None:
    from pi_runtime.cli.main import answer

    rows = [row.model_dump(mode="json") for row in table.rows]
    answer({"precision": str(output), "plaintext_accuracy": table.plaintext_accuracy, "rows": rows})


def _print(table: PrecisionTable) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from pi_runtime.preset.precision_table import Refused

    shown = Table(
        title=f"{table.model.name}, {table.model.dataset}, {table.model.relu_count:,} ReLUs: {table.images:,} test"
        f" images, plaintext accuracy {100 * table.plaintext_accuracy:.2f} %",
        caption="same: answers equal to plaintext's; errors: of logits, whose root mean square is"
        f" {table.plaintext_logit_rms:.3g};\nrings: bits of the gates; wraps: elements outside them; failures: of"
        " truncations, predicted an image",
        box=SIMPLE,
        pad_edge=False,
    )
    columns = ("bits", "acc. %", "same %", "max err", "rms err", "rings", "wraps", "failures")
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    for row in table.rows:
        shown.add_row(*_cells(row))
    console = Console(stderr=True, highlight=False)
    console.print(shown)
    for row in table.rows:
        if isinstance(row, Refused):
            console.print(f"{row.frac_bits} fraction bits: {row.reason}", markup=False)


def _cells(row: Row) -> tuple[str, ...]:
    from pi_runtime.preset.precision_table import Refused

    bits = str(row.frac_bits) if row.plan == "calibrated" else f"{row.frac_bits}, {row.plan}"
    if isinstance(row, Refused):
        return bits, "refused"
    return (
        bits,
        f"{100 * row.accuracy:.2f}",
        f"{100 * row.agreement_with_plaintext:.2f}",
        f"{row.max_abs_logit_error:.2g}",
        f"{row.rms_logit_error:.2g}",
        f"{row.ring_bits_min}-{row.ring_bits_max}",
        f"{row.wrapped_elements:,}",
        f"{row.failure_rate:.1e}" if row.failure_rate else "0",
    )
