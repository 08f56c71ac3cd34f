import json
from pathlib import Path

import pytest

from linearize.errors import DataError
from linearize.figures import draw_acceptance, read_steps, success_rate


def step(number: int, accepted: bool, p: float | None) -> dict:
    success = None if p is None else 1 - (1 - p) ** 4
    return {"step": number, "accepted": accepted, "acceptance": 0.5, "uniform_p": p, "predicted_success": success}


def test_success_rate_equals_shares_counted_by_hand() -> None:
    steps = [step(number, accepted, None) for number, accepted in enumerate([True, False, True, True])]
    assert success_rate(steps, window=2) == [1, 0.5, 0.5, 1]


def test_a_log_is_drawn_with_or_without_estimates(tmp_path: Path) -> None:
    log = tmp_path / "bcd.jsonl"
    steps = [
        step(0, True, None),
        step(1, False, 0.2),
        {k: v for k, v in step(2, True, 0.3).items() if k != "acceptance"},
    ]
    log.write_text("".join(json.dumps(record) + "\n" for record in steps))
    draw_acceptance(log, tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert text.count("<svg") == 1
    assert read_steps(log) == steps


@pytest.mark.parametrize("content", [None, "", '{"step": 0}\n{"st'])
def test_a_log_without_steps_is_named(content: str | None, tmp_path: Path) -> None:
    log = tmp_path / "bcd.jsonl"
    if content is not None:
        log.write_text(content)
    with pytest.raises(DataError, match=r"bcd\.jsonl: no (readable log|step is logged)"):
        draw_acceptance(log, tmp_path / "figure.svg")
