"""Which images a client may mask: values that scales and rings were not chosen for give a wrong answer silently."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pi_runtime.errors import ConfigError
from pi_runtime.preset.program import Program


def check_images(images: npt.NDArray[np.floating], program: Program, names: Sequence[object] | None = None) -> None:
    """Refuses images that the network's numbers do not cover; call it before a bundle is spent on them.

    The limit is public: the plan's ``input_bits``, twice the largest value of the calibration's images or a little
    more. It costs no message and tells nobody anything.

    Args:
        images: [B, C, H, W], normalised, any floating type.
        names: of the images, for the error; their numbers in the batch otherwise.

    Raises:
        ConfigError: names the first image with a value that is not finite or whose fixed-point integer is
            2**input_bits or more in size, and the limit.
    """
    limit = np.ldexp(1.0, program.plan.input_bits - program.plan.frac_bits)
    for index, image in enumerate(images):
        # Rounding may carry a value below the limit up to it. A NaN compares false.
        largest = float(np.abs(np.asarray(image, dtype=np.float64)).max(initial=0.0))
        if not np.rint(np.ldexp(largest, program.plan.frac_bits)) < np.ldexp(1.0, program.plan.input_bits):
            name = f"image {index + 1} of {len(images)}" if names is None else str(names[index])
            size = f"values up to {largest:.6g}" if np.isfinite(largest) else "values that are not finite"
            raise ConfigError(
                f"{name} holds {size}; once normalised they must be below {limit:g} in size, for which the network's"
                " scales were chosen; check how the image is normalised"
            )
