"""Options of reading a dataset, the same in every command."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from retinanet.schema import require

# A positive size such as 640x480, or a positive factor such as 0.5x.
_FRAME = re.compile(r"(?=[^x]*[1-9])\d{1,9}(\.\d{1,9})?x((?=.*[1-9])\d{1,9}(\.\d{1,9})?)?")


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
    exif: Literal["auto", "apply", "ignore"] = "auto"
    """What boxes refer to in images that EXIF turns: the turned image (apply) or the stored pixels (ignore). auto:
    inferred. Images are always turned, and the boxes with them."""
    box_form: Literal["auto", "format", "xyxy", "xywh", "cxcywh", "yxyx"] = "auto"
    """The four numbers of a box: corners (xyxy, or yxyx with y first), x, y, width, height (xywh), or center, width,
    height (cxcywh). auto: as the format says, unless all boxes together show another form. format: always as the
    format says."""
    box_frame: str = "auto"
    """Size of the image that box coordinates refer to: pixels (of the image file), WIDTHxHEIGHT such as 1x1
    (fractions), 100x100 (percent) or 640x640, or a factor such as 2x (images twice as large). auto, format: as in
    box-form."""

    def __post_init__(self) -> None:
        require(0 <= self.min_score < 1, f"data.min-score is {self.min_score}; it must be at least 0 and below 1")
        valid = self.box_frame in ("auto", "format", "pixels") or _FRAME.fullmatch(self.box_frame)
        problem = f"data.box-frame is {self.box_frame!r}; use auto, format, pixels, a size such as 640x640, or a factor"
        require(bool(valid), f"{problem} such as 2x")


@dataclass(frozen=True)
class AnnotationsOnly(ReadOptions):
    """Options for work without pixels: a missing image is kept if the annotations say its size."""

    needs_images: ClassVar[bool] = False

    @classmethod
    def of(cls, options: ReadOptions) -> AnnotationsOnly:
        """Return the same options, for work without pixels."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(ReadOptions)})
