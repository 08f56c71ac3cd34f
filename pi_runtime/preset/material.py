"""The server's material of a spent bundle, mapped and ready before the online clock starts."""

from __future__ import annotations

import mmap

import numpy as np

from pi_runtime.errors import LocalProtocolError
from pi_runtime.preset.bundle import BundleLayout, load_gate_part, load_linear_part
from pi_runtime.preset.online import ServerMaterial, material_from
from pi_runtime.preset.program import Program

_PAGE_BYTES = 4096


def load_material(program: Program, batch: int, mapped: mmap.mmap) -> ServerMaterial:
    """Material of ``batch`` images over ``mapped``, without a copy; its pages are brought in now rather than online.

    Raises:
        LocalProtocolError: the file has another length than the layout.
    """
    layout = BundleLayout(program, batch)
    if len(mapped) != layout.total_bytes:
        raise LocalProtocolError(f"a bundle must have {layout.total_bytes} bytes, the stored one has {len(mapped)}")
    np.frombuffer(mapped, np.uint8)[::_PAGE_BYTES].sum()
    view = memoryview(mapped)
    parts = {index: view[part.offset : part.offset + part.size] for index, part in layout.parts.items()}
    return material_from(
        {step.index: load_linear_part(step, batch, parts[step.index]) for step in program.linear_steps},
        {step.index: load_gate_part(step, batch, parts[step.index]) for step in program.gate_steps},
    )
