"""Block coordinate descent on two torchrun ranks over gloo; the oracle is one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from linearize.files import load_tensors
from linearize.ranks import Ranks, _pack, _unpack

SCRIPT = Path(__file__).with_name("rank_run.py")
FINETUNE = {"epochs": 1, "batch_size": 25, "lr": 0.01}
PAPER = {"drc": 130, "rt": 3, "eval_batch_size": 25, "finetune": FINETUNE}
BEYOND = {
    **PAPER,
    "scoring": "racing",
    "racing_share": 0.5,
    "proposal": "mixed",
    "gradient_images": 30,
    "give_back": 10,
    "objective": "latency",
    "round_worth": 5.0,
    "finetune_policy": "always",
}
# Of the log, what may differ: times, and images scored for candidates that one rank does not come to.
MAY_DIFFER = {"tries", "search_images", "search_s", "finetune_s"}


def launch(root: Path, settings: dict, ranks: int) -> None:
    root.mkdir()
    starter = [sys.executable]
    if ranks > 1:
        starter += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*starter, str(SCRIPT), str(root), json.dumps(settings)], timeout=150, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def network(root: Path, rank: int) -> dict[str, torch.Tensor]:
    return load_tensors(root / f"rank{rank}.safetensors")[0]


def log(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "bcd.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("settings", [PAPER, BEYOND], ids=["paper", "beyond"])
def test_two_ranks_end_like_one_bit_for_bit(settings: dict, tmp_path: Path) -> None:
    launch(tmp_path / "one", settings, 1)
    launch(tmp_path / "two", settings, 2)
    alone = network(tmp_path / "one", 0)
    for rank in (0, 1):
        for name, tensor in network(tmp_path / "two", rank).items():
            assert torch.equal(tensor, alone[name]), name
    ours, theirs = log(tmp_path / "two"), log(tmp_path / "one")
    for mine, its in zip(ours, theirs, strict=True):
        assert {key: mine[key] for key in mine.keys() - MAY_DIFFER} == {
            key: its[key] for key in its.keys() - MAY_DIFFER
        }
        assert [entry["kind"] for entry in mine["tries"]] == [entry["kind"] for entry in its["tries"]]
    assert any(record["finetuned"] for record in ours)


def test_distributed_finetuning_leaves_every_rank_the_same_network(tmp_path: Path) -> None:
    launch(tmp_path / "two", {**PAPER, "finetune_policy": "always", "finetune_ranks": "ddp"}, 2)
    first, second = network(tmp_path / "two", 0), network(tmp_path / "two", 1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert sum(int(tensor.sum()) for name, tensor in first.items() if name.endswith("relu_mask")) == 500


def test_a_state_survives_packing() -> None:
    tensors = {"a": torch.tensor([True, False]), "b": torch.randn(2, 3)}
    unpacked = _unpack(_pack((tensors, {"step": 3, "x": None})))
    assert unpacked is not None
    assert unpacked[1] == {"step": 3, "x": None}
    assert all(torch.equal(unpacked[0][name], tensors[name]) for name in tensors)
    assert _unpack(_pack(None)) is None


def test_one_rank_exchanges_nothing() -> None:
    ranks, tensor = Ranks(), torch.tensor([1, 2])
    assert ranks.first
    assert ranks.gather((1, 2.5)) == [[1, 2.5]]
    assert ranks.broadcast(tensor) is tensor
    assert ranks.broadcast_bytes(b"x") == b"x"
