"""One party's SPU: its link, its programs and its operands, by SPU's lower interface, which pickles nothing.

The client is rank 0 and owns the images, the server is rank 1 and owns the parameters. Each party compiles the same
public graph by itself. An operand is private to its owner: what the other party registers for it are zeros of its
public shape, and SPU's protocol turns private into shared values as it needs them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

# jax would look for accelerators; it only traces here.
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import numpy.typing as npt
from jax import lax
from spu import Io, Runtime, libspu
from spu.utils import frontend

from pi_runtime.errors import ConfigError, RemoteProtocolError
from pi_runtime.graph import Graph
from pi_runtime.spu.jax_graph import jax_function, parameter_shapes

CLIENT, SERVER = 0, 1
PROTOCOLS = {"cheetah": libspu.ProtocolKind.CHEETAH, "semi2k": libspu.ProtocolKind.SEMI2K}

_SECRET = libspu.Visibility.VIS_SECRET
_CONNECT_EVERY_MS, _CONNECT_TIMES = 100, 1200
_IMAGES, _LOGITS, _WARM_UP = "images", "logits", "warm-up"

Array = npt.NDArray[np.float32]


class Engine:
    """SPU at the party with ``rank``, connected.

    addresses: ``host:port`` of both, in the order of ranks. wait_s: for the peer, at any point.
    """

    def __init__(self, rank: int, protocol: str, addresses: Sequence[str], *, threads: int, wait_s: float) -> None:
        if protocol not in PROTOCOLS:
            raise ConfigError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
        self._rank = rank
        self._config = libspu.RuntimeConfig()
        self._config.protocol = PROTOCOLS[protocol]
        self._config.field = libspu.FieldType.FM64
        self._config.max_concurrency = threads
        # Without it an operand of one owner is shared at once, and its owner's knowledge of it is of no use.
        self._config.experimental_enable_colocated_optimization = True
        self._link = libspu.link.create_brpc(_description(addresses, wait_s), rank)
        self._io = Io(len(addresses), self._config)
        self._runtime = Runtime(self._link, self._config)
        self._programs: dict[int, Any] = {}
        self._graph: Graph

    def load(self, graph: Graph, params: Sequence[Array]) -> None:
        """Registers the parameters (at the server; the client has none) and does what SPU does before its first run."""
        self._graph = graph
        shapes = parameter_shapes(graph)
        values = list(params) or [np.zeros(shape, np.float32) for _, shape in shapes]
        for (name, shape), value in zip(shapes, values, strict=True):
            if value.shape != shape:
                raise ConfigError(
                    f"parameter {name} must have the shape {shape} of the public graph, got {value.shape}"
                )
            self._set(name, value, SERVER)
        self._warm_up()

    def compile(self, batch: int) -> None:
        """Makes the program for ``batch`` images, unless it is there."""
        if batch not in self._programs:
            shapes = [(_IMAGES, (batch, *self._graph.input_shape)), *parameter_shapes(self._graph)]
            self._programs[batch] = _compiled(jax_function(self._graph), shapes, _LOGITS)

    def infer(self, batch: int, images: Array | None) -> Array | None:
        """One inference of a compiled batch; images at the client, which gets the logits. The server gets None."""
        shape = (batch, *self._graph.input_shape)
        self._set(_IMAGES, np.zeros(shape, np.float32) if images is None else images, CLIENT)
        self._runtime.run(self._programs[batch])
        return self._revealed(_LOGITS)

    def _revealed(self, name: str) -> Array | None:
        """The server sends its share, as SPU wrote it out; the client puts both together."""
        share = self._runtime.get_var(name)
        if self._rank == SERVER:
            for chunk in share.share_chunks:
                self._link.send(CLIENT, chunk)
            return None
        others = [self._link.recv(SERVER) for _ in share.share_chunks]
        if [len(chunk) for chunk in others] != [len(chunk) for chunk in share.share_chunks]:
            raise RemoteProtocolError("the server's share of the logits is not as long as the client's")
        other = libspu.Share()
        other.meta, other.share_chunks = share.meta, others
        return np.ascontiguousarray(self._io.reconstruct([share, other]), dtype=np.float32)

    def _set(self, name: str, value: Array, owner: int) -> None:
        self._runtime.set_var(name, self._io.make_shares(value, _SECRET, owner)[self._rank])

    def _warm_up(self) -> None:
        """Keys and base transfers are made at the first of each kind of product, truncation and comparison: here."""
        shapes = [(f"{_WARM_UP}-{_IMAGES}", (1, 8)), (f"{_WARM_UP}-weight", (8, 8))]
        self._set(shapes[0][0], np.ones(shapes[0][1], np.float32), CLIENT)
        self._set(shapes[1][0], np.ones(shapes[1][1], np.float32), SERVER)
        program = _compiled(lambda x, w: lax.max(x @ w, np.float32(0)) @ w * w[0], shapes, _WARM_UP)
        self._runtime.run(program)


def _compiled(function: Any, shapes: Sequence[tuple[str, tuple[int, ...]]], output: str) -> Any:
    """``function`` of operands with these names and shapes, all secret, as a program of SPU."""
    program, _ = frontend.compile(
        frontend.Kind.JAX,
        function,
        [jax.ShapeDtypeStruct(shape, np.float32) for _, shape in shapes],
        {},
        [name for name, _ in shapes],
        [_SECRET] * len(shapes),
        lambda _outputs: [output],
    )
    return program


def _description(addresses: Sequence[str], wait_s: float) -> Any:
    description = libspu.link.Desc()
    for rank, address in enumerate(addresses):
        description.add_party(str(rank), address)
    description.connect_retry_interval_ms = _CONNECT_EVERY_MS
    description.connect_retry_times = _CONNECT_TIMES
    # A peer may compute for minutes between two messages.
    description.recv_timeout_ms = description.http_timeout_ms = int(wait_s * 1000)
    return description
