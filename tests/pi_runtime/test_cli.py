"""The command line in process: one line and exit code 1 for what a user can mend, JSON as the last line of stdout."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pi_runtime.cli import main as cli
from pi_runtime.export import export_onnx

TINY = [
    "--width=4", "--budget=700", "--data.limit=100", "--threads=1", "--device=cpu",
    "--baseline.epochs=1", "--baseline.batch-size=25", "--snl.max-epochs=2",
    "--snl.mask-lr=0.1", "--snl.batch-size=25", "--snl.finetune.epochs=1", "--snl.finetune.batch-size=25",
    "--bcd.drc=120", "--bcd.rt=2", "--bcd.finetune.epochs=1", "--bcd.finetune.batch-size=25",
    "--finetune.epochs=1", "--finetune.batch-size=25",
]  # fmt: skip


@pytest.fixture
def call(monkeypatch, capsys):
    """``call(*arguments)`` -> (exit code, stdout, stderr)."""

    def run(*arguments: object):
        monkeypatch.setattr(sys, "argv", ["pi-pipeline", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out = capsys.readouterr()
        return end.value.code, out.out, out.err

    return run


@pytest.fixture
def model(make_net, tmp_path):
    facts = {"class_names": ["none", "one", "two", "three"], "mean": [0.5], "std": [0.5]}
    export_onnx(make_net(0.4), (1, 8, 8), tmp_path / "model.onnx", metadata=facts)
    return tmp_path / "model.onnx"


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_help_of_every_verb_is_quick_to_load_and_explains(call):
    code, out, _ = call("--help")
    assert code == 0
    for verb in ("run", "train", "linearize", "export", "infer", "bench", "report"):
        assert verb in out
        assert call(verb, "--help")[0] == 0


def test_help_does_not_load_torch():
    script = "import sys, pi_runtime.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_every_setting_is_a_flag(call):
    from linearize.config import config_keys

    out = " ".join(call("run", "--help")[1].split())
    missing = [key for key in config_keys() if f"--{key.replace('_', '-')}" not in out]
    assert not missing


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "40000"], "relu_budget must be at most 1,920"),
        (["--budget", "0"], "--relu_budget: input should be greater than or equal to 1, got 0"),
        (["--budget=-5"], "greater than or equal to 1, got -5"),
        (["--budget", "many"], "valid integer, got 'many'"),
        (["--dataset", "mnist"], "'digits', 'cifar10', 'cifar100', 'tinyimagenet' or 'folder', got 'mnist'"),
        (["--bcd.drc", "1.5"], "bcd.drc"),
        (["--backends", "abacus"], "abacus"),
        (["--backends", ","], "--backends names no backend"),
        (["--runs", "0"], "--runs must be at least 1, got 0"),
        (["--networks", "moon"], "a network profile is one of loopback, lan, wan, mobile"),
        (["--bcd.dcr", "5"], "No such option '--bcd.dcr'"),
        (["--dataset", "folder", "--data-dir", "missing"], "missing"),
    ],
)
def test_bad_flags_are_one_line_and_leave_nothing(call, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call("run", *TINY, *arguments, "--run-dir", "run")
    assert (code, out) == (1, "")
    assert message.lower() in one_line(err).lower()
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bcd: {drcs: 5}", "config.yaml: bcd.drcs: unknown key; the closest valid key is bcd.drc"),
        ("bcd: {drc: soon}", "config.yaml: bcd.drc: input should be a valid integer, got 'soon'"),
        ("bcd: [", "broken YAML"),
    ],
)
def test_bad_configs_are_one_line(call, tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    code, _, err = call("train", "--config", tmp_path / "config.yaml", "--run-dir", tmp_path / "run")
    assert code == 1
    assert message.lower() in one_line(err).lower()


def test_a_run_directory_that_cannot_be_written(call, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = call("train", *TINY, "--run-dir", tmp_path / "file" / "run")
    assert code == 1
    assert "not writable" in one_line(err)


@pytest.mark.parametrize("spoil", ["empty", "corrupt"])
def test_bad_folders(call, tmp_path, spoil):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(4) if spoil == "corrupt" else ():
                Image.new("RGB", (8, 8)).save(tmp_path / f"images/{split}/{name}/{number}.png")
    if spoil == "corrupt":
        (tmp_path / "images/train/dog/2.png").write_bytes(b"no picture")
    code, _, err = call(
        "train", "--dataset=folder", f"--data-dir={tmp_path / 'images'}", f"--data.cache-dir={tmp_path / 'cache'}",
        "--run-dir", tmp_path / "run",
    )  # fmt: skip
    assert code == 1
    assert ("2.png" if spoil == "corrupt" else "no image") in one_line(err)


def test_a_truncated_checkpoint(call, tmp_path):
    (tmp_path / "c.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    code, _, err = call("export", "--checkpoint", tmp_path / "c.safetensors", "--output", tmp_path / "out" / "m.onnx")
    assert code == 1
    assert "c.safetensors" in one_line(err)
    assert not (tmp_path / "out").exists()


def test_infer_prints_labels_and_cost(call, model, picture):
    code, out, err = call("infer", "--model", model, picture, picture)
    assert code == 0
    answer = json.loads(out.splitlines()[-1])
    assert [entry["image"] for entry in answer["images"]] == [str(picture)] * 2
    scores = [label["score"] for label in answer["images"][0]["labels"]]
    assert scores == sorted(scores, reverse=True)
    assert {label["label"] for label in answer["images"][0]["labels"]} <= {"none", "one", "two", "three"}
    assert "online" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["infer", "--model", "none.onnx", "{picture}"], "there is no ONNX file none.onnx"),
        (["infer", "--model", "{truncated}", "{picture}"], "is not a whole ONNX model"),
        (["infer", "--model", "{model}", "none.png"], "there is no image none.png"),
        (["infer", "--model", "{model}", "--backend", "abacus", "{picture}"], "abacus"),
        (["infer", "--model", "{model}", "--top", "0", "{picture}"], "--top must be at least 1"),
        (["bench", "--run-dir", "nowhere"], "is no run directory"),
        (["report", "--run-dir", "nowhere"], "nowhere"),
        (["export"], "give either --run-dir or --checkpoint"),
        (["export", "--run-dir", "nowhere"], "nowhere"),
        (["fly"], "No such command 'fly'"),
    ],
)
def test_bad_calls_are_one_line(call, model, picture, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(model.read_bytes()[:2000])
    code, out, err = call(*(a.format(model=model, picture=picture, truncated=truncated) for a in arguments))
    assert (code, out) == (1, "")
    assert message in one_line(err)


def test_an_occupied_port(call, model, picture):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen(1)
        port = busy.getsockname()[1]
        code, _, err = call("infer", "--model", model, "--backend", "crypten", "--port", port, picture)
    assert code == 1
    assert str(port) in one_line(err)


def test_run_hands_every_option_of_a_measurement_to_bench(call, tmp_path, monkeypatch):
    seen = {}
    for step in ("linearize", "export_run", "report_run"):
        monkeypatch.setattr(f"pi_runtime.pipeline.{step}", lambda *_: {})
    monkeypatch.setattr("pi_runtime.pipeline.bench_run", lambda _, **options: seen.update(options) or {})
    flags = ["--networks", "loopback,wan", "--backends", "plaintext", "--images", "7", "--runs", "2"]
    flags += ["--simulated-images", "5", "--party-threads", "3"]
    code, _, err = call("run", *TINY, *flags, "--run-dir", tmp_path / "run")
    assert code == 0, err
    assert seen == {
        "backends": ["plaintext"],
        "images": 7,
        "runs": 2,
        "threads": 3,
        "networks": ["loopback", "wan"],
        "simulated_images": 5,
    }


def test_run_and_its_steps_end_to_end(call, tmp_path):
    run_dir = tmp_path / "run"
    bench = ["--backends=plaintext", "--images=20", "--runs=2"]
    code, out, err = call("run", *TINY, *bench, "--run-dir", run_dir)
    assert code == 0, err
    answer = json.loads(out.splitlines()[-1])
    assert len(out.splitlines()) == 1, "only the answer goes to stdout"
    assert answer["relu_count"] == 700
    assert Path(answer["report"]).exists()
    names = {path.name for path in run_dir.iterdir()}
    assert {"config.yaml", "full.onnx", "model.onnx", "model.public.json", "model.crypten.pt", "bcd.jsonl"} <= names

    results = json.loads((run_dir / "results.json").read_text())
    assert results["schema"] == 2
    assert [subject["relu_count"] for subject in results["subjects"]] == [1920, 700]
    assert {row["subject"] for row in results["rows"]} == {"full", "linearized"}

    before = (run_dir / "model.onnx").read_bytes()
    code, out, _ = call("run", *TINY, *bench, "--run-dir", run_dir)
    assert code == 0
    assert (run_dir / "model.onnx").read_bytes() == before, "a second call changes nothing"
    assert json.loads((run_dir / "results.json").read_text())["rows"] == results["rows"]

    for verb in (["export"], ["bench", *bench], ["report"]):
        assert call(*verb, "--run-dir", run_dir)[0] == 0
    sweep = ["--budgets=300,trained,full", "--output", tmp_path / "sweep"]
    code, out, err = call("bench", run_dir, *sweep, *bench)
    assert code == 0, err
    subjects = json.loads(out)["subjects"]
    assert [(s["name"], s["relu_count"], s["mask"], s["weights"], s["images"]) for s in subjects] == [
        ("300", 300, "random", "trained", "test"),
        ("linearized", 700, "trained", "trained", "test"),
        ("full", 1920, "all", "trained", "test"),
    ]
    assert [s["test_accuracy"] is None for s in subjects] == [True, False, False], "none for a random mask"
    code, _, err = call("run", *TINY, *bench, "--bcd.rt=3", "--run-dir", run_dir)
    assert code == 1
    assert "bcd.rt was 2, now 3" in one_line(err)


def test_an_export_killed_at_any_of_its_files_ends_like_an_undisturbed_one(call, tmp_path):
    run_dir = tmp_path / "run"
    assert call("linearize", *TINY, "--run-dir", run_dir)[0] == 0
    assert call("export", "--run-dir", run_dir)[0] == 0
    names = ("full.onnx", "model.onnx", "model.public.json", "model.crypten.pt")
    undisturbed = {name: (run_dir / name).read_bytes() for name in names[:3]}
    for victim in ("full.onnx", "model.public.json"):
        for name in names:
            (run_dir / name).unlink(missing_ok=True)
        # The process kills itself in the middle of writing `victim`, before the file is in its place.
        script = (
            "import os, signal, sys; from pathlib import Path\n"
            "from pi_runtime.cli import main as cli\n"
            "replace = Path.replace\n"
            f"def die(self, target): os.kill(os.getpid(), signal.SIGKILL) if Path(target).name == {victim!r} "
            "else replace(self, target)\n"
            "Path.replace = die\n"
            f"sys.argv = ['pi-pipeline', 'export', '--run-dir', {str(run_dir)!r}]\n"
            "cli.main()\n"
        )
        assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == -9
        assert not (run_dir / victim).exists(), "no half-written file under its name"
        assert call("export", "--run-dir", run_dir)[0] == 0
        assert {name: (run_dir / name).read_bytes() for name in undisturbed} == undisturbed
        assert (run_dir / "model.crypten.pt").exists()
        assert not [path for path in run_dir.iterdir() if path.name.startswith(".") and path.name != ".lock"]
