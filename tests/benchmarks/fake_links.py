"""A harness run on fake links and backends: what was opened where stands in a journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fake_bench import Bench, FakeBackend

from benchmarks.harness import BenchSettings
from pi_runtime.errors import BackendError
from pi_runtime.net.link_check import LinkCheck

GOOD = LinkCheck(rtt_ms=40.5, bandwidth_mbps=(99.0, 101.0))


class FakeLink:
    def __init__(self, network: str, links: FakeLinks) -> None:
        self.network, self.links, self.shaping = network, links, links.shaping

    def options(self) -> dict[str, Any]:
        return {"link": self.network}

    def check(self) -> LinkCheck:
        return self.links.check

    def dropped_packets(self) -> int:
        if self.links.dead:
            raise BackendError("the relay process was killed by signal 9")
        return self.links.dropped

    def close(self) -> None:
        self.links.journal.append(f"unlink {self.network}")


class FakeLinks:
    """Backends called `apart` cannot be measured on a network, `alone` has none."""

    def __init__(self, journal: list[str]) -> None:
        self.journal = journal
        self.shaping: Any = "relay"
        self.check = GOOD
        self.dropped = 0
        self.dead = False

    def reach(self, backend: str, network: str) -> Any:
        return {"apart": "modelled", "alone": "no network"}.get(backend, "measured")

    def open(self, network: str) -> Any:
        self.journal.append(f"link {network}")
        return FakeLink(network, self)


class NetBench(Bench):
    """Opens each backend with the link in its name, for the journal; a rehearsal is called so."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.links = FakeLinks(self.journal)
        self.failing: str | None = None
        self.settings = BenchSettings(runs=2, warmup=0, sweeps=1, accuracy_batch=50)

    def open(self, name: str, link: str = "loopback", random_weights: bool = False) -> Any:
        def distort(logits: Any) -> Any:
            if self.failing == f"{name}@{link}":
                raise BackendError("the process died")
            return logits

        return FakeBackend(f"{'rehearsal' if random_weights else name}@{link}", self.journal, distort)

    def run(self, *backends: str, **changes: Any) -> Any:
        return super().run(*backends, **({"links": self.links} | changes))

    def timed(self) -> list[str]:
        """Where inferences of one image took place, without repetitions."""
        return list(dict.fromkeys(entry.split()[1] for entry in self.journal if entry.endswith(" 1")))
