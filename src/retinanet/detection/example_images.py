"""Example images of a dataset, with ground truth in white and detections in color."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinanet.data.array_windows import ArrayReader
from retinanet.data.dataset import Dataset
from retinanet.data.images import read_image
from retinanet.data.verify import other_size
from retinanet.detection.draw import draw, draw_boxes
from retinanet.detections import Detections
from retinanet.errors import DataError
from retinanet.files import write_atomically

if TYPE_CHECKING:
    from retinanet.detection.detector import Detector

# Longer side in pixels: enough to see small objects, and small enough to keep examples of every epoch.
_LONGEST = 1024


def spread(items: int, count: int) -> list[int]:
    """Choose at most ``count`` different positions among ``items``, evenly spaced from the first to the last."""
    return [int(i) for i in np.unique(np.linspace(0, items - 1, min(count, items)).round().astype(int))]


def read_example(dataset: Dataset, index: int) -> npt.NDArray[np.uint8]:
    """Read an image of a dataset, uint8 RGB ``(H, W, 3)``.

    Raises:
        DataError: the file cannot be read.
    """
    return read_image(dataset.path(index), dataset.pixel_range)


class Album:
    """Reads the images of a page and records the images that had to be left out.

    An image whose size differs from the size in the annotations is left out too, because its boxes would be drawn in
    the wrong places.

    Attributes:
        dataset: the dataset whose images are read.
        left_out: why an image was left out, by its position in the dataset.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.left_out: dict[int, str] = {}

    def image(self, index: int) -> npt.NDArray[np.uint8] | None:
        """Read an image, uint8 RGB ``(H, W, 3)``; ``None`` if it has to be left out."""
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
        """Describe how many images were left out, and why the first was; ``None`` if no image was left out."""
        if not self.left_out:
            return None
        count = len(self.left_out)
        first = next(iter(self.left_out.values()))
        return f"{count} {'image' if count == 1 else 'images'} cannot be shown on the page; the first: {first}"


def draw_example(
    image: npt.NDArray[np.uint8], dataset: Dataset, index: int, found: Detections
) -> npt.NDArray[np.uint8]:
    """Draw the ground truth of image ``index`` in white and ``found`` in color on a copy of ``image``."""
    rows = dataset.rows(index)
    with_truth = draw_boxes(image, dataset.boxes[rows][~dataset.ignore[rows]])
    return draw(with_truth, found, dataset.classes)


def prediction_images(
    detector: Detector, dataset: Dataset, count: int = 4, score: float = 0.3
) -> dict[str, npt.NDArray[np.uint8]]:
    """Draw the detections on a few images; every call chooses the same images.

    Args:
        detector: its classes must be those of the dataset.
        dataset: the examples are spread evenly over its images with objects, or over all images if none has any.
        count: the largest number of examples.
        score: the lowest score that is drawn.

    Returns:
        uint8 RGB ``(H, W, 3)``, the longer side at most 1024 pixels. The keys are valid file names.

    Raises:
        DataError: an image cannot be read.
    """
    with_objects = [i for i in dataset if not dataset.ignore[dataset.rows(i)].all()]
    candidates = with_objects or list(dataset)
    chosen = [candidates[i] for i in spread(len(candidates), count)]
    names = safe_names(Path(dataset.files[i]).stem for i in chosen)
    drawn = {}
    for name, index in zip(names, chosen, strict=True):
        image = read_example(dataset, index)
        found = _detections(detector, image, score)
        drawn[name] = shrunk(draw_example(image, dataset, index, found), _LONGEST)
    return drawn


def _detections(detector: Detector, image: npt.NDArray[np.uint8], score: float) -> Detections:
    """Detect objects in an image, tile by tile if the detector was trained on tiles."""
    tiling = detector.chosen_tiling(None)
    if tiling is None:
        return detector.detect([image], score)[0]
    return detector.detect_tiled(ArrayReader(image), tiling, score)


def save_images(folder: Path, images: Mapping[str, npt.NDArray[np.uint8]]) -> None:
    """Write each image as ``folder/NAME.jpg``.

    Raises:
        RetinaNetError: a file cannot be written.
    """
    for name, image in images.items():
        write_atomically(folder / f"{name}.jpg", partial(Image.fromarray(image).save, quality=88))


def shrunk(image: npt.NDArray[np.uint8], longest: int) -> npt.NDArray[np.uint8]:
    """Scale ``image`` down until its longer side is at most ``longest``."""
    smaller = Image.fromarray(image)
    smaller.thumbnail((longest, longest))  # never enlarges
    return np.array(smaller)


def safe_names(names: Iterable[str]) -> list[str]:
    """Make each name different and valid as a file name and in MLflow: letters, digits, spaces and ``_.-`` only."""
    taken: set[str] = set()
    result = []
    for name in names:
        plain = re.sub(r"[^\w.\- ]+", "_", name)[:80].strip(". ") or "_"
        unique, number = plain, 1
        while unique.lower() in taken:  # some file systems ignore case
            number += 1
            unique = f"{plain}-{number}"
        taken.add(unique.lower())
        result.append(unique)
    return result
