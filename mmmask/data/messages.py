"""Messages between processes: pickled, with the values of tensors copied by the kernel alone."""

from __future__ import annotations

import os
import pickle
from io import BytesIO
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor


def send(connection: Connection, message: object) -> None:
    """Sends anything that can be pickled, from wherever its tensors lie."""
    buffers: list[pickle.PickleBuffer] = []
    head = BytesIO()
    _Pickler(head, protocol=5, buffer_callback=buffers.append).dump(message)
    views = [buffer.raw() for buffer in buffers]
    connection.send_bytes(pickle.dumps((head.getvalue(), [view.nbytes for view in views])))
    for view in views:
        while view:
            view = view[os.write(connection.fileno(), view) :]


def receive(connection: Connection) -> Any:  # noqa: ANN401 - the message
    """Next message of the other end; tensors are read straight into their memory, without the interpreter lock.

    Raises:
        EOFError: the other end was closed.
    """
    head, sizes = pickle.loads(connection.recv_bytes())
    buffers = [bytearray(size) for size in sizes]
    for buffer in buffers:
        view = memoryview(buffer)
        while view:
            count = os.readv(connection.fileno(), [view])
            if not count:
                raise EOFError
            view = view[count:]
    return pickle.loads(head, buffers=buffers)


class _Pickler(pickle.Pickler):
    """Leaves the values of tensors out of the message."""

    def reducer_override(self, value: Any) -> Any:  # noqa: ANN401 - pickle's
        if type(value) is not Tensor or not value.numel():
            return NotImplemented
        flat: Any = value.detach().contiguous().view(-1).view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(flat), value.dtype, tuple(value.shape))


def _tensor(buffer: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(buffer, dtype=dtype).view(shape)
