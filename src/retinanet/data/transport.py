"""Send Python values with large tensors over a socket: the memory of the tensors is neither pickled nor shared."""

from __future__ import annotations

import io
import pickle
import socket
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Arrays from this number of bytes on are sent without a copy.
_LARGE = 1 << 14


class _Pickler(pickle.Pickler):
    """Pickles CPU tensors as arrays, whose memory need not be copied. Strides of permuted tensors are kept."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        order = sorted(range(value.ndim), key=lambda axis: -value.stride()[axis])
        array = value.detach().permute(order).contiguous().numpy()
        return _tensor, (array, [order.index(axis) for axis in range(value.ndim)])


def _tensor(array: npt.NDArray[Any], order: list[int]) -> Tensor:
    return torch.from_numpy(array).permute(order)


def send(connection: socket.socket, value: Any) -> None:
    """Send a value: the number of its parts, their lengths, its pickle, and the memory of its large arrays."""
    large: list[memoryview] = []

    def keep_inside(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes >= _LARGE:
            large.append(view)
        return view.nbytes < _LARGE

    pickled = io.BytesIO()
    _Pickler(pickled, protocol=5, buffer_callback=keep_inside).dump(value)
    parts = [pickled.getbuffer(), *large]
    connection.sendall(struct.pack(f"<{len(parts) + 1}Q", len(parts), *(part.nbytes for part in parts)))
    for part in parts:
        connection.sendall(part)


def receive(connection: socket.socket) -> Any:
    """Receive a value.

    Raises:
        EOFError: the other process has closed the connection or has ended.
    """
    (parts,) = struct.unpack("<Q", _bytes(connection, 8))
    sizes = struct.unpack(f"<{parts}Q", _bytes(connection, 8 * parts))
    pickled, *large = [_bytes(connection, size) for size in sizes]
    return pickle.loads(pickled, buffers=large)


def _bytes(connection: socket.socket, size: int) -> memoryview:
    view = np.empty(size, dtype=np.uint8).data
    received = 0
    while received < size:
        count = connection.recv_into(view[received:], 0, getattr(socket, "MSG_WAITALL", 0))
        if count == 0:
            raise EOFError
        received += count
    return view
