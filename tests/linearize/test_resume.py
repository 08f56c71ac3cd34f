"""A run killed with SIGKILL in every stage ends like an undisturbed one, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from linearize.checkpoint import read_metadata
from linearize.files import load_tensors

SCRIPT = Path(__file__).with_name("tiny_run.py")
OVERRIDES = {
    "network.width": 4,
    "relu_budget": 900,
    "threads": 1,
    "device": "cpu",
    "data.limit": 100,
    "data.crop_padding": 1,
    "baseline.epochs": 2,
    "baseline.batch_size": 25,
    "snl.reference_budget": 1200,
    "snl.max_epochs": 4,
    "snl.l1_weight": 0.01,
    "snl.mask_lr": 0.1,
    "snl.batch_size": 25,
    "snl.finetune.epochs": 2,
    "snl.finetune.batch_size": 25,
    "bcd.drc": 130,
    "bcd.rt": 2,
    "bcd.finetune_policy": "always",
    "bcd.finetune.epochs": 2,
    "bcd.finetune.batch_size": 25,
    "finetune.epochs": 2,
    "finetune.batch_size": 25,
}


def command(root: Path, *more: str) -> list[str]:
    return [sys.executable, str(SCRIPT), str(root), json.dumps(OVERRIDES), *more]


def log_of(root: Path) -> list[dict]:
    """bcd.jsonl without its times; fails on a torn line."""
    records = [json.loads(line) for line in (root / "bcd.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if not key.endswith("_s")} for record in records]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command(root), check=True, timeout=120)
    return root


def without_seconds(document: dict) -> dict:
    return {
        key: without_seconds(value) if isinstance(value, dict) else value
        for key, value in document.items()
        if key != "seconds"
    }


def assert_same_result(root: Path, expected: Path) -> None:
    for name in ("baseline", "snl", "bcd", "linearized"):
        got, _ = load_tensors(root / f"{name}.safetensors")
        want, _ = load_tensors(expected / f"{name}.safetensors")
        assert list(got) == list(want)
        for key in want:
            assert torch.equal(got[key], want[key]), f"{name}: {key}"
    assert log_of(root) == log_of(expected)
    ours, theirs = (read_metadata(run / "linearized.safetensors") for run in (root, expected))
    assert without_seconds(ours) == without_seconds(theirs), "counts of images included"
    assert not list((root / "state").iterdir()), "finished stages leave no state"
    assert not list(root.glob(".*.tmp")), "killed writers leave nothing"


def test_the_tiny_run_takes_every_path(undisturbed: Path) -> None:
    log = log_of(undisturbed)
    assert all(record["finetuned"] for record in log)
    assert log[-1]["relu_count"] == 900
    assert log[-1]["block"] < 130, "the last block was shortened"


def test_killed_in_the_middle_of_every_write_of_every_stage(undisturbed: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    done = subprocess.run(command(root, "3"), check=True, timeout=200, stdout=subprocess.PIPE)
    killed_at = set(json.loads(done.stdout))
    stages = {"baseline", "snl_masks", "snl_finetune", "bcd", "bcd_finetune", "finetune"}
    assert {f"{stage}.safetensors" for stage in stages} <= killed_at
    assert_same_result(root, undisturbed)


def test_killed_from_outside_at_any_time(undisturbed: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    kills = 0
    for stage in ("baseline", "snl", "bcd"):
        process = subprocess.Popen(command(root))
        before = stage_files(root)
        while process.poll() is None and not (stage_files(root) - before) & {f"{stage}.safetensors", "bcd.jsonl"}:
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait(timeout=60)
    subprocess.run(command(root), check=True, timeout=120)
    assert kills >= 2
    assert_same_result(root, undisturbed)


def stage_files(root: Path) -> set[str]:
    return {path.name for path in root.glob("*") if path.is_file()}


def test_a_finished_run_is_left_as_it_is(undisturbed: Path) -> None:
    def facts() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in undisturbed.glob("*.*") if path.is_file()}

    before = facts()
    subprocess.run(command(undisturbed), check=True, timeout=120)
    assert facts() == before
