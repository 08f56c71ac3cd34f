"""Lists in flags: known answers, and what is refused by the flag's name."""

from __future__ import annotations

import click
import pytest

from pi_runtime.cli.lists import split_names, whole_numbers


def test_spaces_and_empty_parts_do_not_count():
    assert split_names(" bcd, snl,,") == ["bcd", "snl"]
    assert split_names(" , ") == []
    assert whole_numbers("--budgets", "6000, 0,15000,") == (6000, 0, 15000)


@pytest.mark.parametrize("text", ["", ",", "full", "6000,-1", "1.5", "²"])
def test_what_is_no_whole_number_is_refused(text):
    with pytest.raises(click.UsageError, match=r"--seeds must be seeds separated by commas, got '"):
        whole_numbers("--seeds", text, kind="seeds")
