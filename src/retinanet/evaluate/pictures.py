"""Examples of a dataset with their objects in white and what a detector found in colour."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from retinanet.data.dataset import Dataset
from retinanet.data.images import read_image
from retinanet.data.verify import other_size
from retinanet.detections import Detections
from retinanet.errors import DataError
from retinanet.files import write_atomically
from retinanet.page import draw_boxes

if TYPE_CHECKING:
    from retinanet.detect.detector import Detector

# Enough to see small objects, and little enough to keep one of every epoch.
_LONGEST = 1024


def spread(items: int, count: int) -> list[int]:
    """At most ``count`` different positions of ``items``, evenly spread from the first to the last."""
    return [int(i) for i in np.unique(np.linspace(0, items - 1, min(count, items)).round().astype(int))]


def read_example(dataset: Dataset, index: int) -> npt.NDArray[np.uint8]:
    """The picture of an image, uint8 RGB ``(H, W, 3)``.

    Raises:
        DataError: it cannot be read.
    """
    width, height = (int(v) for v in dataset.sizes[index])
    return read_image(dataset.path(index), expected_size=(width, height))


class Album:
    """Pictures for a page, which is made without those that cannot be shown.

    Boxes drawn on a picture of another size than the annotations refer to would be at the wrong places, so such a
    picture is not shown either.

    Attributes:
        dataset: whose pictures.
        left_out: why a picture was left out, by its position in the dataset.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.left_out: dict[int, str] = {}

    def picture(self, index: int) -> npt.NDArray[np.uint8] | None:
        """uint8 RGB ``(H, W, 3)``, or ``None`` for a picture that cannot be shown."""
        if index in self.left_out:
            return None
        try:
            image = read_example(self.dataset, index)
        except DataError as error:
            self.left_out[index] = str(error)
            return None
        if remark := other_size(self.dataset, index, (image.shape[1], image.shape[0])):
            self.left_out[index] = remark
            return None
        return image

    def remark(self) -> str | None:
        """A line on the pictures that were left out, if there are any."""
        if not self.left_out:
            return None
        count = len(self.left_out)
        first = next(iter(self.left_out.values()))
        return f"{count} {'picture' if count == 1 else 'pictures'} cannot be shown on the page; the first: {first}"


def draw_example(
    image: npt.NDArray[np.uint8], dataset: Dataset, index: int, found: Detections
) -> npt.NDArray[np.uint8]:
    """A copy of ``image``, which is the dataset's at ``index``, with its objects in white and ``found`` in colour."""
    from retinanet.detect.draw import draw, to_supervision  # supervision takes a second to import

    rows = dataset.rows(index)
    objects = draw_boxes(image, dataset.boxes[rows][~dataset.ignore[rows]])
    return draw(objects, to_supervision(found, dataset.classes), dataset.classes)


def prediction_pictures(
    detector: Detector, dataset: Dataset, count: int = 4, score: float = 0.3
) -> dict[str, npt.NDArray[np.uint8]]:
    """The same few examples whenever it is called, as a detector sees them.

    Args:
        detector: its classes must be the dataset's.
        dataset: the examples are spread evenly over its images with objects, or over all if none has any.
        count: at most how many.
        score: lowest score drawn.

    Returns:
        uint8 RGB ``(H, W, 3)``, the longest side at most 1024 pixels, by names that can be file names.

    Raises:
        DataError: a picture cannot be read.
    """
    with_objects = [i for i in dataset if not dataset.ignore[dataset.rows(i)].all()]
    candidates = with_objects or list(dataset)
    chosen = [candidates[i] for i in spread(len(candidates), count)]
    names = safe_names(Path(dataset.files[i]).stem for i in chosen)
    pictures = {}
    for name, index in zip(names, chosen, strict=True):
        image = read_example(dataset, index)
        [found] = detector.detect([torch.from_numpy(image.copy()).permute(2, 0, 1)], score)
        pictures[name] = shrunk(draw_example(image, dataset, index, found), _LONGEST)
    return pictures


def save_pictures(folder: Path, pictures: Mapping[str, npt.NDArray[np.uint8]]) -> None:
    """Write each picture as ``folder/NAME.jpg``.

    Raises:
        RetinaNetError: a file cannot be written.
    """
    for name, image in pictures.items():
        write_atomically(folder / f"{name}.jpg", partial(Image.fromarray(image).save, quality=88))


def shrunk(image: npt.NDArray[np.uint8], longest: int) -> npt.NDArray[np.uint8]:
    """``image`` with its longest side at most ``longest``."""
    picture = Image.fromarray(image)
    picture.thumbnail((longest, longest))  # leaves smaller ones as they are
    return np.array(picture)


def safe_names(names: Iterable[str]) -> list[str]:
    """Different names, one for each, of letters, digits, spaces and ``_.-`` only: files and MLflow take these."""
    taken: set[str] = set()
    result = []
    for name in names:
        plain = re.sub(r"[^\w.\- ]+", "_", name)[:80].strip(". ") or "_"
        unique, number = plain, 1
        while unique.lower() in taken:  # some file systems do not tell A from a
            number += 1
            unique = f"{plain}-{number}"
        taken.add(unique.lower())
        result.append(unique)
    return result
