"""The results as tables on the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks import units
from benchmarks.headline import problems
from benchmarks.schema import PHASES, Results
from benchmarks.views import GRAPH_LABELS


def print_tables(results: Results, console: Console | None = None) -> None:
    """Prints costs and secure accuracy on ``console`` (stderr where there is none), and problems last."""
    console = console or Console(stderr=True, highlight=False)
    console.print(_costs(results))
    if results.accuracy.secure:
        console.print(_accuracy(results))
    for problem in problems(results):
        console.print(Text(f"WARNING: {problem}", style="bold red"), soft_wrap=True)


def _costs(results: Results) -> Table:
    model = results.model
    title = f"One inference: {units.count(model.relu_count)} of {units.count(model.relu_total)} ReLUs kept"
    table = Table(
        title=title,
        caption="latency: median; client, server, dealer: what each sent",
        box=box.SIMPLE,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in ("backend", "phase", "network"):
        table.add_column(name, no_wrap=True)
    for name in ("latency", "client", "server", "dealer", "rounds"):
        table.add_column(name, justify="right", no_wrap=True)
    for backend in results.backends:
        for phase in PHASES:
            for graph in results.graphs:
                row = results.row(backend, graph, phase)
                if row is None or (row.latency_s.median == 0 and row.sent_bytes.total == 0):
                    continue
                sent = (row.sent_bytes.client, row.sent_bytes.server, row.sent_bytes.dealer)
                table.add_row(
                    Text(backend),
                    phase,
                    GRAPH_LABELS[graph],
                    units.seconds(row.latency_s.median),
                    *(units.bytes_(value) for value in sent),
                    units.count(row.rounds),
                )
        table.add_section()
    return table


def _accuracy(results: Results) -> Table:
    table = _table("Logits against plaintext")
    for name in ("backend", "network"):
        table.add_column(name)
    for name in ("images", "same prediction", "largest logit error"):
        table.add_column(name, justify="right")
    for entry in results.accuracy.secure:
        table.add_row(
            Text(entry.backend),
            GRAPH_LABELS[entry.graph],
            units.count(entry.images),
            units.percent(entry.agreement_with_plaintext),
            units.significant(entry.max_abs_logit_error),
        )
    return table


def _table(title: str, caption: str | None = None) -> Table:
    # Narrow enough for the 80 columns of a terminal that does not tell its width.
    return Table(title=title, caption=caption, box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
