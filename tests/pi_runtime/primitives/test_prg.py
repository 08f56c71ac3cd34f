"""The PRG against HMAC and AES-ECB by hand, published vectors, and the injectivity of its labels."""

import copy
import dataclasses
import hashlib
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from pi_runtime.errors import LocalProtocolError
from pi_runtime.primitives.prg import PRG_ID, Label, Seed, Stream

LABEL = Label(bundle_id=b"bundle-1", graph_hash=b"\x07" * 32, role="client", image=3, layer="conv1", purpose="p")
SECRET = bytes(range(16))


def hmac_by_hand(key: bytes, message: bytes) -> bytes:
    block = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + message).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in block) + inner).digest()


def counter_blocks_by_hand(key: bytes, size: int) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return b"".join(encryptor.update(i.to_bytes(16, "big")) for i in range(-(-size // 16)))[:size]


def label_by_hand(label: Label) -> bytes:
    fields = [PRG_ID.encode(), label.bundle_id, label.graph_hash, label.role.encode()]
    fields += [label.image.to_bytes(8, "little"), label.layer.encode(), label.purpose.encode()]
    return b"".join(len(field).to_bytes(4, "little") + field for field in fields)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 1000, 70_001])
def test_stream_equals_hmac_and_counter_blocks_by_hand(size: int) -> None:
    key = hmac_by_hand(SECRET, label_by_hand(LABEL))[:16]
    assert Seed(SECRET).stream(LABEL).octets(size).tobytes() == counter_blocks_by_hand(key, size)


def test_known_answer_of_the_whole_derivation() -> None:
    # Fixed when the format was; a change means that parties of two versions no longer understand each other.
    assert Seed(SECRET).stream(LABEL).octets(16).tobytes().hex() == "06cf9e8556225cbee88e4dcabc1081ba"


def test_stream_starts_with_the_published_vector() -> None:
    # AES-128 of the all-zero block under the all-zero key, NIST AESAVS.
    assert Stream(bytes(16)).octets(16).tobytes().hex() == "66e94bd4ef8a2c3b884cfa59ca342b2e"


def test_words_are_the_octets_read_little_endian_in_order() -> None:
    octets = Stream(SECRET).octets(8 * 15 + 8)
    stream = Stream(SECRET)
    words = np.concatenate([stream.words(3, 5).reshape(-1), stream.words(1)])
    expected = [int.from_bytes(octets[i : i + 8].tobytes(), "little") for i in range(0, octets.size, 8)]
    assert words.tolist() == expected
    assert words.flags.writeable
    assert stream.words(0, 4).shape == (0, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"bundle_id": b"bundle-2"},
        {"graph_hash": b"\x08" * 32},
        {"role": "dealer"},
        {"image": 4},
        {"layer": "conv2"},
        {"purpose": "g"},
        {"layer": "conv", "purpose": "1p"},
        {"role": "clientconv1", "layer": ""},
    ],
)
def test_a_change_of_any_field_changes_the_stream(change: dict[str, object]) -> None:
    other = dataclasses.replace(LABEL, **change)  # type: ignore[arg-type]
    assert other.encode() != LABEL.encode()
    assert Seed(SECRET).stream(other).octets(32).tobytes() != Seed(SECRET).stream(LABEL).octets(32).tobytes()


def test_stream_octets_are_uniform_by_chi_square() -> None:
    counts = np.bincount(Seed(SECRET).stream(LABEL).octets(1 << 20), minlength=256)
    chi_square = float(((counts - 4096.0) ** 2 / 4096.0).sum())
    assert 150 < chi_square < 375  # 255 degrees of freedom: mean 255, deviation 22.6; the stream is fixed, so is this


def test_fresh_secrets_differ() -> None:
    assert Seed.fresh().reveal() != Seed.fresh().reveal()
    assert Stream.from_system().octets(16).tobytes() != Stream.from_system().octets(16).tobytes()


@pytest.mark.parametrize("secret", [Seed(SECRET), Stream(SECRET)])
def test_secrets_hide_and_do_not_copy(secret: Seed | Stream) -> None:
    for text in (repr(secret), str(secret), f"{secret}"):
        assert "<secret>" in text
        assert SECRET.hex() not in text
    for duplicate in (pickle.dumps, copy.copy):
        with pytest.raises(LocalProtocolError):
            duplicate(secret)


@pytest.mark.parametrize("size", [0, 15, 17, 32])
def test_secrets_of_another_length_are_refused(size: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"must be 16 bytes, got {size}"):
        Seed(bytes(size))
    with pytest.raises(LocalProtocolError, match=f"must be 16 bytes, got {size}"):
        Stream(bytes(size))
