"""Problems that readers find in annotations: a code for each kind, its severity and the action of the reader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]

# How a tolerant reader handles a problem that aborts training.
_SKIPPED = "left out (training would stop)"


@dataclass(frozen=True)
class ProblemKind:
    """A kind of problem.

    Attributes:
        code: identifies the kind; decisions use this.
        severity: ``error``: training aborts. ``warning``: an annotation is lost. ``note``: for information only.
        title: noun phrase for the kind, printed with the number of its cases.
        action: how the reader handles the problem.
        left_out: the reader leaves out a whole image or annotation file.
        sign: the problem is one of all boxes together. It is printed first, with its severity.
        counted: equal messages are merged into one problem with a count. For kinds that concern most of a dataset.
    """

    code: str
    severity: Severity
    title: str
    action: str
    left_out: bool = False
    counted: bool = False
    sign: bool = False


_KINDS = (
    ProblemKind("unreadable-image", "error", "image that cannot be read", _SKIPPED, left_out=True),
    ProblemKind("unreadable-annotations", "error", "annotation file that cannot be read", _SKIPPED, left_out=True),
    ProblemKind("missing-annotations", "error", "listed image without an annotation file", _SKIPPED, left_out=True),
    ProblemKind("annotation-without-image", "error", "annotation of an unlisted image", _SKIPPED, left_out=True),
    ProblemKind("unknown-class-id", "error", "annotation of an undefined class", _SKIPPED, left_out=True),
    ProblemKind(
        "boxes-of-other-size",
        "error",
        "dataset with boxes far beyond its images",
        "clipped (training would stop)",
        sign=True,
    ),
    ProblemKind(
        "unclear-boxes",
        "error",
        "dataset with boxes of unclear meaning",
        "read as the format says (training would stop)",
        sign=True,
    ),
    ProblemKind(
        "boxes-as-corners",
        "warning",
        "dataset with corners (x1, y1, x2, y2) in place of the box that its format defines",
        "read as corners",
        sign=True,
    ),
    ProblemKind(
        "boxes-as-sides",
        "warning",
        "dataset with x, y, width, height in place of the box that its format defines",
        "read as x, y, width, height",
        sign=True,
    ),
    ProblemKind(
        "boxes-with-y-first",
        "warning",
        "dataset with corners (y1, x1, y2, x2) in place of the box that its format defines",
        "read as y1, x1, y2, x2",
        sign=True,
    ),
    ProblemKind(
        "boxes-as-centers",
        "warning",
        "dataset with center x, center y, width, height in place of the box that its format defines",
        "read as center, width and height",
        sign=True,
    ),
    ProblemKind(
        "boxes-as-fractions",
        "warning",
        "dataset with boxes in fractions of the image (0 to 1) in place of pixels",
        "read as fractions",
        sign=True,
    ),
    ProblemKind(
        "boxes-as-pixels",
        "warning",
        "dataset with boxes in pixels in place of fractions of the image (0 to 1)",
        "read as pixels",
        sign=True,
    ),
    ProblemKind(
        "boxes-as-parts",
        "warning",
        "dataset with boxes in percent or thousandths of the image in place of pixels",
        "read as parts of the image",
        sign=True,
    ),
    ProblemKind(
        "other-image-size",
        "warning",
        "dataset with boxes on images of another size",
        "scaled to the image files",
        sign=True,
    ),
    ProblemKind(
        "wrong-image-size",
        "warning",
        "dataset with wrong image sizes",
        "the sizes of the image files are used",
        sign=True,
    ),
    ProblemKind("boxes-in-corner", "warning", "dataset with all boxes at the top left", "used as they are", sign=True),
    ProblemKind(
        "exif-contradiction",
        "warning",
        "dataset whose splits disagree about images turned by EXIF",
        "each split is read as its own annotations show",
        sign=True,
    ),
    ProblemKind("exif-orientation", "note", "dataset with images turned by EXIF", "read as turned", sign=True),
    ProblemKind("voc-origin", "note", "dataset that may count pixels from 1", "read as counted from 0", sign=True),
    ProblemKind("pixel-range", "note", "dataset with images of more than 8 bits", "scaled to 8 bits", sign=True),
    ProblemKind("zero-area-box", "warning", "zero-area box", "dropped"),
    ProblemKind("inverted-box", "warning", "box with its corners in the wrong order", "dropped"),
    ProblemKind("outside-box", "warning", "box outside its image", "dropped"),
    ProblemKind("non-finite-box", "warning", "box with a coordinate that is not a number", "dropped"),
    ProblemKind("malformed-box", "warning", "annotation without a box of four numbers", "dropped"),
    ProblemKind("malformed-line", "warning", "line that is not a valid annotation", "dropped"),
    ProblemKind("unnamed-object", "warning", "object without a class name", "dropped"),
    ProblemKind("repeated-element", "warning", "object with the same XML element twice", "dropped"),
    ProblemKind("label-without-image", "warning", "label file without an image", "left out", left_out=True),
    ProblemKind("image-without-annotations", "note", "image without an XML file", "left out", left_out=True),
    ProblemKind("clipped-box", "note", "box that reaches over the edge of its image", "clipped"),
    ProblemKind("invalid-flag", "note", "flag that is neither 0 nor 1", "treated as 0"),
    ProblemKind("heading-category", "note", "category that only groups the others", "left out"),
    ProblemKind("skipped-image", "note", "image that is missing or cannot be read", "left out", left_out=True),
    ProblemKind("unread-files", "note", "kind of files that cannot be read", "left out", left_out=True),
    ProblemKind("image-found", "note", "image found under another path", "used", counted=True),
    ProblemKind("inner-folder", "note", "dataset in a sub-folder", "used", counted=True),
    ProblemKind("folder-found", "note", "path of another computer", "replaced by the path here", counted=True),
    ProblemKind("absent-split", "note", "test split that is not there", "left out", left_out=True, counted=True),
    ProblemKind("shape-box", "note", "object without an upright box", "its bounding box is used", counted=True),
    ProblemKind("text-box", "note", "box written as text", "read as numbers", counted=True),
    ProblemKind("scored-box", "note", "box with a score", "used as an object", counted=True),
    ProblemKind("low-score", "note", "box with a low score", "left out (--data.min-score)", counted=True),
    ProblemKind("merged-class", "note", "class name that differs only by case or spaces", "merged", counted=True),
    ProblemKind("matched-class", "note", "class name in another spelling", "matched", counted=True),
    ProblemKind("unlearnt-class", "note", "class that train lacks", "kept, its AP is 0", counted=True),
    ProblemKind("single-class", "note", "box without a class", "of the only class 'object'", counted=True),
    ProblemKind("encoding", "note", "file that is not UTF-8", "read as Windows-1252", counted=True),
    ProblemKind("image-ids", "note", "image ids that are not whole numbers", "images numbered from 1"),
    ProblemKind("listed-twice", "note", "image listed twice", "read once"),
    ProblemKind("unlabelled-image", "note", "image without a label file", "treated as an image without objects"),
    ProblemKind("unlabelled-split", "note", "split without any label file", "treated as images without objects"),
    ProblemKind("unnamed-classes", "note", "classes without names", "named by their numbers"),
    ProblemKind("unlisted-class", "note", "class that the class list lacks", "put after the listed classes"),
)
PROBLEM_KINDS = {kind.code: kind for kind in _KINDS}


@dataclass(frozen=True)
class Problem:
    """One problem in the annotations.

    Attributes:
        code: of its :class:`ProblemKind`.
        where: file and line, or file and annotation id.
        message: description of this case.
        count: number of cases. If it is above 1, ``where`` is the first of them.
    """

    code: str
    where: str
    message: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.where}: {self.message}, {self.action}"

    @property
    def kind(self) -> ProblemKind:
        """The kind of the problem."""
        return PROBLEM_KINDS[self.code]

    @property
    def severity(self) -> Severity:
        """``error``, ``warning`` or ``note``."""
        return self.kind.severity

    @property
    def action(self) -> str:
        """How the reader handled the problem."""
        return self.kind.action
