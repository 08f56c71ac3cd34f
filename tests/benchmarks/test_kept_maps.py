"""Where the kept ReLUs of a subject sit: the maps in the results, against counting element by element."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.errors import ResultsError
from benchmarks.results_file import parse_results
from benchmarks.schema import ReluLayer, Results
from benchmarks.subjects import SubjectFile, Subjects
from pi_runtime.graph import Graph, Node


def make_node(name: str, shape: tuple[int, ...], kept: list[int]) -> Node:
    return Node(name=name, op="relu", inputs=("x",), output="y", shape=shape, kept=np.array(kept, dtype=np.int64))


def layers_of(*graphs: tuple[Node, ...]) -> tuple[ReluLayer, ...]:
    """The ReLU layers of subjects ``0``, ``1``, ... of one model."""
    images = np.zeros((1, 3, 4, 4), np.float32)
    files = [SubjectFile(name=str(i), path=Path("none.onnx"), images=images, model="net") for i in range(len(graphs))]
    made = {str(i): Graph(input="x", input_shape=(3, 4, 4), output="y", nodes=nodes) for i, nodes in enumerate(graphs)}
    return Subjects(files=tuple(files), graphs=made).relu_layers()


def test_a_map_counts_the_kept_elements_over_the_channels() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((5, 3, 4)) < 0.3
    (layer,) = layers_of((make_node("relu", mask.shape, np.flatnonzero(mask).tolist()),))
    assert layer.shape == mask.shape
    assert layer.kept_map == tuple(mask.sum(axis=0).ravel().tolist())


def test_a_flattened_activation_has_the_map_of_the_wire_before(tmp_path: Path) -> None:
    mask = np.random.default_rng(1).random((4, 3, 5)) < 0.4
    wire = Node(name="flat", op="reshape", inputs=("x",), output="f", shape=(mask.size,))
    relu = Node(name="relu", op="relu", inputs=("f",), output="y", shape=(mask.size,), kept=np.flatnonzero(mask))
    graph = Graph(input="x", input_shape=mask.shape, output="y", nodes=(wire, relu))
    images = np.zeros((1, *mask.shape), np.float32)
    file = SubjectFile(name="cut", path=tmp_path / "none.onnx", images=images, model="net")
    (layer,) = Subjects(files=(file,), graphs={"cut": graph}).relu_layers()
    assert layer.shape == mask.shape
    assert layer.kept_map == tuple(mask.sum(axis=0).ravel().tolist())


def test_layers_that_kept_all_or_none_or_have_no_locations_have_no_map() -> None:
    full = (make_node("a", (2, 2, 2), list(range(8))), make_node("b", (2, 2, 2), [0, 5]), make_node("c", (6,), [1]))
    cut = (make_node("a", (2, 2, 2), [3, 7]),)
    layers = layers_of(full, cut)
    assert [layer.kept_map for layer in layers] == [None, (1, 1, 0, 0), None, (0, 0, 0, 2), None, None]
    assert [layer.relu_count for layer in layers] == [8, 2, 1, 2, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [4, 3, 3], "kept_map": None}, "has not its 4096 elements"),
        ({"shape": None, "kept_map": [1]}, "a count for each location"),
        ({"shape": [64, 8, 8], "kept_map": [1100]}, "a count for each location"),
        ({"shape": [64, 8, 8], "kept_map": [1] * 64}, "must add up to relu_count"),
        ({"shape": [64, 8, 8], "kept_map": [1100, *[0] * 63]}, "must add up to relu_count"),
    ],
)
def test_a_map_that_does_not_fit_its_layer_is_refused(
    results: Results, change: dict[str, object], message: str
) -> None:
    document = json.loads(results.to_json())
    entry = next(e for e in document["relu_layers"] if e["subject"] == "linearized" and e["layer"] == "relu")
    entry |= change
    with pytest.raises(ResultsError, match=message):
        parse_results(json.dumps(document), origin="results.json")


def test_a_file_without_maps_is_still_read(results: Results) -> None:
    document = json.loads(results.to_json())
    for entry in document["relu_layers"]:
        del entry["shape"], entry["kept_map"]
    assert parse_results(json.dumps(document), origin="results.json") == results
