"""The results document (``results.json``, schema 2): every figure of a measurement, raw, with the units in the names.

A figure is stored once, as it was measured; what a reader computes from it (medians, ratios, sums, fits) is not
stored: see :mod:`benchmarks.summary` and :mod:`benchmarks.fit`. ``sent_bytes`` are by the role that sent them.
``subject`` names one of ``subjects``: a network at one ReLU budget. ``network`` is the profile of the link between the
parties. ``sweep`` numbers the times that a backend was open with a subject, from 0. ``kind`` parts measured figures
from modelled ones; the two are never merged into one row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pi_runtime.files import write_text

SCHEMA = 2

Kind = Literal["measured", "modelled"]
Phase = Literal["setup", "offline", "online"]
Mask = Literal["all", "trained", "random", "given"]
Weights = Literal["trained", "random", "given"]
Shaping = Literal["relay", "channel", "none"]
ImagesKind = Literal["test", "folder", "noise"]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Runs = Annotated[tuple[Seconds, ...], Field(min_length=1)]

PHASES: tuple[Phase, ...] = ("setup", "offline", "online")
LOOPBACK = "loopback"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Subject(_Part):
    """A network at one ReLU budget.

    name: what rows call it. model: the network, whatever its budget. dataset: what its weights are for.
    relu_total: of the network with all its ReLUs. relu_budget: what was asked for. relu_count: what it keeps.
    mask: how the kept ReLUs were chosen: ``all`` are kept, ``trained`` by a linearization, ``random`` by a seed, or
        ``given`` with the file.
    weights: ``trained``, ``random``, or ``given`` with a file that does not say.
    images: what it was measured on: the data set's ``test`` images, a ``folder`` of images, or ``noise`` (standard
        normal), on which equal predictions mean little.
    test_accuracy: fraction of ``test_images`` classified as labelled, by onnxruntime; absent without labels.
    """

    name: Annotated[str, Field(min_length=1)]
    model: str
    dataset: str
    relu_total: Count
    relu_budget: Count
    relu_count: Count
    mask: Mask
    weights: Weights
    images: ImagesKind
    test_accuracy: Fraction | None = None
    test_images: Count = 0


class SecureAccuracy(_Part):
    """How a backend's logits compare with onnxruntime's on the same images of the same run.

    agreement_with_plaintext: fraction of ``images`` with the same argmax.
    max_abs_logit_error: the largest difference of any logit, in the unit of the logits.
    accuracy: fraction of ``images`` that the backend classifies as labelled; absent without labels.
    """

    backend: str
    subject: str
    images: Positive
    agreement_with_plaintext: Fraction
    max_abs_logit_error: Seconds
    accuracy: Fraction | None = None


class SimulatedAccuracy(SecureAccuracy):
    """What the bit-exact simulator of a backend says of it on ``images`` images: computed, not run by processes.

    wrapped_elements: kept elements that were outside their gate's ring, over all images.
    """

    wrapped_elements: Count


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
    """The cost of one phase of inference on ``images`` images in one sweep; ``setup`` is paid once a model.

    seconds: wall time of every timed run, in their order.
    byte_source: where the bytes were counted; empty where the backend does not say.
    """

    backend: str
    subject: str
    network: str
    kind: Kind
    phase: Phase
    sweep: Count
    images: Positive
    seconds: Runs
    sent_bytes: SentBytes
    messages: Count
    rounds: Count
    byte_source: str = ""


class LayerRow(_Part):
    """The cost of one node of a graph in one phase and sweep; ``seconds`` as in the phase's row."""

    backend: str
    subject: str
    network: str
    phase: Phase
    sweep: Count
    layer: str
    op: str
    relu_count: Count
    seconds: Runs
    sent_bytes: SentBytes
    messages: Count
    rounds: Count


class RehearsedLayer(_Part):
    """What one layer takes of a rehearsed phase; ``seconds`` of every timed run, ``sent_bytes`` as counted."""

    layer: str
    seconds: Runs
    sent_bytes: SentBytes


class Rehearsed(_Part):
    """What ``estimate`` says of one phase of `preset` on a subject, measured and counted in turn with the rows.

    seconds: on loopback, with random weights of the public graph's shapes, of every timed run of one image.
    sent_bytes, rounds: declared by the public graph, not counted on a channel.
    layers: of the offline phase, in the order in which the dealer deals; earlier versions kept none.
    """

    subject: str
    phase: Phase
    sweep: Count
    seconds: Runs
    sent_bytes: SentBytes
    rounds: Count
    layers: tuple[RehearsedLayer, ...] = ()


