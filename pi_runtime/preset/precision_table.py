"""The document of ``pi-pipeline simulate`` (``precision.json``, schema 1), and its forms for people: CSV and a figure.

Accuracies and agreements are fractions. Logit errors are in the unit of the logits, against onnxruntime's float32.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pi_runtime.errors import ConfigError
from pi_runtime.files import replacing, write_text

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PlanOrigin = Literal["calibrated", "carried"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Measured(_Part):
    """The secure network under one plan.

    plan: ``calibrated`` for this scale, or the one that the graph ``carried``.
    accuracy: of the secure network. agreement_with_plaintext: images with onnxruntime's argmax.
    max_abs_logit_error, rms_logit_error: over all logits of all images.
    ring_bits_min, ring_bits_max: of the gates' rings; 0 for a network without gates.
    wrapped_elements: kept elements outside their gate's ring, over all images.
    failure_rate: failed truncations an image that the calibration images predict.
    """

    status: Literal["measured"] = "measured"
    frac_bits: Positive
    plan: PlanOrigin
    accuracy: Fraction
    agreement_with_plaintext: Fraction
    max_abs_logit_error: Size
    rms_logit_error: Size
    ring_bits_min: Count
    ring_bits_max: Count
    wrapped_elements: Count
    failure_rate: Size


class Refused(_Part):
    """A plan that no role would take, and why."""

    status: Literal["refused"] = "refused"
    frac_bits: Positive
    plan: PlanOrigin
    reason: str


Row = Measured | Refused


class Model(_Part):
    """The network, from the metadata of its graph. relu_total: elements that could have a ReLU; relu_count: that do."""

    name: str
    dataset: str
    relu_total: Count
    relu_count: Count


class PrecisionTable(_Part):
    """Accuracy against fraction bits.

    images: test images. calibration_images: training images that plans were chosen on. seed: chose both, and the
    truncation noise. plaintext_accuracy, plaintext_logit_rms: of onnxruntime on the same test images.
    fingerprint: SHA-256 of what the rows depend on; rows of an equal one are kept when the table is made again.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    model: Model
    images: Positive
    calibration_images: Positive
    seed: Count
    plaintext_accuracy: Fraction
    plaintext_logit_rms: Size
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    versions: dict[str, str]
    rows: tuple[Annotated[Row, Field(discriminator="status")], ...] = ()


def read_table(path: Path) -> PrecisionTable:
    """Reads and validates a ``precision.json``.

    Raises:
        ConfigError: it is missing, damaged or of another schema.
    """
    try:
        return PrecisionTable.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ConfigError(f"{path} is no precision table ({first}); remove it and simulate again") from error


def write_table(table: PrecisionTable, path: Path) -> None:
    """Writes ``path`` (JSON), whole or not at all."""
    write_text(path, json.dumps(table.model_dump(mode="json", by_alias=True), indent=1) + "\n")


def write_csv(table: PrecisionTable, path: Path) -> None:
    """A line a row; what a refused scale has no figure for is empty."""
    columns = list(dict.fromkeys([*Measured.model_fields, *Refused.model_fields]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.model_dump(mode="json") for row in table.rows)
    write_text(path, text.getvalue())


def write_figure(table: PrecisionTable, path: Path) -> None:
    """Accuracy and logit error against fraction bits (PNG); refused scales are absent."""
    from matplotlib.figure import Figure  # takes a second to load

    rows = [row for row in table.rows if isinstance(row, Measured)]
    bits = [row.frac_bits for row in rows]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    accuracy, error = figure.subplots(1, 2)
    accuracy.axhline(100 * table.plaintext_accuracy, color="0.6", linestyle="--", label="plaintext")
    accuracy.plot(bits, [100 * row.accuracy for row in rows], "o-", color="C0", label="secure")
    accuracy.plot(bits, [100 * row.agreement_with_plaintext for row in rows], "s:", color="C1", label="same answer")
    accuracy.set(xticks=bits, xlabel="fraction bits", ylabel=f"% of {table.images:,} test images")
    accuracy.legend()
    error.plot(bits, [row.max_abs_logit_error for row in rows], "o-", color="C0", label="largest")
    error.plot(bits, [row.rms_logit_error for row in rows], "s-", color="C1", label="root mean square")
    error.axhline(table.plaintext_logit_rms, color="0.6", linestyle="--", label="logits, root mean square")
    error.set(xticks=bits, xlabel="fraction bits", ylabel="error of the logits")
    if any(row.rms_logit_error for row in rows):
        error.set_yscale("log")
    error.legend()
    figure.suptitle(f"{table.model.name}, {table.model.dataset}, {table.model.relu_count:,} ReLUs")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
