"""Tallies of predictions: known answers."""

from __future__ import annotations

import pytest

from benchmarks.cost_law import Prediction
from benchmarks.tally import Tally, backend_tallies


def test_a_tally_counts_what_is_within_a_tenth_of_the_measurement() -> None:
    """Errors of +9, -10 and +11 % between the counts, and -20 % beyond them, of one backend; none beyond of another."""

    def predicted(backend: str, seconds: float, *, outside: bool = False) -> Prediction:
        return Prediction(
            backend=backend,
            model="net",
            phase="online",
            network="loopback",
            relu_count=1,
            predicted_s=seconds,
            measured_s=100.0,
            outside=outside,
        )

    one = [predicted("one", seconds) for seconds in (109.0, 90.0, 111.0)]
    first, second = backend_tallies([*one, predicted("two", 100.0), predicted("one", 80.0, outside=True)])
    assert (first.backend, second.backend) == ("one", "two")
    assert (first.between.within, first.between.total, first.between.worst) == (2, 3, pytest.approx(0.11))
    assert (first.beyond.within, first.beyond.total, first.beyond.worst) == (0, 1, pytest.approx(0.2))
    assert second.between == Tally(within=1, total=1, worst=0.0)
    assert second.beyond == Tally(within=0, total=0, worst=None)