class LinkRecord(_Part):
    """The link of one network profile other than loopback: what it should be, and what it was measured to be.

    shaping: what made it behave so: the ``relay`` between network namespaces, or each ``channel`` itself. ``none``
        where nothing could, so that there are modelled rows alone.
    rtt_ms, bandwidth_mbps: of the profile; the bandwidth is of each direction, and absent where there is no limit.
    measured_rtt_ms: median round trip of a byte over TCP, one a check. A check is made whenever the link is.
    measured_bandwidth_mbps: payload over TCP; two a check, from client to server and back.
    dropped_packets: that the relay lost in all; anything but 0 spoils the figures.
    """

    network: Annotated[str, Field(min_length=1)]
    shaping: Shaping
    rtt_ms: Seconds
    bandwidth_mbps: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    measured_rtt_ms: tuple[Seconds, ...] = ()
    measured_bandwidth_mbps: tuple[Seconds, ...] = ()
    dropped_packets: Count = 0


class ReluLayer(_Part):
    """One activation of a subject: its elements, and how many of them keep a ReLU; 0 where the layer has no node.

    shape: of the activation, without the batch; files of earlier versions do not say.
    kept_map: kept ReLUs at each location, summed over the channels, row by row: H * W counts of a [C, H, W] activation.
        Absent where it says nothing new: all are kept, none is, or there are no locations.
    """

    subject: str
    layer: str
    elements: Positive
    relu_count: Count
    shape: tuple[Positive, ...] | None = None
    kept_map: tuple[Count, ...] | None = None

    @model_validator(mode="after")
    def _map_fits(self) -> Self:
        if self.shape is not None and prod(self.shape) != self.elements:
            raise ValueError(f"shape {list(self.shape)} of {self.layer} has not its {self.elements} elements")
        if self.kept_map is not None:
            if self.shape is None or len(self.shape) != 3 or len(self.kept_map) != self.shape[1] * self.shape[2]:
                raise ValueError(f"kept_map of {self.layer} must have a count for each location of its shape [C, H, W]")
            if sum(self.kept_map) != self.relu_count or max(self.kept_map) > self.shape[0]:
                raise ValueError(f"kept_map of {self.layer} must add up to relu_count, with at most C at a location")
        return self


