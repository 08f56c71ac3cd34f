"""`torchrun ... -m pi_runtime linearize` on two ranks over gloo; the oracle is one process of the same command."""

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
from linearize.config import load_config
from linearize.data import load_dataset
from linearize.errors import ConfigError
from linearize.files import load_tensors
from linearize.progress import Reporter
from linearize.ranks import Ranks
from linearize.run import open_session
from linearize.run_dir import open_run
from linearize.source import ConfiguredNetwork
from pi_runtime.cli.main import main

FLAGS = {
    "budget": 500,
    "network.width": 4,
    "threads": 1,
    "device": "cpu",
    "data.limit": 100,
    "baseline.epochs": 1,
    "baseline.batch-size": 25,
    "snl.reference-budget": 900,
    "snl.max-epochs": 2,
    "snl.batch-size": 25,
    "snl.finetune.batch-size": 25,
    "bcd.drc": 50,
    "bcd.rt": 3,
    "bcd.adt": 1.5,
    "bcd.eval-batch-size": 25,
    "bcd.finetune.batch-size": 25,
    "finetune.epochs": 1,
    "finetune.batch-size": 25,
}
# Of the log, what may differ: times, and images scored for candidates that one rank does not come to.
MAY_DIFFER = {"tries", "search_images", "search_s", "finetune_s"}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(root: Path, *, ranks: int) -> list[str]:
    flags = [text for key, value in FLAGS.items() for text in (f"--{key}", str(value))]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return [sys.executable, *launcher, "-m", "pi_runtime", "linearize", "--run-dir", str(root), *flags]


def start(root: Path, *, ranks: int) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(root, ranks=ranks), env=ENVIRONMENT, **pipes)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


def log(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "bcd.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("alone") / "run"
    finish(start(root, ranks=1))
    return root


def assert_same_run(root: Path, expected: Path) -> None:
    for mine, its in zip(log(root), log(expected), strict=True):
        assert {key: mine[key] for key in mine.keys() - MAY_DIFFER} == {
            key: its[key] for key in its.keys() - MAY_DIFFER
        }
        assert [entry["kind"] for entry in mine["tries"]] == [entry["kind"] for entry in its["tries"]]
    for name in ("baseline", "snl", "bcd", "linearized"):
        got, want = (load_tensors(run / f"{name}.safetensors")[0] for run in (root, expected))
        assert all(torch.equal(got[key], want[key]) for key in want), name
    assert not list((root / "state").iterdir()), "finished stages leave no state"


def test_two_ranks_end_like_one_process_and_one_of_them_answers(alone: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    answer = json.loads(finish(start(root, ranks=2)))
    assert answer["relu_count"] == 500
    assert_same_run(root, alone)
    steps = log(root)
    assert any(record["accepted"] for record in steps)
    assert any(record["finetuned"] for record in steps)
    scored = sum(record["search_images"] for record in steps)
    cost = read_metadata(root / "bcd.safetensors")["cost"]["search"]["forward_images"]
    measured = sum(record["reference_images"] for record in steps)
    assert cost == scored + measured, "images of all ranks are counted, once"


def is_alive(process: int) -> bool:
    """Whether a process runs; one that ended may be left as a zombie by whoever inherited it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(process: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return [int(number) for number in listed.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "ranks_after"), [("first rank", 2), ("torchrun", 1)])
def test_a_killed_job_goes_on_and_ends_like_an_undisturbed_one(
    victim: str, ranks_after: int, alone: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    job = start(root, ranks=2)
    while not (root / "bcd.jsonl").exists() or not (root / "bcd.jsonl").stat().st_size:
        assert job.poll() is None, job.communicate()
        time.sleep(0.005)
    # torchrun starts its processes in the order of their ranks.
    ranks = sorted(children_of(job.pid))
    assert len(ranks) == 2
    os.kill({"torchrun": job.pid, "first rank": ranks[0]}[victim], signal.SIGKILL)
    job.communicate(timeout=60)
    assert job.returncode != 0
    deadline = time.monotonic() + 30
    while any(is_alive(number) for number in ranks):
        assert time.monotonic() < deadline, "no rank outlives the job"
        time.sleep(0.05)
    assert not (root / "bcd.safetensors").exists(), "the job was killed in its search"
    finish(start(root, ranks=ranks_after))
    assert_same_run(root, alone)


@pytest.mark.slow
def test_what_the_first_rank_cannot_do_ends_all_with_a_line(tmp_path: Path) -> None:
    with open_run(tmp_path, load_config(None, {"relu_budget": 7})):
        _, err = start(tmp_path, ranks=2).communicate(timeout=100)
    assert "error: run directory" in err
    assert "error: the first rank of this torchrun job stopped: ConfigError: run directory" in err


def test_a_method_that_is_not_spread_over_ranks_is_refused(tmp_path: Path) -> None:
    config = load_config(None, {"method": "snl"})
    data = load_dataset(config.data, Reporter(quiet=True))
    with (
        pytest.raises(ConfigError, match="the search of method bcd alone, got method snl; start it without torchrun"),
        open_session(
            config, tmp_path / "run", Reporter(quiet=True), data, ConfiguredNetwork(config, data), ranks=Ranks(0, 2)
        ),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_a_verb_that_is_not_spread_over_ranks_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["pi-pipeline", "train"])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "torchrun can start `linearize --method bcd` alone" in capsys.readouterr().err
