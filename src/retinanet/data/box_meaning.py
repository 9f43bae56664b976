"""Recognize boxes whose four numbers mean something else than the format of their dataset says.

A single box cannot tell: ``[38, 10, 60, 26]`` may be corners or a position with width and height. All boxes of a
dataset together can. The meaning that the format defines is kept, unless more than a fifth of the boxes do not fit into
their images with it (less, if all fit with another), or unless all boxes lie in the outermost corner of their images,
as fractions read as pixels do. Another meaning is accepted only if (nearly) all boxes fit with it. Ordinary annotation
errors, such as a few boxes beyond the edge or with swapped corners, change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from retinanet.read_options import ReadOptions

Form = Literal["xyxy", "xywh", "cxcywh", "yxyx"]
Floats = npt.NDArray[np.float64]

_FORMS: dict[Form, str] = {
    "xyxy": "corners (x1, y1, x2, y2)",
    "xywh": "x, y, width, height",
    "cxcywh": "center x, center y, width, height",
    "yxyx": "corners (y1, x1, y2, x2)",
}

# Smallest number of boxes that can tell, and smallest number of boxes that do not fit.
_FEWEST, _FEWEST_MISFITS = 6, 3

# The format's meaning is wrong if more than the first fraction of the boxes does not fit. Another meaning is right if
# at most the second fraction does not fit.
_BROKEN, _FITS = 0.2, 0.02

# With so many boxes, a smaller fraction and number of misfits is enough if every box fits with another form. A box near
# the right edge, given by its center, reaches beyond the image as x, y, width, height; most others do not.
_MANY, _SOME, _SOME_MISFITS = 40, 0.04, 4

# A box may reach beyond its image by this fraction of the image's side, and by at least one pixel.
_SLACK = 0.02

# Sides of the frames that other programs use for all images: percent, and thousandths (of vision-language models).
_PARTS = (100.0, 1000.0)

# Boxes in parts fill at least this fraction of their frame, and the frame is at most half of the images. So many boxes,
# in so many images, are needed to tell parts from pixels.
_FILLED, _PARTS_BOXES, _PARTS_IMAGES = 0.8, 20, 5

# If all of so many boxes lie in this fraction of their images at the top left, this is reported.
_CORNER, _CORNER_BOXES, _CORNER_IMAGES = 0.6, 30, 10

# So many boxes, of which more than this fraction does not fit with any meaning, are refused.
_BROKEN_BOXES, _MOSTLY = 20, 0.5

# Boxes drawn on larger images: more than this fraction reaches beyond its image, by more than a tenth of its side.
_OVERSIZED, _FAR = 0.3, 0.1


class Reporter(Protocol):
    """Takes what the user should know; a :class:`retinanet.data.dataset.DatasetBuilder`."""

    name: str

    def report(self, code: str, where: str, message: str) -> None:
        """Record a problem."""

    def refuse(self, code: str, where: str, message: str, error: str) -> None:
        """Abort, or record the problem if the reader is tolerant."""


@dataclass(frozen=True)
class Frame:
    """What the numbers of a box are relative to.

    Attributes:
        size: ``(width, height)`` of the frame of every image, such as 1 × 1 for fractions. ``None``: pixels.
        factor: size of the image that was annotated divided by the size of the image file.
    """

    size: tuple[float, float] | None = None
    factor: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Frame:
        """Frame of the option ``box_frame``: ``pixels``, ``WIDTHxHEIGHT`` or ``FACTORx``."""
        if text == "pixels":
            return PIXELS
        width, _, height = text.partition("x")
        return cls((float(width), float(height))) if height else cls(None, float(width))


PIXELS, FRACTIONS = Frame(), Frame((1.0, 1.0))


@dataclass(frozen=True)
class Meaning:
    """Meaning of the four numbers of a box."""

    form: Form = "xyxy"
    frame: Frame = PIXELS

    def corners(self, numbers: Floats) -> Floats:
        """Corners ``(M, 4)`` of boxes: fractions of the image if the frame has a size, else pixels."""
        first, second = numbers[:, :2], numbers[:, 2:]
        if self.form == "yxyx":
            first, second = first[:, ::-1], second[:, ::-1]
        if self.form == "xywh":
            second = first + second
        elif self.form == "cxcywh":
            first, second = first - second / 2, first + second / 2
        scale = np.array(self.frame.size) if self.frame.size else self.frame.factor
        return np.concatenate([first / scale, second / scale], axis=1)

    def numbers(self, corners: Floats) -> Floats:
        """Inverse of :meth:`corners`."""
        scale = np.array(self.frame.size) if self.frame.size else self.frame.factor
        first, second = corners[:, :2] * scale, corners[:, 2:] * scale
        if self.form == "xywh":
            second = second - first
        elif self.form == "cxcywh":
            first, second = (first + second) / 2, second - first
        if self.form == "yxyx":
            first, second = first[:, ::-1], second[:, ::-1]
        return np.concatenate([first, second], axis=1)


@dataclass(frozen=True)
class Numbers:
    """The numbers of all boxes of a dataset.

    Attributes:
        values: ``(M, 4)``, as the files hold them.
        image: ``(M,)``, index of each box's image.
        limits: ``(M, 2)``, width and height of each box's image; the larger ones if its size is uncertain.
    """

    values: Floats
    image: npt.NDArray[np.int64]
    limits: Floats

    def misfits(self, meaning: Meaning) -> npt.NDArray[np.bool_]:
        """Whether each box has no area, or reaches beyond its image."""
        corners = meaning.corners(self.values)
        limits = np.ones(2) if meaning.frame.size else self.limits
        slack = _SLACK * limits if meaning.frame.size else np.maximum(1.0, _SLACK * limits)
        empty = corners[:, 2:] <= corners[:, :2]
        return np.asarray((empty | (corners[:, :2] < -slack) | (corners[:, 2:] > limits + slack)).any(axis=1))

    def extent(self, meaning: Meaning) -> Floats:
        """Largest x and y of all boxes ``(2,)``, as fractions of the frame or of the images."""
        ends = meaning.corners(self.values)[:, 2:]
        largest: Floats = (ends if meaning.frame.size else ends / self.limits).max(axis=0)
        return largest


def recognize(declared: Meaning, numbers: Numbers, options: ReadOptions, reporter: Reporter) -> Meaning:
    """Return what the numbers mean, and report it if it is not what the format says.

    Args:
        declared: their meaning in the format of the dataset.
        numbers: of the boxes that can tell; boxes computed from outlines are left out.
        options: ``box_form`` and ``box_frame`` can name the meaning.
        reporter: gets a problem that describes a sign.
    """
    form = declared.form if options.box_form in ("auto", "format") else cast("Form", options.box_form)
    frame = declared.frame if options.box_frame in ("auto", "format") else Frame.parse(options.box_frame)
    given = Meaning(form, frame)
    if len(numbers.values) == 0 or (options.box_form != "auto" and options.box_frame != "auto"):
        return given
    forms = [form, *(f for f in _FORMS if f != form)] if options.box_form == "auto" else [form]
    search = _Search(given, forms, numbers, options.box_frame == "auto")
    found = search.small_frame()
    if not found and search.fits():
        if search.any_frame and frame == PIXELS:
            _report_corner(reporter, given, numbers)
        return given
    found = found or search.other_meanings()
    if len(found) > 1 and found[0].form != form and _share(numbers, found[0]) == _share(numbers, found[1]):
        _refuse_unclear(reporter, given, found, numbers)
    elif found:
        _report(reporter, given, found[0], numbers)
        return found[0]
    elif search.any_frame:
        _refuse_oversized(reporter, given, numbers)
    return given


@dataclass(frozen=True)
class _Search:
    """A search for the meaning of numbers that may not be ``given``.

    Attributes:
        given: the meaning that the format or the options say.
        forms: forms that are possible, the given one first.
        numbers: of the boxes.
        any_frame: whether another frame is possible.
    """

    given: Meaning
    forms: list[Form]
    numbers: Numbers
    any_frame: bool

    def fits(self) -> bool:
        """Whether the given meaning is kept."""
        bad = self.numbers.misfits(self.given)
        if len(bad) >= _MANY and bad.sum() >= _SOME_MISFITS and _SOME <= bad.mean() <= _BROKEN:
            return not self._perfect()
        return len(bad) < _FEWEST or bad.sum() < _FEWEST_MISFITS or bool(bad.mean() <= _BROKEN)

    def small_frame(self) -> list[Meaning]:
        """Meanings with which the boxes fill a frame that is much smaller than the images."""
        given, limits = self.given, self.numbers.limits
        if not self.any_frame or (given.frame != PIXELS and _share(self.numbers, given) <= _BROKEN):
            return []
        if given.frame == PIXELS and self._are_fractions():
            return self._in_frame(FRACTIONS) or [Meaning(given.form, FRACTIONS)]
        if len(limits) < _PARTS_BOXES or len(np.unique(self.numbers.image)) < _PARTS_IMAGES:
            return []
        frames = [Frame((side, side)) for side in _PARTS if (limits >= 2 * side).all()]
        return next((found for frame in frames if (found := self._filling(frame))), [])

    def other_meanings(self) -> list[Meaning]:
        """Meanings with which (nearly) all boxes fit into their images, the best first."""
        if not self.any_frame:
            return self._in_frame(self.given.frame)
        if self._are_fractions():
            return self._in_frame(FRACTIONS)
        others = [Frame((side, side)) for side in _PARTS]
        return self._perfect() or self._in_frame(PIXELS) or next(filter(None, map(self._filling, others)), [])

    def _are_fractions(self) -> bool:
        """Whether the numbers are at most 1. Boxes of whole pixels are larger; fractions are not whole numbers."""
        values = self.numbers.values
        broken = (values != np.rint(values)).any(axis=1)
        largest = float(np.quantile(values.max(axis=1), 1 - _FITS))
        return len(values) >= _FEWEST_MISFITS and largest <= 1 + _SLACK and bool(broken.mean() > 0.5)

    def _perfect(self) -> list[Meaning]:
        """The only meaning in the given frame with which every box fits."""
        found = [m for m in self._in_frame(self.given.frame) if not self.numbers.misfits(m).any()]
        return found if len(found) == 1 else []

    def _filling(self, frame: Frame) -> list[Meaning]:
        return [m for m in self._in_frame(frame) if (self.numbers.extent(m) >= _FILLED).all()]

    def _in_frame(self, frame: Frame) -> list[Meaning]:
        """Meanings with which the boxes fit into a frame: the given form first, then the best."""
        found = [m for form in self.forms if _share(self.numbers, m := Meaning(form, frame)) <= _FITS]
        # In images that are nearly square, boxes fit with y before x, too.
        found = [m for m in found if m.form in ("xyxy", "xywh", "cxcywh", self.given.form)] or found
        return sorted(found, key=lambda m: (m.form != self.given.form, _share(self.numbers, m)))


def _share(numbers: Numbers, meaning: Meaning) -> float:
    return float(numbers.misfits(meaning).mean())


def _report(reporter: Reporter, given: Meaning, found: Meaning, numbers: Numbers) -> None:
    total, fit = len(numbers.values), int((~numbers.misfits(found)).sum())
    before = int((~numbers.misfits(given)).sum())
    first = ", ".join(f"{v:g}" for v in numbers.values[0])
    if found.form != given.form:
        what = f"({first}) is the first; as {_FORMS[found.form]} {fit} of {total} boxes fit into their images, "
        what += f"as {_FORMS[given.form]} {before}; --data.box-form format reads them as the format says"
        if found.form == "xyxy":
            reporter.report("boxes-as-corners", reporter.name, what)
        elif found.form == "xywh":
            reporter.report("boxes-as-sides", reporter.name, what)
        elif found.form == "yxyx":
            reporter.report("boxes-with-y-first", reporter.name, what)
        else:
            reporter.report("boxes-as-centers", reporter.name, what)
    if found.frame == given.frame:
        return
    largest = f"the largest number of {total} boxes is {numbers.values.max():g}"
    undo = "--data.box-frame format reads them as the format says"
    if found.frame == FRACTIONS:
        reporter.report("boxes-as-fractions", reporter.name, f"{largest}; {undo}")
    elif found.frame == PIXELS:
        reporter.report("boxes-as-pixels", reporter.name, f"{largest}; {undo}")
    elif found.frame.size:
        side = found.frame.size[0]
        message = f"the numbers go from 0 to {side:g} in images of all sizes: {largest}; {undo}"
        reporter.report("boxes-as-parts", reporter.name, message)


def _report_corner(reporter: Reporter, given: Meaning, numbers: Numbers) -> None:
    """Report that no box reaches beyond the top left part of its image."""
    x, y = numbers.extent(given)
    images = len(np.unique(numbers.image))
    if len(numbers.values) < _CORNER_BOXES or images < _CORNER_IMAGES or not 0 < max(x, y) <= _CORNER:
        return
    message = (
        f"all {len(numbers.values)} boxes lie in the top left {x:.0%} × {y:.0%} of their images; for images that were "
        f"smaller when they were annotated, give their size: --data.box-frame {max(x, y):.2g}x (a factor) or 640x640; "
        "if the boxes are right: --data.box-frame pixels"
    )
    reporter.report("boxes-in-corner", reporter.name, message)


def _refuse_unclear(reporter: Reporter, given: Meaning, found: list[Meaning], numbers: Numbers) -> None:
    bad = int(numbers.misfits(given).sum())
    choices = " or ".join(f"{_FORMS[m.form]} (--data.box-form {m.form})" for m in found)
    problem = f"{bad} of {len(numbers.values)} boxes do not fit into their images as {_FORMS[given.form]}"
    error = f"{reporter.name}: {problem}; they may be {choices}; choose one"
    reporter.refuse("unclear-boxes", reporter.name, f"{problem}; they may be {choices}", error)


def _refuse_oversized(reporter: Reporter, given: Meaning, numbers: Numbers) -> None:
    """Refuse boxes that reach far beyond their images, as boxes drawn on larger images do."""
    corners = given.corners(numbers.values)
    limits = np.ones((1, 2)) if given.frame.size else numbers.limits
    sound = np.asarray((corners[:, 2:] > corners[:, :2]).all(axis=1))
    far = np.asarray(sound & (corners[:, 2:] > (1 + _FAR) * limits).any(axis=1))
    if far.sum() < _FEWEST or far.mean() <= _OVERSIZED:
        _refuse_broken(reporter, given, numbers, int(sound.sum()))
        return
    x, y = (corners[sound, 2:] / (limits if len(limits) == 1 else limits[sound])).max(axis=0)
    width, height = numbers.values[sound, 2:].max(axis=0)
    problem = (
        f"{int(far.sum())} of {len(far)} boxes reach far beyond their images, up to {x:.3g} times the width and "
        f"{y:.3g} times the height (largest numbers {width:g} and {height:g}): the images seem to have been larger"
    )
    remedy = (
        "give that size: --data.box-frame 1920x1080 (the same for all), or --data.box-frame "
        f"{max(2, round(max(x, y))):g}x (so many times the image files); --data.box-frame format clips the boxes"
    )
    reporter.refuse("boxes-of-other-size", reporter.name, problem, f"{reporter.name}: {problem}; {remedy}")


def _refuse_broken(reporter: Reporter, given: Meaning, numbers: Numbers, sound: int) -> None:
    """Refuse a dataset of which most boxes fit with no meaning."""
    bad, total = int(numbers.misfits(given).sum()), len(numbers.values)
    if total < _BROKEN_BOXES or bad <= _MOSTLY * total:
        return
    first = ", ".join(f"{v:g}" for v in numbers.values[0])
    problem = (
        f"{bad} of {total} boxes do not fit into their images in any form ({total - sound} have no area or corners in "
        f"the wrong order; the first is {first})"
    )
    remedy = "check how they were exported; --data.box-frame format drops or clips them"
    reporter.refuse("unclear-boxes", reporter.name, problem, f"{reporter.name}: {problem}; {remedy}")
