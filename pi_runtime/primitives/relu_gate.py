"""The exact ReLU gate from one-time tables: input of n bits, output mod 2^64, one round trip, no cryptography online.

Write N = 2^n, H = N/2, and x = xhat - alpha mod N read as a signed number; xhat is known to both parties, alpha to the
dealer alone. With alpha = a*H + alpha_low, xhat = h*H + xhat_low and the borrow c = 1{xhat_low < alpha_low}, x is kept
when d = 1 ^ h ^ a ^ c is 1, and ReLU(x) = d*xhat - d*alpha', where alpha' = alpha for h = 1 and alpha - a*N for h = 0.

The n-1 low bits are cut into two or three chunks. For each they hold xor shares of P[t] = 1{chunk of alpha >= t};
at xhat's chunk t, P[t+1] says that it is less than alpha's, P[t] ^ P[t+1] that it is equal. These three or five bits
are opened under one-time mask bits, so what is opened is uniform and independent of everything else. d is then the
public bit flip = 1 ^ h ^ (opened less of the highest chunk) xor a bit S that depends on a, the mask bits and the other
opened bits only; the parties hold additive shares of S, S*alpha and S*alpha' for every case. With three chunks, turning
the middle opened less from 0 to 1 turns S into T - S, where T depends on the opened equal of the highest chunk alone,
so the material lists S for eight cases and T for two instead of S for sixteen.

The client's half of the material is the output of its seed's PRG, the server's half the truth minus it. Either half
alone is uniform. alpha and the mask bits come from the dealer's own generator: whoever knows the seed must not know
them. A second opening of the same material would give away comparisons with alpha, so it is refused.

Sources: one-time truth tables (Ishai et al., TCC 2013; TinyTable, eprint 2016/695), comparison by chunks (CrypTFlow2,
eprint 2020/1002), masked-input gates (Boyle, Gilboa, Ishai, TCC 2019). Legend: k elements; party 0 is the server, 1 the
client.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pi_runtime.errors import LocalProtocolError, RemoteProtocolError
from pi_runtime.primitives import kernels_gate
from pi_runtime.primitives.prg import Stream
from pi_runtime.primitives.ring import U64, low_bits, pack, packed_bytes, unpack

U8 = NDArray[np.uint8]

SERVER = 0
CLIENT = 1
MIN_RING_BITS = 4
MAX_RING_BITS = 32
TWO_CHUNKS_UP_TO = 20
"""Two chunks cost half a byte less an element online; beyond 20 bits their tables outgrow that (305 bytes of material
against 289 at 20 bits, 369 against 297 at 21)."""
BLOCK_BYTES = 256 << 10
"""What a dealer makes at a time stays in a core's own cache, in memory that the block before has left. A large layer
made at once goes through fresh memory, which took two to three times as long an element."""


@dataclass(frozen=True)
class GateLayout:
    """Sizes of a gate. Build it with `gate_layout`, or directly for another split of the low bits.

    Raises:
        LocalProtocolError: a ring or chunks that cannot work.
    """

    ring_bits: int
    """n: the gate reads its input mod 2**n, signed."""
    chunks: tuple[int, ...]
    """Bits of the two or three chunks, high to low; they sum to n - 1."""

    def __post_init__(self) -> None:
        if not MIN_RING_BITS <= self.ring_bits <= MAX_RING_BITS:
            raise LocalProtocolError(
                f"ring_bits must be {MIN_RING_BITS} to {MAX_RING_BITS}, got {self.ring_bits}; lower frac_bits"
            )
        if len(self.chunks) not in (2, 3) or min(self.chunks) < 1 or sum(self.chunks) != self.ring_bits - 1:
            raise LocalProtocolError(
                f"chunks must be two or three positive numbers that sum to ring_bits - 1 = {self.ring_bits - 1}, "
                f"got {self.chunks}; take gate_layout({self.ring_bits})"
            )

    @property
    def opened_bits(self) -> int:
        """Bits an element that each party sends when opening: less and equal a chunk, less alone of the lowest."""
        return 2 * len(self.chunks) - 1

    @property
    def table_bytes(self) -> int:
        """Bytes an element of the bit tables and mask bits of one party."""
        return packed_bytes(sum((1 << bits) + 1 for bits in self.chunks) + self.opened_bits, 1)

    @property
    def word_count(self) -> int:
        """64-bit words an element of one party: two base words and the triples S (and T)."""
        return 2 + 3 * (4 if len(self.chunks) == 2 else 10)

    @property
    def element_bytes(self) -> int:
        """Bytes an element of one party's half, without q: 337 at 24 bits, 305 at 20, 209 at 18, 161 at 16."""
        return self.table_bytes + 8 * self.word_count

    def material_bytes(self, count: int) -> int:
        """Bytes of the server's material of `count` elements: its half, and q at ring_bits an element."""
        return count * self.element_bytes + packed_bytes(count, self.ring_bits)

    def to_client_bytes(self, count: int) -> int:
        """Online bytes from server to client: xhat and the server's shares of the opened bits, framing apart."""
        return packed_bytes(count, self.ring_bits) + packed_bytes(count, self.opened_bits)

    def to_server_bytes(self, count: int) -> int:
        """Online bytes from client to server: its masked output and its shares of the opened bits, framing apart."""
        return 8 * count + packed_bytes(count, self.opened_bits)


