"""Several processes (ranks) that train one model together, started by ``torchrun``, or one process alone.

``train.batch`` is the batch of all ranks together: each rank takes its share of every batch, and gradients, normalizers
and metrics are those of the whole batch. So neither results nor settings depend on the number of ranks.
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

# Time until a rank that hangs counts as lost; a rank that ends is noticed at once. The time is long because ranks
# may wait while others verify the images of a large dataset.
_PATIENCE = timedelta(minutes=30)

# Words in gloo's messages about a lost connection. NCCL raises its own exception types instead.
_LOST = ("closed by peer", "reset by peer", "broken pipe", "timed out", "connection refused")


@dataclass(frozen=True)
class Processes:
    """The place of this process among all processes that train together.

    Attributes:
        rank: number of this process.
        world_size: number of processes.
        local_rank: number of this process on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints messages."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this rank's items; every item belongs to exactly one rank."""
        return items[self.rank :: self.world_size]

    def sum(self, values: Tensor) -> Tensor:
        """Sum a CPU tensor over all ranks, in place."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def largest(self, *values: int) -> list[int]:
        """Return the maximum of each value over all ranks."""
        if self.world_size == 1:
            return list(values)
        together = torch.tensor(values)
        distributed.all_reduce(together, distributed.ReduceOp.MAX)
        return [int(value) for value in together]

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's ``value`` in order of rank. It must be JSON-serializable; nothing is unpickled."""
        if self.world_size == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(bytes(found.numpy())) for found in self._gather(own)]

    def gather_rows(self, rows: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Concatenate float64 ``(N, C)`` of all ranks."""
        if self.world_size == 1:
            return rows
        parts = self._gather(torch.from_numpy(np.ascontiguousarray(rows)).flatten())
        return np.concatenate([part.numpy() for part in parts]).reshape(-1, rows.shape[1])

    def _gather(self, own: Tensor) -> list[Tensor]:
        """Gather flat CPU tensors of different lengths."""
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        distributed.all_gather(lengths, torch.tensor([len(own)]))
        longest = max(1, *(int(length) for length in lengths))
        padded = torch.cat([own, own.new_zeros(longest - len(own))])
        found = [torch.empty_like(padded) for _ in range(self.world_size)]
        distributed.all_gather(found, padded)
        return [part[: int(length)] for part, length in zip(found, lengths, strict=True)]

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Wrap ``model`` so that its gradients are averaged over the ranks."""
        if self.world_size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def wait(self) -> None:
        """Wait until all ranks have called this."""
        if self.world_size > 1:
            distributed.barrier()

    def same_buffers(self, model: nn.Module) -> None:
        """Copy the buffers (batch norm's statistics) of the main rank to all ranks."""
        if self.world_size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)


def require_agreement(processes: Processes, values: dict[str, Any]) -> None:
    """Check that all ranks start from the same data, settings and checkpoint.

    Raises:
        ConfigError: a value differs; the message names the first such value.
    """
    own = json.loads(json.dumps(values))
    for rank, other in enumerate(processes.gather(own)):
        for name, value in own.items():
            if other[name] != value:
                raise ConfigError(
                    f"process {rank} has other {name} than process {processes.rank}; all need the same DATA, flags and "
                    "--out, on a disk they share or in equal copies"
                )


def started_as_main() -> bool:
    """Return whether this process is the main rank of those that ``torchrun`` started, or trains alone."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started; without ``torchrun``, this process trains alone.

    Raises:
        ConfigError: the processes cannot find each other.
        PeerError: another process ended or cannot be reached any more.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield Processes()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:160]
        raise ConfigError(f"the processes cannot find each other ({reason}); start them with torchrun") from error
    processes = Processes(distributed.get_rank(), distributed.get_world_size(), local_rank)
    try:
        yield processes
        distributed.barrier()
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and not any(word in str(error).lower() for word in _LOST):
            raise
        raise PeerError(
            f"rank {processes.rank}: another process of this training ended or cannot be reached "
            f"({' '.join(str(error).split())[:120]}); its message is above or in its own log. "
            "The last checkpoint is intact: start all of them again with --resume"
        ) from error
    finally:
        # No barrier here: after an error the other ranks may be gone.
        distributed.destroy_process_group()
