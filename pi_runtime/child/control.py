"""The wire between the backend and its processes: a Unix socket pair that carries JSON and raw arrays.

One frame: 4 bytes length of the header (little endian), the header (UTF-8 JSON object), then the arrays it lists, each
C-contiguous and little endian. Its sockets are AF_UNIX and so never part of the protocol's TCP traffic. The header's
``arrays`` is a list of ``[dtype, shape]``; everything else in it belongs to the caller.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from pi_runtime.errors import RemoteProtocolError

Array = npt.NDArray[Any]

# The public graph of the largest network in reach, kept elements included, is below 4 MB; a batch of images or logits
# below 100 MB.
MAX_HEADER_BYTES = 64 * 2**20
MAX_ARRAY_BYTES = 2**30
_DTYPES = ("<f4", "<i8")


class Control:
    """One end of the socket pair."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, header: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
        """Sends one frame.

        Raises:
            OSError: the other end is gone.
        """
        described = [[array.dtype.newbyteorder("<").str, list(array.shape)] for array in arrays]
        text = json.dumps({**header, "arrays": described}).encode()
        self._connection.sendall(struct.pack("<I", len(text)) + text)
        for array in arrays:
            self._connection.sendall(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())

    def receive(self) -> tuple[dict[str, Any], list[Array]]:
        """Waits for one frame.

        Raises:
            EOFError: the other end is gone.
            RemoteProtocolError: what came is no frame.
        """
        (length,) = struct.unpack("<I", self._read(4))
        if length > MAX_HEADER_BYTES:
            raise RemoteProtocolError(f"a control header must be <= {MAX_HEADER_BYTES} bytes, got {length}")
        try:
            header = json.loads(self._read(length).decode())
            described = [(str(dtype), tuple(int(size) for size in shape)) for dtype, shape in header.pop("arrays")]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RemoteProtocolError(f"a control header is damaged: {error}") from error
        return header, [self._read_array(dtype, shape) for dtype, shape in described]

    def close(self) -> None:
        self._connection.close()

    def _read_array(self, dtype: str, shape: tuple[int, ...]) -> Array:
        if dtype not in _DTYPES or min(shape, default=0) < 0:
            raise RemoteProtocolError(f"a control array must have one of the types {_DTYPES}, got {dtype} {shape}")
        size = prod(shape) * np.dtype(dtype).itemsize
        if size > MAX_ARRAY_BYTES:
            raise RemoteProtocolError(f"a control array must be <= {MAX_ARRAY_BYTES} bytes, got {size}")
        return np.frombuffer(self._read(size), dtype=dtype).reshape(shape)

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._connection.recv_into(view)
            if count == 0:
                raise EOFError("the other end of the control socket is gone")
            view = view[count:]
        return data
