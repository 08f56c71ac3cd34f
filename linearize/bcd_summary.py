"""What a block coordinate descent cost, in a line, from its log."""

from collections.abc import Mapping, Sequence
from typing import Any


def summarise(steps: Sequence[Mapping[str, Any]], scoring: str, train_images: int) -> str:
    """A line about the steps of bcd.jsonl: accepted ones, what each of them cost, and what early decisions saved.

    scoring: full, exact or racing. train_images: images that a candidate would be scored on if all were.
    Images scored are those of all ranks; what was saved is counted over the tries up to the accepted one.
    """
    accepted = sum(bool(step["accepted"]) for step in steps)
    scored = sum(step["search_images"] for step in steps)
    parts = [f"bcd: {len(steps):,} steps, {accepted:,} accepted"]
    if accepted:
        searched_s, finetuned_s = (sum(step[key] for step in steps) for key in ("search_s", "finetune_s"))
        parts.append(
            f"for each accepted one {scored / accepted:,.0f} images scored, {searched_s / accepted:.2f} s of search "
            f"and {finetuned_s / accepted:.2f} s of finetuning"
        )
    tries = [entry for step in steps for entry in step["tries"]]
    whole, looked_at = train_images * len(tries), sum(entry["images"] for entry in tries)
    if scoring != "full" and whole:
        accuracies = [step["reference_accuracy"] for step in steps]
        saved = 100 * (1 - looked_at / whole)
        parts.append(
            f"{scoring} scoring looked at {looked_at:,} of {whole:,} images ({saved:.1f} % saved) "
            f"at a training accuracy of {min(accuracies):.1f} to {max(accuracies):.1f} %"
        )
    return "; ".join(parts)
