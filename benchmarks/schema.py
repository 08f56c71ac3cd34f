"""The results document (``results.json``, schema 1): every figure of a run, raw, with the units in the names.

A figure is stored once, as it was measured; what a reader computes from it (ratios, sums) is not stored. ``sent_bytes``
are by the role that sent them. ``graph`` is ``full`` (all ReLUs) or ``linearized`` (the kept ones). ``kind`` parts
measured figures from modelled ones; the two are never merged into one row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from benchmarks.errors import ResultsError
from pi_runtime.files import write_text

SCHEMA = 1

GraphName = Literal["full", "linearized"]
Kind = Literal["measured", "modelled"]
Phase = Literal["setup", "offline", "online"]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

GRAPHS: tuple[GraphName, ...] = ("full", "linearized")
PHASES: tuple[Phase, ...] = ("setup", "offline", "online")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelFacts(_Part):
    """What was measured. ``relu_total``: of the full network; ``relu_count``: kept by the linearized one."""

    name: str
    dataset: str
    relu_total: Count
    relu_budget: Count
    relu_count: Count


class SecureAccuracy(_Part):
    """How a backend's logits compare with onnxruntime's on the same images of the same run.

    agreement_with_plaintext: fraction of ``images`` with the same argmax.
    max_abs_logit_error: the largest difference of any logit, in the unit of the logits.
    accuracy: fraction of ``images`` that the backend classifies as labelled; absent without labels.
    """

    backend: str
    graph: GraphName
    images: Positive
    agreement_with_plaintext: Fraction
    max_abs_logit_error: Seconds
    accuracy: Fraction | None = None


class Accuracy(_Part):
    """Fractions of ``test_images`` images classified as labelled, by onnxruntime; absent without labels or graph."""

    baseline_test: Fraction | None
    linearized_test: Fraction | None
    test_images: Count = 0
    secure: tuple[SecureAccuracy, ...] = ()


class Spread(_Part):
    """Wall time over ``runs`` repetitions, in seconds."""

    median: Seconds
    min: Seconds
    max: Seconds
    runs: Positive

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min <= self.median <= self.max:
            raise ValueError(f"min <= median <= max does not hold: {self.min}, {self.median}, {self.max}")
        return self


class SentBytes(_Part):
    """Bytes by the role that sent them."""

    client: Count
    server: Count
    dealer: Count

    @property
    def total(self) -> int:
        """Bytes of all roles together."""
        return self.client + self.server + self.dealer


class Row(_Part):
    """The cost of one phase of inference on ``images`` images; ``setup`` is paid once a model.

    byte_source: where the bytes were counted; empty where the backend does not say.
    """

    backend: str
    graph: GraphName
    relu_count: Count
    network: str
    kind: Kind
    phase: Phase
    images: Positive
    latency_s: Spread
    sent_bytes: SentBytes
    messages: Count
    rounds: Count
    byte_source: str = ""


class LayerRow(_Part):
    """The cost of one node of a graph in one phase; ``seconds`` is the median over the runs of the phase's row."""

    backend: str
    graph: GraphName
    phase: Phase
    layer: str
    op: str
    relu_count: Count
    seconds: Seconds
    sent_bytes: SentBytes
    messages: Count
    rounds: Count


class ReluLayer(_Part):
    """One activation of a network: its elements, and how many of them keep a ReLU in each graph."""

    layer: str
    elements: Positive
    full: Count
    linearized: Count


class Environment(_Part):
    """Where the figures come from; says nothing of whose machine it is."""

    cpu: str
    cores: Positive
    memory_bytes: Count
    system: str
    python: str
    packages: dict[str, str]
    threads: Positive
    commit: str | None


class Results(_Part):
    """The whole document.

    inputs_sha256: names the graphs, images, settings and environment; equal inputs need no second measurement.
    command: what makes the document again.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    inputs_sha256: str
    command: str | None = None
    model: ModelFacts
    accuracy: Accuracy
    rows: tuple[Row, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    relu_layers: tuple[ReluLayer, ...] = ()
    environment: Environment

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        _require_distinct(
            "rows", ((r.backend, r.graph, r.network, r.kind, r.phase, r.images, r.relu_count) for r in self.rows)
        )
        _require_distinct("layers", ((r.backend, r.graph, r.phase, r.layer) for r in self.layers))
        _require_distinct("accuracy.secure", ((r.backend, r.graph) for r in self.accuracy.secure))
        return self

    @property
    def backends(self) -> tuple[str, ...]:
        """Names of the measured backends, in the order of measurement."""
        return tuple(dict.fromkeys(row.backend for row in self.rows))

    @property
    def graphs(self) -> tuple[GraphName, ...]:
        """The graphs that were measured, ``full`` first."""
        present = {row.graph for row in self.rows}
        return tuple(graph for graph in GRAPHS if graph in present)

    def row(self, backend: str, graph: GraphName, phase: Phase) -> Row | None:
        """The measured row, if there is one."""
        wanted = (backend, graph, phase, "measured")
        return next((row for row in self.rows if (row.backend, row.graph, row.phase, row.kind) == wanted), None)

    def secure(self, backend: str, graph: GraphName) -> SecureAccuracy | None:
        """The comparison with the plaintext logits, if there is one."""
        return next((e for e in self.accuracy.secure if (e.backend, e.graph) == (backend, graph)), None)

    def layer_rows(self, backend: str, graph: GraphName, phase: Phase) -> tuple[LayerRow, ...]:
        """The layers of one phase in the order of execution."""
        return tuple(row for row in self.layers if (row.backend, row.graph, row.phase) == (backend, graph, phase))

    def to_json(self) -> str:
        """The document as text, one stable order of keys."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False) + "\n"

    def save(self, path: Path) -> None:
        """Writes the document, whole or not at all.

        Raises:
            ConfigError: ``path`` cannot be written.
        """
        write_text(path, self.to_json())


def load_results(path: Path) -> Results:
    """Reads and checks a ``results.json``.

    Raises:
        ResultsError: it is missing, not JSON, of another schema, or breaks a rule of the schema (named).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ResultsError(f"there is no {path}; make one with `pi-pipeline bench`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"cannot read {path} ({error}); run `pi-pipeline bench` again") from error
    return parse_results(text, origin=str(path))


def parse_results(text: str, *, origin: str) -> Results:
    """Checks a results document; ``origin`` names it in errors.

    Raises:
        ResultsError: as :func:`load_results`.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ResultsError(f"{origin} is not whole JSON ({error}); run `pi-pipeline bench` again") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise ResultsError(f"{origin} must be a results document of schema {SCHEMA}, got schema {schema!r}")
    try:
        return Results.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"]) or "the document"
        raise ResultsError(
            f"{origin} is damaged: {place}: {first['msg']}; correct it or run `pi-pipeline bench` again"
        ) from error


def _require_distinct(name: str, keys: Iterable[tuple[object, ...]]) -> None:
    seen: set[tuple[object, ...]] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"{name} has {key} twice")
        seen.add(key)
