"""The settings of the workers of a cluster. No Ray."""

from __future__ import annotations

import re
from dataclasses import dataclass

from retinanet.errors import ConfigError

# Start a cluster on this machine, which ends with the command.
LOCAL = "local"

_ADDRESS = re.compile(r"local|[\w.-]+:\d+|\[[\da-fA-F:]+\]:\d+")


@dataclass(frozen=True)
class ScaleOptions:
    """Workers of a Ray cluster (with --ray)."""

    workers: int | None = None
    """Largest number of worker processes; each holds the model. Unset: as many as the cluster has room for."""
    cpus: int = 1
    """Processor cores of a worker."""
    gpus: float = 0.0
    """GPUs of a worker. 0.5: two workers share a GPU."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--scale.workers is {self.workers}; give at least 1")
        if self.cpus < 1:
            raise ConfigError(f"--scale.cpus is {self.cpus}; give at least 1")
        if not 0 <= self.gpus < 1000 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ConfigError(f"--scale.gpus is {self.gpus:g}; give 0, a whole number, or a fraction below 1")

    def require_ray(self, address: str | None) -> None:
        """Raise ConfigError if a setting is given without the address of a cluster."""
        if address is None and self != ScaleOptions():
            raise ConfigError("--scale.workers, --scale.cpus and --scale.gpus are for --ray; add it or leave them out")


def is_address(text: str) -> bool:
    """Whether a text is the address of a cluster: ``local`` or ``HOST:PORT``."""
    return _ADDRESS.fullmatch(text) is not None