class Schedule(_Part):
    """How the measurement went.

    runs: timed inferences of one image for each backend and subject; runs_on: the same on the networks named in it;
    runs_of: the same of the backends named in it; where both are given, the fewer, unless runs_of has BACKEND@NETWORK.
    warmup: those before them, in each sweep; of the backends in no_warmup none.
    sweeps: passes over all subjects, every other one in reverse order; the runs are divided among them.
    subjects_at_once: how many subjects are open together. All their backends of several runs are, and take turns.
    across_networks: the backends that are open on all networks together, whatever their runs; the others are on one
    network after the other.
    accuracy_batch: images in one inference of the comparison with plaintext.
    rehearse: whether a rehearsal of `preset` takes turns with it.
    """

    runs: Positive
    warmup: Count
    sweeps: Positive
    subjects_at_once: Positive
    accuracy_batch: Positive
    runs_on: dict[str, Positive] = {}
    runs_of: dict[str, Positive] = {}
    across_networks: tuple[str, ...] = ()
    rehearse: bool = False
    no_warmup: tuple[str, ...] = ()

    def warmups(self, backend: str) -> int:
        """A backend's inferences of a subject before the timed ones, in each sweep and on each network."""
        return 0 if backend in self.no_warmup else self.warmup

    def total(self, network: str, backend: str) -> int:
        """A backend's runs of a subject on a network, in all sweeps together."""
        if (there := f"{backend}@{network}") in self.runs_of:
            return self.runs_of[there]
        own = [runs[name] for runs, name in ((self.runs_on, network), (self.runs_of, backend)) if name in runs]
        return min(own, default=self.runs)

    def share(self, sweep: int, network: str, backend: str) -> range:
        """A backend's runs of a sweep on a network, numbered from the first sweep's first; there may be none."""
        each, more = divmod(self.total(network, backend), self.sweeps)
        start = sweep * each + min(sweep, more)
        return range(start, start + each + (sweep < more))


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

    inputs_sha256: names the graphs, images, schedule and environment; equal inputs need no second measurement.
    command: what makes the document again.
    """

    schema_version: Literal[2] = Field(default=2, alias="schema")
    inputs_sha256: str
    command: str | None = None
    subjects: Annotated[tuple[Subject, ...], Field(min_length=1)]
    schedule: Schedule
    secure: tuple[SecureAccuracy, ...] = ()
    simulated: tuple[SimulatedAccuracy, ...] = ()
    rows: tuple[Row, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    rehearsed: tuple[Rehearsed, ...] = ()
    relu_layers: tuple[ReluLayer, ...] = ()
    links: tuple[LinkRecord, ...] = ()
    environment: Environment

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _require_distinct("subjects", ((s.name,) for s in self.subjects))
        _require_distinct(
            "rows", ((r.backend, r.subject, r.network, r.kind, r.phase, r.images, r.sweep) for r in self.rows)
        )
        _require_distinct("layers", ((r.backend, r.subject, r.network, r.phase, r.sweep, r.layer) for r in self.layers))
        _require_distinct("rehearsed", ((r.subject, r.phase, r.sweep) for r in self.rehearsed))
        _require_distinct("secure", ((e.backend, e.subject) for e in self.secure))
        _require_distinct("simulated", ((e.backend, e.subject) for e in self.simulated))
        _require_distinct("relu_layers", ((e.subject, e.layer) for e in self.relu_layers))
        _require_distinct("links", ((link.network,) for link in self.links))
        known = {subject.name for subject in self.subjects}
        parts: tuple[tuple[str, Iterable[Row | LayerRow | Rehearsed | SecureAccuracy | ReluLayer]], ...] = (
            ("rows", self.rows),
            ("layers", self.layers),
            ("rehearsed", self.rehearsed),
            ("secure", self.secure),
            ("simulated", self.simulated),
            ("relu_layers", self.relu_layers),
        )
        for name, entries in parts:
            for entry in entries:
                if entry.subject not in known:
                    raise ValueError(f"{name} has the subject {entry.subject!r}, which subjects does not name")
        return self

    def is_part_of(self, schedule: Schedule) -> bool:
        """Whether all was measured as ``schedule`` says, but for how many runs there are: no more than it asks for."""
        counts = {"runs", "runs_on", "runs_of", "sweeps"}
        if self.schedule.model_dump(exclude=counts) != schedule.model_dump(exclude=counts):
            return False
        runs = Counter[tuple[str, str, str]]()
        for row in self.rows:
            if (row.kind, row.phase) == ("measured", "online"):
                runs[row.network, row.backend, row.subject] += len(row.seconds)
        return all(count <= schedule.total(network, backend) for (network, backend, _), count in runs.items())

    @property
    def backends(self) -> tuple[str, ...]:
        """Names of the measured backends, in the order of measurement."""
        return tuple(dict.fromkeys(row.backend for row in self.rows))

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the network profiles, in the order of measurement."""
        return tuple(dict.fromkeys(row.network for row in self.rows))

    def subject(self, name: str) -> Subject:
        """The subject of a row."""
        return next(subject for subject in self.subjects if subject.name == name)

    def link(self, network: str) -> LinkRecord | None:
        """The link of a profile; None for loopback, and where it was not recorded."""
        return next((link for link in self.links if link.network == network), None)

    def accuracy_of(self, backend: str, subject: str) -> SecureAccuracy | None:
        """The comparison with the plaintext logits, if there is one."""
        return next((e for e in self.secure if (e.backend, e.subject) == (backend, subject)), None)

    def simulation_of(self, backend: str, subject: str) -> SimulatedAccuracy | None:
        """What the simulator said of the pair, if it was asked."""
        return next((e for e in self.simulated if (e.backend, e.subject) == (backend, subject)), None)

    def to_json(self) -> str:
        """The document as text, a row a line, one stable order of keys."""
        return _a_row_a_line(self.model_dump(mode="json", by_alias=True))

    def save(self, path: Path) -> None:
        """Writes the document, whole or not at all.

        Raises:
            ConfigError: ``path`` cannot be written.
        """
        write_text(path, self.to_json())


def _a_row_a_line(document: dict[str, object]) -> str:
    """JSON whose lists of objects take a line an object: thousands of rows stay small, and a difference readable."""
    parts = []
    for key, value in document.items():
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(f"  {json.dumps(entry, allow_nan=False)}" for entry in value) + "\n ]"
        else:
            text = json.dumps(value, allow_nan=False)
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _require_distinct(name: str, keys: Iterable[tuple[object, ...]]) -> None:
    seen: set[tuple[object, ...]] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"{name} has {key} twice")
        seen.add(key)
