"""Run by SPU's Python: the jax function of a public graph in the clear. ``jax_logits.py <package> <directory>``.

The directory holds public.json, images.npy and the parameters in the order of the function; it gets logits.npy.
"""

import json
import sys
from pathlib import Path

package, directory = Path(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, str(package / "spu"))
import bootstrap  # noqa: E402 (found by the line above)

bootstrap.load_package()

import numpy as np  # noqa: E402 (of SPU's Python)

from pi_runtime.graph import parse_public  # noqa: E402 (loaded by the bootstrap)
from pi_runtime.spu.jax_graph import jax_function, parameter_shapes  # noqa: E402

graph = parse_public(json.loads((directory / "public.json").read_text()), origin="the test")
values = [np.load(directory / f"{name}.npy") for name, _ in parameter_shapes(graph)]
np.save(directory / "logits.npy", np.asarray(jax_function(graph)(np.load(directory / "images.npy"), *values)))
