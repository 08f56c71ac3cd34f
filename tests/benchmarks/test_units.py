"""Known answers for the texts of figures, and round ticks that enclose their range."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import units
from benchmarks.scales import nice_ticks


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (2.274, "2.27 s"),
        (0.9996, "1,000 ms"),
        (0.0315, "31.5 ms"),
        (4.2e-5, "42.0 µs"),
        (1234.5, "1,234 s"),
    ],
)
def test_seconds(value: float, text: str) -> None:
    assert units.seconds(value).replace("\u202f", " ") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9_811_200, "9.81 MB"), (2_500_000_000, "2.50 GB")],
)
def test_bytes(value: int, text: str) -> None:
    assert units.bytes_(value).replace("\u202f", " ") == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(10, 2, "5.0× less"), (2, 10, "5.0× more"), (100, 98, "about the same"), (0, 1, None), (1, 0, None)],
)
def test_change(before: float, after: float, text: str | None) -> None:
    assert units.change(before, after) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(9.996, "10.0"), (9.81, "9.81"), (0.0098, "0.00980"), (123456, "123,456"), (1e-7, "1.00e-07"), (0, "0")],
)
def test_significant(value: float, text: str) -> None:
    assert units.significant(value) == text


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(1, 12))
def test_ticks_enclose_the_range_in_equal_steps(a: float, b: float, most: float) -> None:
    low, high = min(a, b), max(a, b)
    if 0 < high - low < 1e-6 * max(high, 1.0):
        high = low
    ticks = nice_ticks(low, high, most)
    steps = [right - left for left, right in pairwise(ticks)]
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    assert len(ticks) >= 2
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)
