"""The settings of ``retinanet bench``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retinanet.errors import ConfigError


@dataclass(frozen=True)
class BenchOptions:
    """Settings of the benchmarks."""

    scaling: bool = True
    """Also plot the times against the number of boxes, classes and pixels (only without NAME)."""
    threads: int | None = None
    """Number of threads of PyTorch and, for export, of the other runtimes. Unset: their defaults."""
    weights: Path = Path("person")
    """Model of the benchmark export: a .safetensors file, or the name of a bundled model."""
    data: Path | None = None
    """Dataset of the benchmark export, for AP and INT8. Unset: neither is measured."""
    split: str = "val"
    """Split of DATA on which AP is measured."""

    def check(self, names: Sequence[str]) -> None:
        """Check that every option has an effect on the benchmarks ``names``.

        Raises:
            ConfigError: an option is for another benchmark, or for a dataset that is not given.
        """
        own = ("weights", "data", "split")
        given = [f"--{name}" for name in own if getattr(self, name) != getattr(BenchOptions, name)]
        if given and "export" not in names:
            raise ConfigError(f"{', '.join(given)}: only for the benchmark export; leave it out, or add export")
        if self.data is None and self.split != BenchOptions.split:
            raise ConfigError("--split: only for a dataset (--data); leave it out, or add --data")
