"""The range of a client's images: against the integers that fixed point makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from pi_runtime.errors import ConfigError
from pi_runtime.preset.input_range import check_images
from pi_runtime.preset.plan import FixedPointPlan, with_plan
from pi_runtime.preset.program import compile_program
from pi_runtime.primitives.ring import encode


def program_of(graph, **numbers):
    return compile_program(with_plan(graph, FixedPointPlan(**numbers)))


@pytest.mark.parametrize("frac_bits", [4, 12])
@pytest.mark.parametrize("sign", [1, -1])
def test_exactly_the_integers_below_the_limit_pass(preset_graph, frac_bits, sign):
    program = program_of(preset_graph, frac_bits=frac_bits, input_bits=10)
    image = np.zeros((1, *program.input_shape))
    for integer in np.arange(1000.0, 1050.0, 0.25):
        image[0, 0, 2, 2] = sign * integer / 2.0**frac_bits
        if abs(int(encode(image, frac_bits).flat[18])) < 2**10:
            check_images(image, program)
        else:
            with pytest.raises(ConfigError, match="must be below"):
                check_images(image, program)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(preset_graph, value):
    images = np.zeros((3, *preset_graph.input_shape), np.float32)
    images[1, 0, 0, 0] = value
    with pytest.raises(ConfigError, match=r"^image 2 of 3 holds values that are not finite; .* below 524288 in size"):
        check_images(images, compile_program(preset_graph))
    with pytest.raises(ConfigError, match=r"^b\.npy holds values that are not finite"):
        check_images(images, compile_program(preset_graph), ["a.npy", "b.npy", "c.npy"])


def test_a_client_refuses_an_image_out_of_range_and_spends_no_bundle(parties):
    client, _ = parties.client()
    client.prepare(2)
    images = parties.images(2)
    images[1, 0, 0, 0] = 1e9
    with pytest.raises(ConfigError, match=r"image 2 of 2 holds values up to 1e\+09; .* below 524288 in size"):
        client.infer(images)
    assert client.ready(2) == 1
    images[1, 0, 0, 0] = 0
    assert client.infer(images).shape == (2, 4)
    assert client.ready(2) == 0
