"""Find out which image the annotations refer to: stored or turned by EXIF, of the file's size or of another.

Everything after the readers uses the upright image, as the image files are shown and as ``retinanet detect`` reads
them. Boxes that refer to another image are converted to it. The decision is made for a whole split, from the image
sizes in the annotations and from the boxes: a box that reaches beyond one of the two images refers to the other. A
split in which nothing shows it follows the other splits (:mod:`retinanet.data.split_frames`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retinanet.data.box_meaning import Floats, Reporter
from retinanet.data.exif import SIDEWAYS, turned_boxes
from retinanet.read_options import ReadOptions

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# A box reaches beyond an image if it does so by more than this fraction of the side, and by more than a pixel.
_SLACK = 0.02

# Boxes decide between the stored and the turned image if this fraction of them, and so many, fit into only one of
# them, and at most a quarter as many into only the other. The second pair holds against sizes that say otherwise.
_SHARE, _COUNT = 0.01, 1
_SHARE_AGAINST_SIZES, _COUNT_AGAINST_SIZES = 0.03, 2

# Sizes in the annotations are systematically wrong if this fraction of them differs from the image files.
_MOST, _FEWEST = 0.5, 2

# At most this fraction of the boxes may reach beyond the image that they are taken to refer to.
_FITS = 0.02

# If boxes drawn on a larger image all lay within the size of the file with less than this probability, they were drawn
# on the file.
_CHANCE = 0.01


@dataclass(frozen=True)
class Images:
    """Sizes of the images of a dataset, ``(N, …)``.

    Attributes:
        given: ``(N, 2)``, width and height in the annotations, or of the upright image file if they have none.
        measured: whether ``given`` was read from the image file.
        stored: ``(N, 2)``, width and height of the stored pixels; 0 if the file cannot be read.
        orientation: EXIF orientation, 1 to 8.
        files: paths of the image files, as in the dataset.
    """

    given: Ints
    measured: Mask
    stored: Ints
    orientation: Ints
    files: Sequence[str]

    @property
    def known(self) -> Mask:
        """Whether the image file can be read."""
        return self.stored[:, 0] > 0

    @property
    def turned(self) -> Mask:
        """Whether the image is turned by its EXIF orientation."""
        return self.known & (self.orientation > 1)

    @property
    def upright(self) -> Ints:
        """Width and height of the turned images, ``(N, 2)``."""
        return np.where(np.isin(self.orientation, SIDEWAYS)[:, None], self.stored[:, ::-1], self.stored)

    def largest(self) -> Ints:
        """Largest width and height that the annotations could refer to, ``(N, 2)``."""
        return np.maximum(np.maximum(self.given, self.stored), self.upright)


@dataclass(frozen=True)
class AnnotatedFrame:
    """Which images the annotations of a split refer to, if EXIF turns some of its images.

    Attributes:
        turned: number of images that are turned by EXIF.
        stored: number of turned images whose annotations refer to the stored pixels.
        known: whether the image sizes, the boxes or ``--data.exif`` show it; otherwise it is an assumption.
        fractions: whether the annotations are fractions of the image.
    """

    turned: int
    stored: int
    known: bool
    fractions: bool

    @property
    def mostly_stored(self) -> bool:
        """Whether the annotations of most turned images refer to the stored pixels."""
        return 2 * self.stored > self.turned


@dataclass(frozen=True)
class Placed:
    """Boxes, and the images that they refer to.

    Attributes:
        corners: ``(M, 4)`` in pixels.
        sizes: ``(N, 2)``, width and height of the images.
        scale: ``(N, 2)``, factors by which the boxes were scaled.
        frame: which images the annotations refer to; ``None`` if EXIF turns no image.
    """

    corners: Floats
    sizes: Ints
    scale: Floats
    frame: AnnotatedFrame | None


def place(
    corners: Floats, fractions: bool, image: Ints, images: Images, options: ReadOptions, reporter: Reporter
) -> Placed:
    """Convert boxes to pixels of the upright images.

    Args:
        corners: ``(M, 4)``, pixels of the images that the annotations refer to, or fractions of them.
        fractions: whether they are fractions.
        image: ``(M,)``, index of each box's image.
        images: sizes of the images.
        options: ``exif`` can name the image that the annotations refer to.
        reporter: gets problems that describe the decisions.
    """
    flat, known = _stored_images(None if fractions else corners, image, images, options, reporter)
    actual = np.where(flat[:, None], images.stored, images.upright)  # (N, 2), files as the annotations see them
    actual = np.where(images.known[:, None], actual, images.given)
    # Sizes of the stored pixels beside boxes on the turned image, or the reverse: the boxes have decided.
    crossed = images.turned & ~_same_shape(images.given, actual) & _same_shape(images.given[:, ::-1], actual)
    given = np.where(crossed[:, None], images.given[:, ::-1], images.given)
    given = np.where(images.measured[:, None], actual, given)
    sizes, scale = _resized(None if fractions else corners, image, given, actual, reporter)
    factors = sizes if fractions else scale
    corners = corners * np.concatenate([factors, factors], axis=1)[image]
    rows = np.flatnonzero(flat[image])
    corners[rows] = turned_boxes(corners[rows], images.orientation[image[rows]], sizes[image[rows]])
    sideways = flat & np.isin(images.orientation, SIDEWAYS)
    frame = AnnotatedFrame(int(images.turned.sum()), int(flat.sum()), known, fractions) if images.turned.any() else None
    return Placed(corners, np.where(sideways[:, None], sizes[:, ::-1], sizes), scale, frame)


def describe_frame(frame: AnnotatedFrame, images: int, first: str, reason: str) -> str:
    """Say which of ``images`` images are turned by EXIF, ``first`` to begin with, and what their boxes refer to."""
    counts = [(frame.turned - frame.stored, "the turned image"), (frame.stored, "the stored pixels")]
    frames = " and ".join(f"{count} to {target}" for count, target in counts if count)
    if 0 in (counts[0][0], counts[1][0]):
        frames = "to " + frames.partition(" to ")[2]
    subject = f"{frame.turned} of {images} images are turned by EXIF, first {first}"
    return f"{subject}; their boxes refer {frames}{reason}"


def _stored_images(
    corners: Floats | None, image: Ints, images: Images, options: ReadOptions, reporter: Reporter
) -> tuple[Mask, bool]:
    """Find the images whose annotations refer to the stored pixels, although EXIF turns the image.

    Returns:
        A mask ``(N,)``, and whether anything shows it. Otherwise it is an assumption.
    """
    turned = images.turned
    if not turned.any():
        return turned, True
    says_stored, says_upright = _said_by_sizes(images)
    stored: Mask
    known = True
    if options.exif != "auto":
        stored, reason = turned & (options.exif == "ignore"), f" (--data.exif {options.exif})"
    elif (choice := _chosen_by_boxes(corners, image, images, bool((says_stored | says_upright).any()))) is not None:
        stored, reason = turned & (choice == "stored"), ", because some boxes fit into no other"
    elif says_stored.any() or says_upright.any():
        rest = turned & ~says_stored & ~says_upright
        stored = says_stored | (rest & bool(says_stored.sum() > says_upright.sum()))
        reason = ", by the image sizes in the annotations"
    else:
        stored, reason = np.zeros_like(turned), ", although nothing shows it; if not, --data.exif ignore"
        known = False
    frame = AnnotatedFrame(int(turned.sum()), int(stored.sum()), known, corners is None)
    message = describe_frame(frame, len(turned), images.files[int(turned.argmax())], reason)
    reporter.report("exif-orientation", reporter.name, message)
    return stored, known


def _said_by_sizes(images: Images) -> tuple[Mask, Mask]:
    """Whether the size in the annotations is that of the stored pixels, or that of the turned image; each ``(N,)``."""
    tells = images.turned & ~images.measured & ~_same_shape(images.stored, images.upright)
    return tells & _same_shape(images.given, images.stored), tells & _same_shape(images.given, images.upright)


def _chosen_by_boxes(corners: Floats | None, image: Ints, images: Images, sizes_tell: bool) -> str | None:
    """Choose ``stored`` or ``upright`` by the boxes that fit into only one of them; ``None`` if they cannot tell."""
    if corners is None:
        return None
    rows = (images.turned & ~_same_shape(images.stored, images.upright))[image]
    boxes, at = corners[rows], image[rows]
    # Where the annotations were made on an image of another size, the files' sizes are no limits.
    full_size = (np.sort(images.given) == np.sort(images.stored)).all(axis=1)[at]
    beyond_stored = _beyond(boxes, images.stored[at]) & full_size
    beyond_upright = _beyond(boxes, images.upright[at]) & full_size
    for_upright, for_stored = int((beyond_stored & ~beyond_upright).sum()), int((beyond_upright & ~beyond_stored).sum())
    share, count = (_SHARE_AGAINST_SIZES, _COUNT_AGAINST_SIZES) if sizes_tell else (_SHARE, _COUNT)
    enough = max(count, share * len(boxes))
    if for_upright >= max(enough, 4 * for_stored):
        return "upright"
    return "stored" if for_stored >= max(enough, 4 * for_upright) else None


def _resized(corners: Floats | None, image: Ints, given: Ints, actual: Ints, reporter: Reporter) -> tuple[Ints, Floats]:
    """Handle image sizes in the annotations that most image files do not have.

    Args:
        corners: pixels; ``None`` if the boxes are fractions.
        image: index of each box's image.
        given: sizes in the annotations.
        actual: sizes of the image files.
        reporter: gets a problem that describes the decision.

    Returns:
        Sizes of the images that the boxes refer to once they are scaled, ``(N, 2)``, and factors of the boxes
        ``(N, 2)``. Other differences, such as those of a few images, are left for the check of the image files.
    """
    keep = given, np.ones(given.shape)
    differs = (given != actual).any(axis=1)
    if differs.sum() < max(_FEWEST, _MOST * len(differs)):
        return keep
    if corners is None:
        return actual, keep[1]
    rows = differs[image]
    boxes, at = corners[rows], image[rows]
    drawn_on_given = _beyond(boxes, given[at]).mean() <= _FITS if len(boxes) else True
    drawn_on_file = _beyond(boxes, actual[at]).mean() <= _FITS if len(boxes) else True
    if drawn_on_given and drawn_on_file and (given[differs, ::-1] == actual[differs]).all():
        drawn_on_given = False  # width and height were swapped
    elif drawn_on_given and drawn_on_file:
        shrunk = np.minimum(1.0, actual[at] / given[at]).prod(axis=1)
        # With each box, it becomes less likely that boxes on a larger image all miss the part beyond the file's size.
        drawn_on_given = bool(np.log(shrunk).sum() >= np.log(_CHANCE)) or bool((shrunk == 1).all())
    first = int(np.flatnonzero(differs)[0])
    sizes = f"{_size(given[first])} in the annotations, {_size(actual[first])} in the file"
    message = f"{int(differs.sum())} of {len(differs)} images have another size in the annotations ({sizes})"
    if drawn_on_given:
        reporter.report("other-image-size", reporter.name, f"{message}, and the boxes fit into the annotations' size")
        return actual, np.where(differs[:, None], actual / given, 1.0)
    if drawn_on_file:
        reporter.report("wrong-image-size", reporter.name, f"{message}, but the boxes fit into the files' size")
        return actual, keep[1]
    return keep


def _beyond(boxes: Floats, sizes: Ints) -> Mask:
    """Whether each box ``(n, 4)`` reaches beyond the right or bottom edge of an image of ``sizes`` ``(n, 2)``."""
    beyond: Mask = (boxes[:, 2:] > sizes + np.maximum(1.0, _SLACK * sizes)).any(axis=1)
    return beyond


def _same_shape(a: Ints, b: Ints) -> Mask:
    """Whether two sizes ``(N, 2)`` have the same aspect ratio, up to rounding to whole pixels."""
    same: Mask = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) <= np.maximum(a.max(axis=1), b.max(axis=1))
    return same


def _size(size: Ints) -> str:
    return f"{size[0]}×{size[1]}"
