"""The verb ``simulate`` in process: its answer against the document that it wrote, and its refusals."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from linearize.config import RunConfig, dump_config
from pi_runtime.cli import main as cli
from pi_runtime.export import export_onnx
from pi_runtime.preset.precision_table import read_table

DIGITS = {"class_names": [str(digit) for digit in range(10)], "mean": [0.3], "std": [0.4], "dataset": "digits"}


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
def run_dir(make_net, tmp_path):
    """As a run on the digits leaves it: the config and a network, here with random weights."""
    export_onnx(make_net(0.4, classes=10), (1, 8, 8), tmp_path / "run" / "model.onnx", metadata=DIGITS)
    (tmp_path / "run" / "config.yaml").write_text(dump_config(RunConfig()))
    return tmp_path / "run"


def test_a_run_gets_a_table_in_three_forms_and_goes_on_where_it_was(call, run_dir):
    code, out, err = call("simulate", run_dir, "--frac-bits=10", "--images=40")
    assert code == 0, err
    table = read_table(run_dir / "precision.json")
    answer = json.loads(out.splitlines()[-1])
    assert answer["rows"] == [row.model_dump(mode="json") for row in table.rows]
    assert (table.images, [row.frac_bits for row in table.rows]) == (40, [10])
    assert {"precision.csv", "precision.png"} < {path.name for path in run_dir.iterdir()}
    assert "10 fraction bits: accuracy" in err
    code, out, err = call("simulate", run_dir / "model.onnx", "--frac-bits=8,10", "--images=40")
    assert code == 0, err
    assert [row.frac_bits for row in read_table(run_dir / "precision.json").rows] == [8, 10]
    assert "10 fraction bits: accuracy" not in err


def test_without_scales_the_plan_of_the_graph_is_measured(call, run_dir):
    _, out, _ = call("simulate", run_dir, "--images=8", "--output", run_dir / "other.json")
    (row,) = json.loads(out.splitlines()[-1])["rows"]
    assert (row["plan"], row["frac_bits"], row["ring_bits_max"]) == ("carried", 12, 24)
    assert (run_dir / "other.png").exists()


def test_images_may_come_from_a_directory(call, make_net, tmp_path, monkeypatch):
    monkeypatch.setenv("PI_PIPELINE_CACHE", str(tmp_path / "cache"))
    names = ["cat", "dog"]
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in names:
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for number in range(3):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{number}.png")
    model = tmp_path / "net.onnx"
    export_onnx(make_net(0.4, channels=3, classes=2), (3, 8, 8), model, metadata={"class_names": names})
    code, _, err = call("simulate", model, "--frac-bits=12", "--data", tmp_path / "data")
    assert code == 0, err
    assert read_table(tmp_path / "net.precision.json").images == 6
    export_onnx(make_net(0.4, channels=3, classes=2), (3, 8, 8), model, metadata={"class_names": ["dog", "cat"]})
    code, _, err = call("simulate", model, "--data", tmp_path / "data")
    assert (code, err.splitlines()[-1]) == (
        1,
        "error: the data has the classes cat, dog, the network dog, cat; give the data that it was trained on",
    )


def test_a_model_outside_a_run_needs_data(call, make_net, tmp_path):
    export_onnx(make_net(0.4), (1, 8, 8), tmp_path / "lone.onnx")
    code, out, err = call("simulate", tmp_path / "lone.onnx")
    assert (code, out) == (1, "")
    assert "is in no run directory" in err
    assert "give --data DIR" in err


@pytest.mark.parametrize(
    ("bits", "said"),
    [("16-8", "ascending order"), ("0", "from 1 to 22"), ("8-23", "from 1 to 22"), ("many", "must be numbers or")],
)
def test_scales_that_are_none_are_refused(call, tmp_path, bits, said):
    code, out, err = call("simulate", tmp_path, f"--frac-bits={bits}")
    assert (code, out) == (1, "")
    assert said in err
