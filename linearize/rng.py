"""Random streams named by what they are for, so that a resumed run needs no saved generator state."""

import hashlib

import torch


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed from the run's seed and a purpose such as ("bcd", step): SHA-256 of both."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose; equal arguments give equal streams."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))
