"""The verb `bench` in process, on plaintext: what is measured, how it is labelled, and that it goes on."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from benchmarks.sole_writer import sole_writer
from pi_runtime.cli import main as cli
from pi_runtime.export import export_onnx
from pi_runtime.plaintext_backend import PlaintextBackend

TOTAL = 6 * 8 * 8 + 2 * 8 * 4 * 4
QUICK = ["--backends=plaintext", "--runs=2", "--images=3"]


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """``call(*arguments)`` -> (exit code, last line of stdout as JSON or None, stderr), in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object):
        monkeypatch.setattr(sys, "argv", ["pi-pipeline", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out = capsys.readouterr()
        lines = out.out.splitlines()
        return end.value.code, json.loads(lines[-1]) if lines else None, out.err

    return run


@pytest.fixture
def model(make_net, tmp_path):
    export_onnx(make_net(1.0), (1, 8, 8), tmp_path / "small.onnx", metadata={"name": "small"})
    return tmp_path / "small.onnx"


def subjects_of(path):
    return {s["name"]: s for s in json.loads((path / "results.json").read_text())["subjects"]}


def test_a_bare_file_is_measured_on_noise_at_every_budget(call, model, tmp_path):
    code, answer, err = call("bench", model, "--budgets=40,200,full", *QUICK, "--output", tmp_path / "out")
    assert code == 0, err
    subjects = subjects_of(tmp_path / "out")
    assert {name: s["relu_count"] for name, s in subjects.items()} == {"40": 40, "200": 200, "full": TOTAL}
    assert {name: s["mask"] for name, s in subjects.items()} == {"40": "random", "200": "random", "full": "all"}
    assert {(s["model"], s["weights"], s["images"], s["relu_total"]) for s in subjects.values()} == {
        ("small", "given", "noise", TOTAL)
    }
    assert {s["test_accuracy"] for s in subjects.values()} == {None}
    figures = answer["backends"]["plaintext"]
    assert set(figures) == {"40", "200", "full"}
    assert all(entry["agreement_with_plaintext"] == 1 for entry in figures.values())
    assert [(line["unit"], line["points"]) for line in answer["lines"]] == [("s", 3)]
    assert "random" in err


def test_a_finished_bench_is_not_measured_again_and_another_seed_is(call, model, tmp_path, monkeypatch):
    arguments = ["bench", model, "--budgets=40", *QUICK, "--output", tmp_path / "out"]
    first = call(*arguments)[1]
    loaded = []
    prepare = PlaintextBackend.prepare
    monkeypatch.setattr(PlaintextBackend, "prepare", lambda self, path: (loaded.append(path), prepare(self, path))[1])
    assert call(*arguments)[1] == first
    assert loaded == []
    assert call(*arguments, "--seed=1")[0] == 0
    assert len(loaded) == 2, "once a sweep"


def test_what_another_process_measures_is_left_alone(call, model, tmp_path):
    arguments = ["bench", model, *QUICK, "--output", tmp_path / "out"]
    assert call(*arguments, "--budgets=40")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert len(before) >= 3, "a network, the results, the lock"
    with sole_writer(tmp_path / "out" / "results.json"):
        code, answer, err = call(*arguments, "--budgets=40,200", "--seed=1")
    assert (code, answer) == (1, None)
    assert "another process is measuring into" in err
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_run_directory_that_is_not_there_is_not_made(call, tmp_path):
    code, _, err = call("bench", "--run-dir", "nowhere", "--budgets=40", *QUICK)
    assert (code, "nowhere is no run directory" in err) == (1, True)
    assert not (tmp_path / "nowhere").exists()


def test_a_built_in_network_says_that_its_weights_are_random(call, tmp_path):
    shape = ["--width=1", "--image-size=8", "--classes=3"]
    code, _, err = call("bench", "resnet18", *shape, "--budgets=50,full", *QUICK)
    assert code == 0, err
    subjects = subjects_of(tmp_path / "runs" / "bench-resnet18")
    assert {(s["model"], s["weights"], s["images"]) for s in subjects.values()} == {
        ("resnet18 of width 1", "random", "noise")
    }
    # 491,520 at 32x32 and width 64 is 480 at 8x8 and width 1.
    assert {name: (s["relu_count"], s["relu_total"]) for name, s in subjects.items()} == {
        "50": (50, 480),
        "full": (480, 480),
    }


def test_images_of_a_folder_are_shared_out_between_calibration_and_measurement(call, model, tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
    code, answer, err = call("bench", model, *QUICK, "--data", tmp_path / "images", "--output", tmp_path / "out")
    assert code == 0, err
    assert [s["images"] for s in answer["subjects"]] == ["folder"]
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [entry["images"] for entry in document["secure"]] == [3], "half of six"


def test_several_models_have_names_of_their_own(call, model, make_net, tmp_path):
    export_onnx(make_net(1.0, seed=1), (1, 8, 8), tmp_path / "other.onnx", metadata={"name": "small"})
    code, answer, err = call("bench", model, "other.onnx", "--budgets=40,full", *QUICK, "--output", tmp_path / "out")
    assert code == 0, err
    names = ["small/40", "small/full", "other/40", "other/full"]
    assert [subject["name"] for subject in answer["subjects"]] == names
    assert [subject["model"] for subject in answer["subjects"]] == ["small", "small", "other", "other"]
    assert call("report", tmp_path / "out")[1] == {"report": str(tmp_path / "out" / "report.html")}


def test_plaintext_has_no_network_and_is_measured_on_loopback(call, model, tmp_path):
    arguments = ["bench", model, "--networks=wan,bandwidth_mbps=50,rtt_ms=20", *QUICK, "--output", tmp_path / "out"]
    code, answer, err = call(*arguments)
    assert code == 0, err
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {(row["network"], row["kind"]) for row in document["rows"]} == {("loopback", "measured")}
    assert (answer["links"], document["links"]) == ([], [])
    assert "--networks=wan,bandwidth_mbps=50,rtt_ms=20" in document["command"]


def test_threads_of_a_party_reach_onnxruntime(call, model, tmp_path, monkeypatch):
    seen = []
    session = onnxruntime.InferenceSession

    def watched(source, options, **rest):
        seen.append(options.intra_op_num_threads)
        return session(source, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    assert call("bench", model, *QUICK, "--party-threads=2", "--output", tmp_path / "out")[0] == 0
    assert set(seen) == {2}
    assert json.loads((tmp_path / "out" / "results.json").read_text())["environment"]["threads"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a MODEL, or --run-dir"),
        (["{model}", "--run-dir", "x"], "give either a MODEL or --run-dir"),
        (["--run-dir", "x", "--output", "y"], "--output goes with a MODEL or --budgets"),
        (["--run-dir", "x", "--across-networks", "preset"], "--across-networks goes with a MODEL or --budgets"),
        (["vgg"], "there is no model vgg; give an ONNX file, the directory of a run, or one of resnet18, wrn22"),
        (["{model}", "--budgets", "6k"], "a budget must be a count of ReLUs, full or trained, got '6k'"),
        (["{model}", "--budgets", "99999"], f"a ReLU budget must be from 0 to {TOTAL}, all ReLUs of"),
        (["{model}", "--budgets", "trained"], "comes without a trained mask"),
        (["{model}", "--data", "nowhere"], "there is no image nowhere"),
        (["{model}", "{model}"], "two models are called small"),
        (["resnet18", "--width", "0"], "--width must be at least 1, got 0"),
        (["."], "full.onnx; make it with `pi-pipeline export"),
        (["{model}", "--backends", "abacus"], "abacus"),
        (["{model}", "--networks", "lan,dialup"], "a network profile is one of loopback, lan, wan, mobile or"),
    ],
)
def test_bad_calls_are_one_line(call, model, arguments, message):
    code, answer, err = call("bench", *(argument.format(model=model) for argument in arguments))
    assert (code, answer) == (1, None)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_a_baseline_that_several_models_share_is_measured_once(call, model, make_net, tmp_path):
    export_onnx(make_net(1.0), (1, 8, 8), tmp_path / "again.onnx", metadata={"name": "another of its kind"})
    export_onnx(make_net(1.0, seed=1), (1, 8, 8), tmp_path / "other.onnx", metadata={"name": "small"})
    models = (model, "again.onnx", "other.onnx")
    code, answer, err = call("bench", *models, "--budgets=full,40", *QUICK, "--output", tmp_path / "out")
    assert code == 0, err
    names = ["small/full", "small/40", "again/40", "other/full", "other/40"]
    assert [subject["name"] for subject in answer["subjects"]] == names
