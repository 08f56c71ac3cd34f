"""The truncation of shares is stochastic rounding: against its law for every pad, and in the mean of a million."""

from __future__ import annotations

import numpy as np
import pytest

from pi_runtime.preset.public_ops import truncate


def rounded(values, pads, shift, *, centred=True):
    """Both parties' truncations of ``values`` under the client's ``pads``, added up."""
    server = truncate(values - pads, shift, constants=centred)
    return server + truncate(pads, shift, constants=False)


@pytest.mark.parametrize("shift", [1, 3, 6])
def test_of_all_pads_exactly_the_fraction_rounds_up(shift):
    whole = 1 << shift
    # The law depends on the low bits of the pad alone as long as nothing wraps.
    pads = np.arange(-4 * whole, 4 * whole, dtype=np.int64)
    for value in range(-3 * whole, 3 * whole):
        out = rounded(np.int64(value), pads, shift)
        assert set(out.tolist()) <= {value // whole, value // whole + 1}
        assert (out - value // whole).sum() * whole == len(pads) * (value % whole)


@pytest.mark.parametrize("shift", [12, 14, 18])
def test_the_mean_error_of_a_million_values_is_zero_within_its_standard_error(shift):
    rng = np.random.default_rng(shift)
    values = rng.integers(-(2**36), 2**36, 10**6)
    pads = rng.integers(-(2**63), 2**63, 10**6)
    error = rounded(values, pads, shift) - values / 2.0**shift
    assert np.abs(error).max() < 1
    standard_error = error.std() / 1000
    assert abs(error.mean()) < 3 * standard_error
    assert error.std() == pytest.approx(6**-0.5, rel=0.01)  # of a fair rounding of a uniform fraction: E f(1 - f) = 1/6
    floored = rounded(values, pads, shift, centred=False) - values / 2.0**shift
    assert floored.mean() < -0.9  # without the constant two floors lose one unit together
