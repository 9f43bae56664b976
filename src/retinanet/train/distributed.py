"""Several processes that train one model together, started by ``torchrun``; one process is the simple case.

The unit stays the batch of the whole training: each process takes its share of every batch, and gradients, divisors
and metrics are those of the whole. So the number of processes changes neither the result nor the settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from retinanet.errors import ConfigError, PeerError

Item = TypeVar("Item")

# A process that ends closes its connections, which the others notice at once; this is for one that hangs. Checking
# the images of a large dataset may keep some waiting for that long.
_PATIENCE = timedelta(minutes=30)

# How gloo says that a connection is gone; NCCL has exceptions of its own.
_LOST = ("closed by peer", "reset by peer", "broken pipe", "timed out", "connection refused")


@dataclass(frozen=True)
class Processes:
    """This process's place among all: ``rank`` of ``count``, ``local`` on its machine."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's items; every item is some process's, and no item is that of two."""
        return items[self.rank :: self.count]

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a CPU tensor over all processes."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def largest(self, *values: int) -> list[int]:
        """The largest of each value over all processes."""
        if self.count == 1:
            return list(values)
        together = torch.tensor(values)
        distributed.all_reduce(together, distributed.ReduceOp.MAX)
        return [int(value) for value in together]

    def gather(self, value: Any) -> list[Any]:
        """Every process's ``value``, which JSON must be able to hold (nothing is unpickled), in order of rank."""
        if self.count == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(bytes(found.numpy())) for found in self._gather(own)]

    def gather_rows(self, rows: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """float64 ``(N, C)`` of every process, one below the other."""
        if self.count == 1:
            return rows
        parts = self._gather(torch.from_numpy(np.ascontiguousarray(rows)).flatten())
        return np.concatenate([part.numpy() for part in parts]).reshape(-1, rows.shape[1])

    def _gather(self, own: Tensor) -> list[Tensor]:
        """Flat CPU tensors of different lengths, of all processes."""
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        distributed.all_gather(lengths, torch.tensor([len(own)]))
        longest = max(1, *(int(length) for length in lengths))
        padded = torch.cat([own, own.new_zeros(longest - len(own))])
        found = [torch.empty_like(padded) for _ in range(self.count)]
        distributed.all_gather(found, padded)
        return [part[: int(length)] for part, length in zip(found, lengths, strict=True)]

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """``model`` so that its gradients become the mean over the processes."""
        if self.count == 1:
            return model
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier()

    def same_buffers(self, model: nn.Module) -> None:
        """Give all processes the buffers (batch norm's statistics) of the first."""
        if self.count > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started; a process alone if it did not.

    Raises:
        ConfigError: they cannot find each other.
        PeerError: another of them ended or cannot be reached any more.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield Processes()
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:160]
        raise ConfigError(f"the processes cannot find each other ({reason}); start them with torchrun") from error
    processes = Processes(distributed.get_rank(), distributed.get_world_size(), local)
    try:
        yield processes
        distributed.barrier()
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and not any(word in str(error).lower() for word in _LOST):
            raise
        raise PeerError(
            f"rank {processes.rank}: another process of this training ended or cannot be reached "
            f"({' '.join(str(error).split())[:120]}); what it says is above or in its own log. "
            "The last checkpoint is intact: start all of them again with --resume"
        ) from error
    finally:
        # without the barrier of a good end: the others may be gone
        distributed.destroy_process_group()
