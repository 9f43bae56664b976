"""Decide together, for all splits of a dataset, which images the annotations refer to: stored or turned by EXIF.

The splits of a dataset come from the same program. In a split with square images only, or with images that are only
turned upside down, nothing shows what its boxes refer to. Such a split follows the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from retinanet.data.dataset import Dataset
from retinanet.data.exif import SIDEWAYS, turned_boxes
from retinanet.data.image_frames import AnnotatedFrame, describe_frame


def is_assumed(dataset: Dataset) -> bool:
    """Whether EXIF turns images of this split, and nothing in it shows which images its boxes refer to."""
    return dataset.frame is not None and not dataset.frame.known


def is_known(dataset: Dataset) -> bool:
    """Whether EXIF turns images of this split, and it shows which images its boxes refer to."""
    return dataset.frame is not None and dataset.frame.known


def with_common_frame(splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Let the splits in which nothing shows the frame of the boxes follow the others.

    Splits that contradict each other keep what their own annotations show, with a problem in the first of them.
    """
    voters = {name: data.frame for name, data in splits.items() if data.frame is not None and data.frame.known}
    result = dict(splits)
    if not voters:
        return result
    images = {stored: sum(f.turned for f in voters.values() if f.mostly_stored is stored) for stored in (False, True)}
    stored = images[True] > images[False]
    like = _names(voters, stored)
    for name, data in splits.items():
        if is_assumed(data):
            result[name] = _following(data, stored, like)
    if all(images.values()):
        first = next(iter(voters))
        result[first] = result[first].with_problem(
            "exif-contradiction",
            splits[first].title,
            f"boxes refer to the stored pixels in {_names(voters, True)} and to the turned image in "
            f"{_names(voters, False)}; if this is wrong, set --data.exif",
        )
    return result


def _names(voters: Mapping[str, AnnotatedFrame], stored: bool) -> str:
    return ", ".join(name for name, frame in voters.items() if frame.mostly_stored is stored)


def _following(dataset: Dataset, stored: bool, like: str) -> Dataset:
    """Read the boxes as those of the splits ``like``, which refer to the stored pixels or to the turned image."""
    assert dataset.frame is not None
    assert dataset.orientations is not None
    frame = replace(dataset.frame, stored=dataset.frame.turned if stored else 0, known=True)
    first = dataset.files[int((dataset.orientations > 1).argmax())]
    message = describe_frame(frame, len(dataset), first, f", as those of {like}")
    problems = tuple(
        replace(each, message=message) if each.code == "exif-orientation" else each for each in dataset.problems
    )
    boxes = dataset.boxes
    if stored:
        image = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
        boxes = read_as_stored(dataset, boxes.astype(np.float64), image, frame.fractions).astype(np.float32)
    return replace(dataset, boxes=boxes, frame=frame, problems=problems)


def read_as_stored(
    dataset: Dataset,
    boxes: npt.NDArray[np.floating],
    image: npt.NDArray[np.int64],
    fractions: bool | npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """Convert boxes that refer to the stored pixels, and were read as boxes of the turned images.

    Args:
        dataset: the images; EXIF turns some of them.
        boxes: ``(n, 4)`` ``xyxy`` in pixels.
        image: ``(n,)``, position of each box's image in the dataset.
        fractions: whether the boxes were given in fractions of the image, of all boxes or of each ``(n,)``.

    Returns:
        ``(n, 4)``, boxes of the turned images.
    """
    assert dataset.orientations is not None
    orientation, upright = dataset.orientations[image], dataset.sizes[image].astype(np.int64)
    stored = np.where(np.isin(orientation, SIDEWAYS)[:, None], upright[:, ::-1], upright)
    factors = np.where(np.broadcast_to(fractions, len(boxes))[:, None], stored / upright, 1.0)
    return turned_boxes(boxes * np.tile(factors, 2), orientation, stored)
