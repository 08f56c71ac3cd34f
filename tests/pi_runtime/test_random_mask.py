"""Random masks against numpy on the same network, and against the exporter's own form of the same mask."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from pi_runtime.errors import ExportError
from pi_runtime.export import build_onnx
from pi_runtime.graph import METADATA_KEY
from pi_runtime.onnx_graph import read_onnx
from pi_runtime.random_mask import with_random_mask

ELEMENTS = {"relu1": 6 * 8 * 8, "relu2": 8 * 4 * 4, "relu3": 8 * 4 * 4}
TOTAL = sum(ELEMENTS.values())


@pytest.fixture
def network(make_net):
    """The small residual network with all its ReLUs, and the same as ONNX."""
    net = make_net(1.0)
    return net, build_onnx(net, (1, 8, 8), metadata={"name": "small", "fixed_point": {"frac_bits": 9}})


def kept_of(proto):
    return {node.name: node.kept for node in read_onnx(proto, origin="masked").relu_layers}


def run(proto, images):
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"input": images})[0]


def set_masks(net, kept):
    """Gives the torch network the masks that the ONNX file is said to have."""
    for name, module in net.named_modules():
        if name in ELEMENTS:
            flat = torch.zeros(ELEMENTS[name])
            flat[torch.from_numpy(kept.get(name, np.empty(0, np.int64)))] = 1
            module.relu_mask.copy_(flat.reshape(module.relu_mask.shape))


@pytest.mark.parametrize("budget", [0, 1, 37, 300, TOTAL - 1, TOTAL])
def test_the_masked_file_computes_what_torch_does_under_the_same_mask(network, budget):
    net, proto = network
    masked = with_random_mask(proto, budget, seed=3)
    kept = kept_of(masked)
    assert sum(map(len, kept.values())) == budget
    set_masks(net, kept)
    images = np.random.default_rng(1).normal(size=(5, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run(masked, images), expected, atol=2e-5)


@pytest.mark.parametrize("budget", [0, 37, TOTAL])
def test_the_form_is_the_exporters_own(network, budget):
    net, proto = network
    masked = with_random_mask(proto, budget, seed=3)
    set_masks(net, kept_of(masked))
    exported = build_onnx(net, (1, 8, 8))
    assert [node.SerializeToString() for node in masked.graph.node] == [
        node.SerializeToString() for node in exported.graph.node
    ]
    assert {c.name: c.raw_data for c in masked.graph.initializer} == {
        c.name: c.raw_data for c in exported.graph.initializer
    }


def test_layers_keep_their_names(network):
    names = set(kept_of(network[1]))
    assert names == set(ELEMENTS)
    assert set(kept_of(with_random_mask(network[1], 300, seed=0))) <= names


def test_one_seed_gives_one_mask_and_nested_ones(network):
    first, again, other = (with_random_mask(network[1], 200, seed=seed) for seed in (5, 5, 6))
    assert first.SerializeToString() == again.SerializeToString()
    assert first.SerializeToString() != other.SerializeToString()
    larger = kept_of(with_random_mask(network[1], 350, seed=5))
    assert all(set(kept) <= set(larger[name]) for name, kept in kept_of(first).items())


def test_every_element_is_kept_equally_often(network):
    # Oracle: the binomial law. 400 masks of half the elements; six standard deviations of 0.025 around a half.
    counts = np.zeros(ELEMENTS["relu3"])
    for seed in range(400):
        np.add.at(counts, kept_of(with_random_mask(network[1], TOTAL // 2, seed=seed))["relu3"], 1)
    assert np.abs(counts / 400 - 0.5).max() < 0.15


def test_metadata_tells_and_old_numbers_are_gone(network):
    masked = with_random_mask(network[1], 37, seed=3)
    facts = json.loads({prop.key: prop.value for prop in masked.metadata_props}[METADATA_KEY])
    expected = {"relu_total": TOTAL, "relu_budget": 37, "relu_count": 37, "relu_mask": "random", "relu_mask_seed": 3}
    assert facts == expected | {"name": "small"}


def test_the_network_given_is_not_changed(network):
    before = network[1].SerializeToString()
    with_random_mask(network[1], 37, seed=3)
    assert network[1].SerializeToString() == before


@pytest.mark.parametrize("budget", [0, 2])
def test_a_relu_that_is_the_output(budget):
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["flat"], name="f"), helper.make_node("Relu", ["flat"], ["out"])],
        "last",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 2, 2])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 4])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    masked = with_random_mask(proto, budget, seed=1)
    images = np.array([[-1, 2, -3, -4]], np.float32).reshape(1, 1, 2, 2)
    expected = images.reshape(1, 4).copy()
    for kept in kept_of(masked).values():
        expected[:, kept] = np.maximum(expected[:, kept], 0)
    np.testing.assert_array_equal(run(masked, images), expected)


@pytest.mark.parametrize("budget", [-1, TOTAL + 1])
def test_a_budget_out_of_range_is_one_line(network, budget):
    with pytest.raises(ExportError, match=f"from 0 to {TOTAL}, all ReLUs of the network, got {budget}"):
        with_random_mask(network[1], budget, seed=0)


@pytest.mark.parametrize("fraction", [0.4, 0.0])
def test_a_network_that_lost_relus_is_refused(make_net, fraction):
    pruned = build_onnx(make_net(fraction), (1, 8, 8))
    assert isinstance(pruned, onnx.ModelProto)
    with pytest.raises(ExportError, match=rf"needs a network with all its ReLUs, x\.onnx keeps \d+ of {TOTAL}"):
        with_random_mask(pruned, 10, seed=0, origin="x.onnx")
