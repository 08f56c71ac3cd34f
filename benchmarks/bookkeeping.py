"""From the costs of repeated inferences to rows of the results document."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

from benchmarks.links import Link, least_link_seconds
from benchmarks.schema import PHASES, LayerRow, Phase, Row, SentBytes
from benchmarks.summary import middle_bytes
from pi_runtime.backend import Cost, RunCost, sum_costs


def phase_rows(
    costs: Sequence[RunCost],
    *,
    backend: str,
    subject: str,
    network: str,
    sweep: int,
    images: int,
    byte_source: str = "",
) -> tuple[Row, ...]:
    """One row a phase from the costs of the inferences of one sweep, on ``images`` images each.

    Seconds are kept of every run. Bytes, messages and rounds are those of a run in the middle (``median_low``), so that
    each is a figure that was really counted. ``setup`` happened once, however often its cost was reported.
    """
    rows = []
    for phase in PHASES:
        seen = [run.phases.get(phase, Cost()) for run in costs]
        if phase == "setup":
            seen = seen[:1]
        rows.append(
            Row(
                backend=backend,
                subject=subject,
                network=network,
                kind="measured",
                phase=phase,
                sweep=sweep,
                images=images,
                seconds=tuple(cost.seconds for cost in seen),
                sent_bytes=_middle_bytes(seen),
                messages=median_low(cost.messages for cost in seen),
                rounds=median_low(cost.rounds for cost in seen),
                byte_source=byte_source,
            )
        )
    return tuple(rows)


def modelled_row(row: Row, *, network: str, link: Link) -> Row:
    """What ``row``, measured where the network costs next to nothing, would be on ``link``, were nothing overlapped.

    Seconds of each run, and rounds * RTT + bytes / bandwidth; which of them count says :mod:`benchmarks.links`.
    """
    added = least_link_seconds(link, row.backend, row.phase, row.rounds, row.sent_bytes)
    seconds = tuple(second + added for second in row.seconds)
    return row.model_copy(update={"network": network, "kind": "modelled", "seconds": seconds})


def layer_rows(
    costs: Sequence[RunCost], *, backend: str, subject: str, network: str, sweep: int
) -> tuple[LayerRow, ...]:
    """One row a layer and phase, in the order of execution; as :func:`phase_rows`.

    Entries of one run with the same phase and name (a layer that works in two steps) are added up first.
    """
    first: dict[tuple[Phase, str], tuple[str, int]] = {}
    seen: dict[tuple[Phase, str], list[Cost]] = {}
    for run in costs:
        steps: dict[tuple[Phase, str], list[Cost]] = {}
        for layer in run.layers:
            for phase in PHASES:
                if phase == layer.phase:
                    first.setdefault((phase, layer.name), (layer.op, layer.relu_count))
                    steps.setdefault((phase, layer.name), []).append(layer.cost)
        for key, parts in steps.items():
            seen.setdefault(key, []).append(sum_costs(parts))
    return tuple(
        LayerRow(
            backend=backend,
            subject=subject,
            network=network,
            phase=phase,
            sweep=sweep,
            layer=name,
            op=first[phase, name][0],
            relu_count=first[phase, name][1],
            seconds=tuple(cost.seconds for cost in parts),
            sent_bytes=_middle_bytes(parts),
            messages=median_low(cost.messages for cost in parts),
            rounds=median_low(cost.rounds for cost in parts),
        )
        for (phase, name), parts in seen.items()
    )


def _middle_bytes(costs: Sequence[Cost]) -> SentBytes:
    return middle_bytes(
        [SentBytes(**{role: cost.sent_bytes[role] for role in SentBytes.model_fields}) for cost in costs]
    )
