"""Colours of the report by name, for a light and a dark page; images beside the report take the light ones."""

from __future__ import annotations

from collections.abc import Sequence

LIGHT: dict[str, str] = {
    "page": "#f7f7f5",
    "card": "#ffffff",
    "ink": "#1a1d21",
    "soft": "#5c6570",
    "line": "#e2e3e0",
    "track": "#eeeeeb",
    "accent": "#0f6bba",
    "full": "#a9b1ba",
    "good": "#1a7f4b",
    "bad": "#b42318",
    "bad-page": "#fdf0ee",
    "client": "#2a8c82",
    "server": "#b8527a",
    "dealer": "#7d63b8",
    "kind0": "#0f6bba",
    "kind1": "#d98c2b",
    "kind2": "#7d63b8",
    "kind3": "#9aa3ad",
    "series0": "#0f6bba",
    "series1": "#c4690f",
    "series2": "#2a8c82",
    "series3": "#7d63b8",
    "series4": "#b3386b",
    "series5": "#6b7480",
}

DARK: dict[str, str] = {
    "page": "#121417",
    "card": "#1a1d21",
    "ink": "#e8eaed",
    "soft": "#9aa4af",
    "line": "#2c3137",
    "track": "#262a30",
    "accent": "#5aa9ee",
    "full": "#66707b",
    "good": "#56c28a",
    "bad": "#ff8a7d",
    "bad-page": "#341a18",
    "client": "#45b3a7",
    "server": "#e07fa6",
    "dealer": "#a48be0",
    "kind0": "#5aa9ee",
    "kind1": "#e0a24b",
    "kind2": "#a48be0",
    "kind3": "#737d88",
    "series0": "#5aa9ee",
    "series1": "#eb9a4e",
    "series2": "#45b3a7",
    "series3": "#a48be0",
    "series4": "#ef7fae",
    "series5": "#939da8",
}

PRINT: dict[str, str] = LIGHT | {
    "page": "#ffffff",
    "ink": "#000000",
    "soft": "#444444",
    "line": "#cccccc",
}

_OWN = {"preset": "series0", "crypten": "series1", "plaintext": "series5"}
_OTHERS = ("series2", "series3", "series4")


def backend_colours(backends: Sequence[str]) -> dict[str, str]:
    """A colour for each backend, the same in every figure; from the fourth unknown one on they come round again."""
    colours: dict[str, str] = {}
    unknown = 0
    for name in backends:
        if name in _OWN:
            colours[name] = _OWN[name]
        else:
            colours[name] = _OTHERS[unknown % len(_OTHERS)]
            unknown += 1
    return colours
