"""The line about a descent; the oracle is counting by hand."""

from typing import Any

from linearize.bcd_summary import summarise


def step(accepted: bool, images: list[int], elsewhere: int = 0) -> dict[str, Any]:
    return {
        "accepted": accepted,
        "tries": [{"images": count} for count in images],
        "search_images": sum(images) + elsewhere,
        "search_s": 1.0,
        "finetune_s": 0.5,
        "reference_accuracy": 90.0 + len(images),
    }


def test_images_and_seconds_are_those_counted_by_hand() -> None:
    # Seven tries; 250 images in them and 20 by another rank; two steps of three accepted.
    steps = [step(True, [60]), step(False, [60, 20, 10, 10]), step(True, [30, 60], elsewhere=20)]
    assert summarise(steps, "exact", 60) == (
        "bcd: 3 steps, 2 accepted; for each accepted one 135 images scored, 1.50 s of search and 0.75 s of finetuning; "
        "exact scoring looked at 250 of 420 images (40.5 % saved) at a training accuracy of 91.0 to 94.0 %"
    )


def test_nothing_is_saved_by_full_scoring_and_nothing_divided_by_no_accepted_step() -> None:
    assert summarise([step(False, [60, 60])], "full", 60) == "bcd: 1 steps, 0 accepted"
