"""The settings of ``retinanet bench``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