@cache
def gate_layout(ring_bits: int) -> GateLayout:
    """The layout for a ring of `ring_bits` bits (4 to 32): two chunks up to 20 bits, three beyond, as even as possible.

    Raises:
        LocalProtocolError: `ring_bits` out of range.
    """
    parts = 2 if ring_bits <= TWO_CHUNKS_UP_TO else 3
    low = max(ring_bits - 1, parts)
    return GateLayout(ring_bits, tuple((low + i) // parts for i in reversed(range(parts))))


class GateMaterial:
    """One party's material for the k gates of a layer and image: opened once, finished once, then gone."""

    def __init__(self, layout: GateLayout, party: int, words: U64, tables: U8, q: U64 | None) -> None:
        """Words [k, word_count], tables [k, table_bytes]; q [k] for the server, None for the client."""
        self.layout = layout
        self.party = party
        self.count = len(words)
        self._words: U64 | None = words
        self._tables: U8 | None = tables
        self._q = q

    def __repr__(self) -> str:
        return f"GateMaterial({self.layout}, party={self.party}, count={self.count}, <secret>)"

    def __reduce__(self) -> str:
        raise LocalProtocolError("gate material cannot be pickled or copied: it may be used once")

    def mask_input(self, share: NDArray[Any]) -> U64:
        """The server's xhat = share + q mod 2**n, uint64 [k], from its share [k] of the gate's input.

        Raises:
            LocalProtocolError: the client's material, or a share of another length.
        """
        if self._q is None:
            raise LocalProtocolError("the client cannot mask the input; xhat comes from the server")
        self.check_length("share", share)
        return low_bits(share.view(np.uint64) + self._q, self.layout.ring_bits)

    def take_tables(self) -> U8:
        """Hand over the tables, once; raises LocalProtocolError the second time."""
        tables, self._tables = self._tables, None
        if tables is None:
            raise LocalProtocolError("this gate material was opened before; take a fresh bundle")
        return tables

    def take_words(self) -> U64:
        """Hand over the words, once and after the tables; raises LocalProtocolError otherwise."""
        words = self._words
        if words is None or self._tables is not None:
            raise LocalProtocolError("gate material is finished once and after its opening; take a fresh bundle")
        self._words = None
        return words

    def take_q(self) -> U64 | None:
        """Hand over q, the client's None."""
        q, self._q = self._q, None
        return q

    def check_length(self, name: str, values: NDArray[Any]) -> None:
        """Raise LocalProtocolError unless `values` is [k]."""
        if values.shape != (self.count,):
            raise LocalProtocolError(f"{name} must hold one value for each of {self.count} gates, got {values.shape}")


def gate_deal(layout: GateLayout, client_share: NDArray[Any], client: Stream, dealer: Stream) -> Iterator[NDArray[Any]]:
    """The server's material for k gates whose input the client shares as `client_share` (uint64 or int64 [k]).

    It comes as it is sent and stored, in pieces of at most `BLOCK_BYTES` or one element (q: of all k elements): words,
    tables, q packed, each of all k elements, little endian, `layout.material_bytes(k)` bytes together. No piece is
    touched again once it is handed out.

    Draws alpha and the mask bits from `dealer`, which nobody else may be able to expand, and the client's half from
    `client`, the stream that the client gives to `gate_expand`. q = (client_share + alpha) mod 2**n.
    """
    count = len(client_share)
    alpha = low_bits(dealer.words(count), layout.ring_bits)
    masks = dealer.octets(count) & np.uint8((1 << layout.opened_bits) - 1)
    chunks = _chunk_array(layout)
    for block in _blocks(count, 8 * layout.word_count):
        words = _expand_words(layout, len(alpha[block]), client)
        kernels_gate.subtract_from_true_words(alpha[block], masks[block], chunks, words)
        yield words.astype("<u8", copy=False)
    for block in _blocks(count, layout.table_bytes):
        tables = _expand_tables(layout, len(alpha[block]), client)
        kernels_gate.xor_true_tables(alpha[block], masks[block], chunks, tables)
        yield tables
    yield pack(low_bits(client_share.view(np.uint64) + alpha, layout.ring_bits), layout.ring_bits)


def gate_expand(layout: GateLayout, count: int, client: Stream) -> GateMaterial:
    """The client's material for `count` gates, element_bytes of `client` each; expand it before the input comes."""
    words = _expand_words(layout, count, client)
    return GateMaterial(layout, CLIENT, words, _expand_tables(layout, count, client), None)


def gate_load(layout: GateLayout, count: int, data: bytes | memoryview) -> GateMaterial:
    """The server's material for `count` gates from the bytes of `gate_deal`, without a copy where memory is aligned.

    Raises:
        RemoteProtocolError: not exactly `layout.material_bytes(count)` bytes, or damaged padding.
    """
    if len(data) != layout.material_bytes(count):
        raise RemoteProtocolError(
            f"gate material of {count} elements must be {layout.material_bytes(count)} bytes, got {len(data)}; "
            "server and dealer must use the same public graph"
        )
    raw = np.frombuffer(data, np.uint8)
    words_end = 8 * layout.word_count * count
    tables_end = words_end + layout.table_bytes * count
    words = np.require(raw[:words_end].view("<u8"), np.uint64, ["C", "A"]).reshape(count, layout.word_count)
    tables = raw[words_end:tables_end].reshape(count, layout.table_bytes)
    return GateMaterial(layout, SERVER, words, tables, unpack(raw[tables_end:], count, layout.ring_bits))


def join_gates(parts: Sequence[GateMaterial]) -> GateMaterial:
    """The materials of a batch's images, of one layout and party, as one; the parts are used up.

    One part alone is handed through without a copy.
    """
    if len(parts) == 1:
        return parts[0]
    tables = np.concatenate([part.take_tables() for part in parts])
    words = np.concatenate([part.take_words() for part in parts])
    masks = [mask for part in parts if (mask := part.take_q()) is not None]
    q = np.concatenate(masks) if masks else None
    return GateMaterial(parts[0].layout, parts[0].party, words, tables, q)


def gate_open(material: GateMaterial, xhat: U64) -> U8:
    """This party's xor shares of the opened bits of k gates, a byte an element, from the public `xhat` [k].

    Each fits `layout.opened_bits` bits, at which `ring.pack` sends it; the xor of both parties' shares is opened.

    Raises:
        LocalProtocolError: the material was opened before, or `xhat` has another length.
    """
    material.check_length("xhat", xhat)
    opened = np.empty(material.count, np.uint8)
    kernels_gate.open_bits(np.ascontiguousarray(xhat), _chunk_array(material.layout), material.take_tables(), opened)
    return opened


def gate_finish(material: GateMaterial, xhat: U64, opened: U8) -> U64:
    """This party's additive share mod 2^64 of ReLU(xhat - alpha mod 2**n), uint64 [k], from the opened bits [k].

    Raises:
        LocalProtocolError: the material was not opened or is finished already, or an argument has another length.
        RemoteProtocolError: opened bits beyond `layout.opened_bits`.
    """
    layout = material.layout
    material.check_length("xhat", xhat)
    material.check_length("opened", opened)
    if material.count and int(opened.max()) >> layout.opened_bits:
        raise RemoteProtocolError(f"opened bits must fit {layout.opened_bits} bits; the message is damaged")
    output = np.empty(material.count, np.uint64)
    finish = kernels_gate.finish_two_chunks if len(layout.chunks) == 2 else kernels_gate.finish_three_chunks
    one = np.uint64(1 if material.party == SERVER else 0)
    finish(
        np.ascontiguousarray(xhat),
        np.ascontiguousarray(opened),
        material.take_words(),
        layout.ring_bits - 1,
        one,
        output,
    )
    return output


def _expand_words(layout: GateLayout, count: int, client: Stream) -> U64:
    return client.words(count, layout.word_count)


def _expand_tables(layout: GateLayout, count: int, client: Stream) -> U8:
    return client.octets(count * layout.table_bytes).reshape(count, layout.table_bytes)


def _blocks(count: int, element_bytes: int) -> Iterator[slice]:
    size = max(BLOCK_BYTES // element_bytes, 1)
    return (slice(start, start + size) for start in range(0, count, size))


@cache
def _chunk_array(layout: GateLayout) -> NDArray[np.int64]:
    return np.array(layout.chunks, np.int64)
