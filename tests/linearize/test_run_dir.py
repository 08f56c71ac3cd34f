import subprocess
import sys
from pathlib import Path

import pytest

from linearize.config import load_config
from linearize.errors import BudgetError, ConfigError
from linearize.progress import Reporter
from linearize.run import run_linearization
from linearize.run_dir import open_run


def test_config_is_written_once_with_its_environment_and_reads_back(tmp_path: Path) -> None:
    config = load_config(None, {"relu_budget": 77, "bcd.drc": 3})
    with open_run(tmp_path / "a" / "b", config) as run:
        text = run.config.read_text()
        assert load_config(run.config) == config
    assert "# torch " in text
    assert "# python " in text
    with open_run(tmp_path / "a" / "b", config) as run:
        assert run.config.read_text() == text


def test_another_config_is_refused_by_the_differing_keys(tmp_path: Path) -> None:
    with open_run(tmp_path, load_config()):
        pass
    with (
        pytest.raises(
            ConfigError,
            match=r"another config \(relu_budget was 6000, now 500; bcd\.drc was 300, now 9\); name another",
        ),
        open_run(tmp_path, load_config(None, {"relu_budget": 500, "bcd.drc": 9})),
    ):
        pass


def test_two_runs_in_one_directory_are_refused(tmp_path: Path) -> None:
    with (
        open_run(tmp_path, load_config()),
        pytest.raises(ConfigError, match="another process works in it; wait for it or name another"),
        open_run(tmp_path, load_config()),
    ):
        pass
    with open_run(tmp_path, load_config()):
        pass


def test_the_lock_holds_against_another_process(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from linearize.config import load_config;"
        "from linearize.run_dir import open_run\n"
        "with open_run(Path(sys.argv[1]), load_config()): pass"
    )
    with open_run(tmp_path, load_config()):
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "another process works in it" in done.stderr


def test_unwritable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"run directory .*file/run: not writable \(Not a directory\)"),
        open_run(tmp_path / "file" / "run", load_config()),
    ):
        pass


def test_leftovers_of_killed_writers_are_removed_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    ours = [tmp_path / ".snl.safetensors.123.tmp", tmp_path / "state" / ".bcd.safetensors.9.tmp"]
    others = [tmp_path / ".model.onnx.123.tmp", tmp_path / "state" / "bcd.safetensors"]
    for path in ours + others:
        path.write_bytes(b"x")
    with open_run(tmp_path, load_config()):
        assert not any(path.exists() for path in ours)
        assert all(path.exists() for path in others)


def test_budget_above_the_total_is_refused_before_any_training(tmp_path: Path) -> None:
    config = load_config(None, {"relu_budget": 2000, "network.width": 4})
    message = r"relu_budget must be at most 1,920 \(all of resnet18 on 1x8x8 images\), got 2,000; lower it"
    with pytest.raises(BudgetError, match=message):
        run_linearization(config, tmp_path / "run", Reporter(quiet=True))
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_absent_cuda_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        ConfigError, match="device is cuda, but PyTorch finds no CUDA device; set device to auto or cpu"
    ):
        run_linearization(load_config(None, {"device": "cuda"}), tmp_path / "run", Reporter(quiet=True))
