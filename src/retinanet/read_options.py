"""Options of reading a dataset, the same in every command."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from retinanet.schema import require


@dataclass(frozen=True)
class ReadOptions:
    """How a dataset is read."""

    needs_images: ClassVar[bool] = True  # whether a missing image is an error

    images: str | None = None
    """Folder with the images, searched with its sub-folders. Unset: found beside the annotations."""
    skip_broken: bool = False
    """Leave out images that are missing or cannot be read, and list them. If off, the command stops at one."""
    voc_origin: Literal["auto", "0", "1"] = "auto"
    """Number of the first pixel in Pascal VOC files. auto: 1 if the file names the VOC challenge, else 0."""
    min_score: float = 0.0
    """Leave out boxes with a lower score. For annotations with scores, such as the output of retinanet detect."""

    def __post_init__(self) -> None:
        require(0 <= self.min_score < 1, f"data.min-score is {self.min_score}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class AnnotationsOnly(ReadOptions):
    """Options for work without pixels: a missing image is kept if the annotations say its size."""

    needs_images: ClassVar[bool] = False

    @classmethod
    def of(cls, options: ReadOptions) -> AnnotationsOnly:
        """Return the same options, for work without pixels."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(ReadOptions)})
