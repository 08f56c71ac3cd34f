"""CrypTen's correlated randomness, made before the input is known and used once.

CrypTen asks its provider for a triple in the middle of each product or comparison; with the trusted third party that is
a round trip to the dealer each time. Which triples an inference takes depends on public shapes alone, so
:func:`planning` runs the model once on zeros with the network and the dealer replaced by stand-ins, and records the
requests. :class:`StockedProvider` then fetches them in the offline phase (from CrypTen's own third-party provider,
unchanged) and hands each out once in the online phase.

CrypTen's built-in tuple cache (``crypten.trace``, ``fill_cache``) has the same aim. It is not used: it records by a
whole extra inference between the parties, and a cache that ran empty raises ``IndexError`` for good.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pi_runtime.crypten.library import import_crypten
from pi_runtime.errors import LocalProtocolError

crypten = import_crypten()

from crypten.communicator import DistributedCommunicator  # noqa: E402 (after the import that makes it work)
from crypten.mpc.primitives import ArithmeticSharedTensor, BinarySharedTensor  # noqa: E402
from crypten.mpc.provider import TrustedThirdParty  # noqa: E402

Request = tuple[str, tuple[Any, ...], tuple[tuple[str, Any], ...]]
"""Which provider function was asked, with its positional and named arguments: public shapes and options."""

_KINDS = ("generate_additive_triple", "generate_binary_triple", "square", "wrap_rng", "B2A_rng")


class StockedProvider:
    """The provider of one party: fetches material ahead, gives each piece out once.

    Both parties must fetch the same requests in the same order, as either expands its part from a stream of its own
    that it shares with the dealer.
    """

    NAME = "TTP"

    def __init__(self) -> None:
        self._maker = TrustedThirdParty()
        self._stock: defaultdict[Request, deque[Any]] = defaultdict(deque)
        self._plan: list[Request] | None = None

    def __getattr__(self, name: str) -> Any:
        if name not in _KINDS:
            raise AttributeError(name)

        def provide(*args: Any, **kwargs: Any) -> Any:
            return self._take((name, args, tuple(sorted(kwargs.items()))))

        return provide

    def fetch(self, requests: Sequence[Request]) -> None:
        """Gets the material for ``requests`` from the dealer."""
        for request in requests:
            name, args, kwargs = request
            self._stock[request].append(getattr(self._maker, name)(*args, **dict(kwargs)))

    @contextmanager
    def recording(self) -> Iterator[list[Request]]:
        """Inside, requests are written to the list that is yielded and answered with zeros."""
        self._plan = []
        try:
            yield self._plan
        finally:
            self._plan = None

    def _take(self, request: Request) -> Any:
        if self._plan is not None:
            self._plan.append(request)
            return _zeros(request)
        if not self._stock[request]:
            raise LocalProtocolError(f"no material is left for {request[0]} {request[1]}; run the offline phase first")
        return self._stock[request].popleft()


def install_provider() -> StockedProvider:
    """Makes a :class:`StockedProvider` the one that CrypTen's protocols ask in this process."""
    provider = StockedProvider()
    crypten.mpc.get_default_provider = lambda: provider
    return provider


@contextmanager
def planning(provider: StockedProvider) -> Iterator[list[Request]]:
    """Inside, CrypTen computes shapes of junk without sending a byte; yields the growing list of requests."""
    communicator, convolution = DistributedCommunicator.instance, torch.conv2d
    DistributedCommunicator.instance = _NoNetwork(communicator.get_rank())
    # Convolutions are nearly all of an inference's work; CrypTen looks the function up by name each time.
    torch.conv2d = cast(Any, _shape_of_conv2d)
    try:
        with provider.recording() as requests:
            yield requests
    finally:
        DistributedCommunicator.instance, torch.conv2d = communicator, convolution


class _NoNetwork:
    """The part of a communicator that an inference between two parties uses, with the peer's data left out."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def get_rank(self) -> int:
        return self._rank

    def get_world_size(self) -> int:
        return 2

    def all_reduce(self, tensors: Any, **_options: Any) -> Any:
        return [tensor.clone() for tensor in tensors] if isinstance(tensors, list) else tensors.clone()


def _shape_of_conv2d(
    x: Tensor,
    weight: Tensor,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Zeros in the shape of ``torch.conv2d(x, weight, ...)``; x [B, C, H, W], weight [O, C/groups, kh, kw]."""
    spans = (rate * (kernel - 1) + 1 for rate, kernel in zip(dilation, weight.shape[2:], strict=True))
    sides = zip(x.shape[2:], padding, spans, stride, strict=True)
    return x.new_zeros(
        x.shape[0], weight.shape[0], *((size + 2 * pad - span) // step + 1 for size, pad, span, step in sides)
    )


def _zeros(request: Request) -> Any:
    """Material of the right kinds and shapes that masks nothing, for :func:`planning`."""
    name, args, kwargs = request
    options = {key: value for key, value in kwargs if key != "device"}
    match name:
        case "generate_additive_triple":
            left, right, op = args[:3]
            parts = (torch.zeros(size, dtype=torch.int64) for size in (left, right))
            product = getattr(torch, op)(*parts, *args[3:], **options).size()
            return tuple(_arithmetic(size) for size in (left, right, product))
        case "generate_binary_triple":
            left, right = args
            return _binary(left), _binary(right), _binary(np.broadcast_shapes(left, right))
        case "B2A_rng":
            return _arithmetic(args[0]), _binary(args[0])
    return _arithmetic(args[0]), _arithmetic(args[0])


def _arithmetic(size: Any) -> Any:
    return ArithmeticSharedTensor.from_shares(torch.zeros(size, dtype=torch.int64), precision=0)


def _binary(size: Any) -> Any:
    return BinarySharedTensor.from_shares(torch.zeros(size, dtype=torch.int64))
