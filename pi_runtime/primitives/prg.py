"""From a 16-byte seed and a structured label to an independent pseudorandom stream.

The key of a stream is the first 16 bytes of HMAC-SHA256(seed, encoding of the label); the stream is AES-128 in counter
mode under that key, from counter 0. HMAC is a PRF, so streams of different labels are independent as long as the
encoding is injective: every field carries its length. Nothing is ever taken from an offset in a shared stream, so two
parties that expand the same label in any order get the same bytes. The streams only ever stand for uniform pads; they
authenticate nothing.
"""

import hmac
import secrets
from dataclasses import dataclass
from typing import Self

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from pi_runtime.errors import LocalProtocolError

PRG_ID = "hmac-sha256/aes-128-ctr/1"
SEED_BYTES = 16
_COUNTER_ZERO = bytes(16)


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a stream is for. Streams of labels that differ in any field are independent."""

    bundle_id: bytes
    """The bundle; for streams that belong to a model, its id."""
    graph_hash: bytes
    """Hash of graph, masks, scales and rings."""
    role: str
    """Whose pads: "client", "server", "dealer"."""
    image: int
    """Index in the batch, from 0."""
    layer: str
    """Name of the node or wire."""
    purpose: str
    """Which pad of the layer."""

    def encode(self) -> bytes:
        """PRG_ID and the fields in order, each after its length as 4 bytes little endian; `image` is 8 bytes."""
        fields = (
            PRG_ID.encode(),
            self.bundle_id,
            self.graph_hash,
            self.role.encode(),
            self.image.to_bytes(8, "little"),
            self.layer.encode(),
            self.purpose.encode(),
        )
        return b"".join(len(field).to_bytes(4, "little") + field for field in fields)


class Stream:
    """An AES-128-CTR stream, read once from its start. The key is never shown."""

    def __init__(self, key: bytes) -> None:
        """A stream under `key` (16 bytes, used for nothing else)."""
        if len(key) != SEED_BYTES:
            raise LocalProtocolError(f"a stream key must be {SEED_BYTES} bytes, got {len(key)}")
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(_COUNTER_ZERO)).encryptor()

    @classmethod
    def from_system(cls) -> Self:
        """A stream that nobody else can expand: its key is drawn from the operating system."""
        return cls(secrets.token_bytes(SEED_BYTES))

    def __repr__(self) -> str:
        return "Stream(<secret>)"

    def __reduce__(self) -> str:
        raise LocalProtocolError("a secret stream cannot be pickled or copied; derive it again from its seed")

    def octets(self, count: int) -> NDArray[np.uint8]:
        """The next `count` bytes, uint8 [count]."""
        buffer = np.zeros(count, np.uint8)
        if count:
            view = buffer.data
            self._encryptor.update_into(view, view)
        return buffer

    def words(self, *shape: int) -> NDArray[np.uint64]:
        """Uniform elements of Z_2^64 from the next 8 bytes each (little endian), uint64 of the given shape."""
        count = int(np.prod(shape, dtype=np.int64))
        return self.octets(8 * count).view("<u8").astype(np.uint64, copy=False).reshape(shape)


class Seed:
    """A 16-byte secret from which labelled streams are derived. `repr` and formatting never show it."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SEED_BYTES:
            raise LocalProtocolError(f"a seed must be {SEED_BYTES} bytes, got {len(secret)}")
        self._secret = bytes(secret)

    @classmethod
    def fresh(cls) -> Self:
        """A new seed from the operating system's generator."""
        return cls(secrets.token_bytes(SEED_BYTES))

    def __repr__(self) -> str:
        return "Seed(<secret>)"

    def __reduce__(self) -> str:
        raise LocalProtocolError("a seed cannot be pickled; send reveal() over the channel that may carry it")

    def reveal(self) -> bytes:
        """The 16 bytes themselves, for the one message or file that must carry them."""
        return self._secret

    def stream(self, label: Label) -> Stream:
        """The stream of `label`, from its start."""
        return Stream(hmac.digest(self._secret, label.encode(), "sha256")[:SEED_BYTES])
