"""Real processes of SPU over loopback. Oracle: onnxruntime on the same file. Skipped where SPU is not."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import numpy as np
import pytest

from pi_runtime.backend import Cost
from pi_runtime.backends import open_backend
from pi_runtime.errors import BackendError, ConfigError, LocalProtocolError

# 18 fraction bits of every weight, through a few layers of some tens of terms of magnitude one.
TOLERANCE = 2e-3
SHAPE = (1, 8, 8)


@pytest.fixture
def backend(spu_python, make_net, export):
    """`spu-semi2k` with the small residual network, 40 % of its ReLUs kept."""
    del spu_python
    with open_backend("spu-semi2k") as opened:
        opened.prepare(export(make_net(0.4), SHAPE))
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spu-semi2k", "spu-cheetah"])
def test_logits_are_those_of_plaintext_and_every_phase_has_its_cost(
    spu_python, make_net, export, images, plaintext, name
):
    del spu_python
    model = export(make_net(0.4), SHAPE)
    with open_backend(name) as backend:
        backend.prepare(model)
        for batch in (1, 3):
            pictures = images(batch, SHAPE, seed=batch)
            logits, cost = backend.infer(pictures)
            assert logits.dtype == np.float32
            assert np.abs(logits - plaintext(model, pictures)).max() < TOLERANCE
            assert cost.phases["offline"] == Cost()
            assert cost.layers == ()
            for phase in ("setup", "online"):
                part = cost.phases[phase]
                assert part.seconds > 0
                assert part.sent_bytes["client"] > 1000
                assert part.sent_bytes["server"] > 1000
                assert part.sent_bytes["dealer"] == 0
                assert 0 < part.rounds < part.messages


@pytest.mark.slow
def test_bytes_and_rounds_are_those_of_the_graph_and_grow_with_the_batch(backend, images):
    costs = [backend.infer(images(batch, SHAPE))[1].phases["online"] for batch in (1, 1, 4)]
    first, again, four = costs
    assert (first.messages, first.rounds) == (again.messages, again.rounds) == (four.messages, four.rounds)
    # Acknowledgements on their way differ by some bytes.
    assert again.total_bytes == pytest.approx(first.total_bytes, rel=0.01)
    assert 1.5 * first.total_bytes < four.total_bytes < 4 * first.total_bytes


@pytest.mark.slow
def test_fewer_relus_send_fewer_bytes_and_the_rest_stays(spu_python, make_net, export, images):
    del spu_python
    online = {}
    for fraction in (0.2, 1.0):
        with open_backend("spu-semi2k") as backend:
            model = make_net(fraction)
            kept = sum(int(layer.relu_mask.sum()) for layer in (model.relu1, model.relu2, model.relu3))
            backend.prepare(export(model, SHAPE))
            online[kept] = backend.infer(images(1, SHAPE))[1].phases["online"].total_bytes
    (few, few_bytes), (many, many_bytes) = online.items()
    # 72 bytes an element each way: 56 of the comparison, 16 of the product with it. Framing goes with the messages.
    assert (many_bytes - few_bytes) / (many - few) == pytest.approx(144, rel=0.05)


@pytest.mark.slow
def test_every_other_operator_runs(spu_python, operators_net, export, images, plaintext):
    del spu_python
    model, pictures = export(operators_net, (2, 9, 9)), images(2, (2, 9, 9))
    with open_backend("spu-semi2k") as backend:
        backend.prepare(model)
        assert np.abs(backend.infer(pictures)[0] - plaintext(model, pictures)).max() < TOLERANCE


@pytest.mark.slow
def test_a_party_that_dies_is_named_and_nothing_is_left(backend, images):
    pids = {role: process.pid for role, process in backend._processes.items()}
    os.kill(pids["server"], signal.SIGKILL)
    with pytest.raises(BackendError, match="the server process was killed by signal 9"):
        backend.infer(images(1, SHAPE))
    for pid in pids.values():
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            pytest.fail(f"process {pid} is still there")
    with pytest.raises(LocalProtocolError, match="the spu-semi2k backend has no model; call prepare first"):
        backend.infer(images(1, SHAPE))


@pytest.mark.slow
def test_images_of_another_shape_are_refused(backend, images):
    with pytest.raises(ConfigError, match=r"images must be \[B, 1, 8, 8\], got \(1, 1, 9, 9\)"):
        backend.infer(images(1, (1, 9, 9)))


def test_threads_must_be_at_least_one():
    with pytest.raises(ConfigError, match="threads must be >= 1, got 0"):
        open_backend("spu-cheetah", threads=0)
