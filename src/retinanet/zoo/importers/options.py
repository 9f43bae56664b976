"""What the weights of another program do not tell: settings of an import, and their defaults."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from retinanet.errors import ConfigError

# Receives a remark about a choice that was made, as a sentence.
Note = Callable[[str], object]

Value = TypeVar("Value")


@dataclass(frozen=True)
class ImportOptions:
    """Settings of an import that replace those in the file and the defaults of the other program."""

    classes: tuple[str, ...] = ()
    """Names of the network's outputs, in order. Unset: those in the checkpoint, else COCO's for 80 outputs (91 with
    torchvision's background), else class 0, class 1, …"""
    norm_eps: float | None = None
    """Epsilon of the batch norm. Unset: 1e-5, but 0 if the batch norm of a torchvision model is frozen, as in its
    published v1."""
    config: Path | None = None
    """Configuration that the other program stored beside the weights: config.yaml (detectron2) or config.py
    (mmdetection). It is read as data; no code in it is executed."""
    stride_in: Literal["1x1", "3x3"] | None = None
    """Convolution of a bottleneck that has the stride (detectron2, mmdetection). 1x1: backbones of Caffe and MSRA."""
    colors: Literal["rgb", "bgr"] | None = None
    """Order of the color channels that the network was trained with (detectron2, mmdetection)."""
    mean: tuple[float, float, float] | None = None
    """Mean that was subtracted from each channel, 0–255, in the order of --colors."""
    std: tuple[float, float, float] | None = None
    """Number that each channel was divided by, 0–255, in the order of --colors."""
    size: int | None = None
    """Shorter side that images are resized to, in pixels. Unset: 800."""
    max_size: int | None = None
    """Upper limit of the longer side, in pixels. Unset: 1333."""
    anchor_sizes: tuple[float, ...] = ()
    """Sides of the square anchors of the five levels, in pixels. Unset: 32 64 128 256 512."""
    anchor_scales: tuple[float, ...] = ()
    """Factors by which each anchor size is multiplied. Unset: 1, 2^⅓ and 2^⅔."""
    anchor_ratios: tuple[float, ...] = ()
    """Aspect ratios of the anchors, height divided by width, in the order of the network's outputs."""

    def __post_init__(self) -> None:
        for name in ("size", "max_size"):
            value = getattr(self, name)
            if value is not None and value < 32:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; give at least 32 pixels")
        if self.std is not None and not all(0 < value < math.inf for value in self.std):
            raise ConfigError(f"--std is {self.std}; give three positive numbers")
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise ConfigError(f"--mean is {self.mean}; give three numbers")

    @property
    def only_for_others(self) -> list[str]:
        """The flags that are set and do not concern torchvision's models."""
        common = ("classes", "norm_eps")
        return [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value and name not in common]


DEFAULT_OPTIONS = ImportOptions()


@dataclass
class Choices:
    """Chooses settings, and remembers which of them were assumed."""

    program: str
    assumed: list[str] = field(default_factory=list)

    def choose(self, what: str, given: Value | None, stored: Value | None, default: Value) -> Value:
        """Return the flag ``given``, else the value ``stored`` by the other program, else its ``default``."""
        if given is not None and given != ():
            return given
        if stored is not None:
            return stored
        self.assumed.append(f"{what} {_text(default)}")
        return default

    def explain(self, note: Note, config: bool = True) -> None:
        """Say which defaults of the other program were assumed, and whether a ``config`` can be given."""
        if self.assumed:
            how = "--config FILE or these flags give" if config else "these flags give"
            note(
                f"the file does not tell everything; {self.program}'s defaults are assumed: "
                f"{'; '.join(self.assumed)} ({how} others)"
            )


def _text(value: Any) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return " ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in values)
