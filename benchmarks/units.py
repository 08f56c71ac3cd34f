"""Numbers as a reader wants them: three significant digits, a unit, thousands separators."""

from __future__ import annotations

import re
from math import floor, log10

THIN = "\u202f"  # narrow no-break space: keeps a number and its unit on one line


def count(value: int) -> str:
    """``30720`` as ``30,720``."""
    return f"{value:,}"


def seconds(value: float) -> str:
    """Seconds with the prefix that gives a number from 1 to 1,000 (s, ms or µs)."""
    if value == 0:
        return f"0{THIN}s"
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= scale:
            return f"{significant(value / scale)}{THIN}{unit}"
    return f"{significant(value * 1e6)}{THIN}µs"


def seconds_range(middle: float, low: float, high: float) -> str:
    """``49.6 ms (48.9-51.2)``: all three in the unit that suits the first."""
    scale, unit = next(((scale, unit) for scale, unit in ((1.0, "s"), (1e-3, "ms")) if middle >= scale), (1e-6, "µs"))
    ends = "-".join(significant(value / scale) for value in (low, high))
    return f"{significant(middle / scale)}{THIN}{unit} ({ends})"


def bytes_(value: int) -> str:
    """Bytes with a decimal prefix (kB = 1,000 B)."""
    for scale, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if value >= scale:
            return f"{significant(value / scale)}{THIN}{unit}"
    return f"{value}{THIN}B"


def percent(fraction: float, digits: int = 1) -> str:
    """``0.985`` as ``98.5 %``."""
    return f"{100 * fraction:.{digits}f}{THIN}%"


def signed_percent(fraction: float) -> str:
    """``0.033`` as ``+3.3 %``; below zero with a minus sign."""
    return f"{'−' if fraction < 0 else '+'}{percent(abs(fraction))}"


def change(before: float, after: float) -> str | None:
    """What became of ``before``: ``4.9× less``, ``1.2× more`` or ``about the same`` (within 5 %); None without one."""
    if before <= 0 or after <= 0:
        return None
    if abs(after / before - 1) < 0.05:
        return "about the same"
    return f"{significant(before / after, 2)}× less" if after < before else f"{significant(after / before, 2)}× more"


def significant(value: float, digits: int = 3) -> str:
    """``value`` with that many significant digits; whole above them, with an exponent below 0.0001."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # before its size is looked at: 9.996 has one digit, 10.0 has two
    exponent = floor(log10(abs(rounded)))
    if exponent < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - exponent, 0)}f}"


def plain(text: str) -> str:
    """``1.00 s`` as ``1 s``: the zeros that a tick of an axis does without."""
    return re.sub(r"(?<=\d)(?:\.0+|(\.\d*?[1-9])0+)(?!\d)", r"\1", text)


def amount(value: float, unit: str) -> str:
    """A cost that may be below zero, as the intercept of a fit is; ``unit`` is ``s`` or ``bytes``."""
    text = seconds(abs(value)) if unit == "s" else bytes_(round(abs(value)))
    return f"−{text}" if value < 0 else text
