"""What a mask makes SPU do beside comparing: microseconds an element compared, taken out and put back.

Of one layer of 65,536 elements, both parties in one process; the figures behind :mod:`benchmarks.relu_work`. Run it
with SPU's Python (:mod:`pi_runtime.spu.interpreter`): ``$PI_SPU_PYTHON benchmarks/spu_moves.py``.
"""

from __future__ import annotations

import os
import time
from statistics import median
from typing import Any

# jax would look for accelerators; it only traces here.
os.environ["JAX_PLATFORMS"] = "cpu"

import jax.numpy as jnp
import numpy as np
from spu import libspu
from spu.utils.simulation import Simulator, sim_jax

ELEMENTS = 65_536
RUNS = {"SEMI2K": 7, "CHEETAH": 3}


def main() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(1, ELEMENTS)).astype(np.float32)
    half = ELEMENTS // 2
    kept = np.sort(rng.permutation(ELEMENTS)[:half])
    source = np.arange(ELEMENTS)
    source[kept] = ELEMENTS + np.arange(half)
    # The sum at the end keeps an operand from being the answer, which would be no work at all.
    programs: dict[str, tuple[Any, int]] = {
        "nothing": (lambda x: x + 1.0, 1),
        "compared": (lambda x: jnp.maximum(x, 0) + 1.0, ELEMENTS),
        "taken out": (lambda x: jnp.concatenate([x[:, kept], x[:, half:]], axis=1) + 1.0, half),
        "put back": (lambda x: jnp.concatenate([x, x[:, :half]], axis=1)[:, source] + 1.0, ELEMENTS),
    }
    for protocol, runs in RUNS.items():
        simulator = Simulator.simple(2, getattr(libspu.ProtocolKind, protocol), libspu.FieldType.FM64)
        compiled = {name: sim_jax(simulator, program) for name, (program, _) in programs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(1 + runs):
            for name, program in compiled.items():
                started = time.perf_counter()
                program(images)
                seconds[name].append(time.perf_counter() - started)
        bare_s = median(seconds["nothing"][1:])
        for name, (_, elements) in list(programs.items())[1:]:
            print(f"{protocol} {name}: {(median(seconds[name][1:]) - bare_s) / elements * 1e6:.1f} us an element")


if __name__ == "__main__":
    main()
