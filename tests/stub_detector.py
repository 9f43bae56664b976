"""A detector without a network, for tests of everything around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinanet.config import Config
from retinanet.detection.detector import Detector, Pixels
from retinanet.detection.input_images import ImageFile
from retinanet.detection.input_sizes import InputSizes
from retinanet.detections import Detections
from retinanet.model_info import ModelInfo

SIZES = [(40, 30), (30, 40), (64, 64), (61, 40)]  # three padded sizes


def mixed_images(folder: Path) -> list[ImageFile]:
    """Write 90 images of four sizes in a fixed mixture; the third is broken."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(90):
        path = folder / f"{number:02}.png"
        size = SIZES[int(rng.integers(4))]
        Image.new("RGB", size, (int(rng.integers(256)), 0, 0)).save(path)
        files.append(ImageFile(path, Path(path.name)))
    files[2].path.write_bytes(b"no image")
    return files


class UnscaledSizes(InputSizes):
    def scaled(self, height: int, width: int) -> tuple[int, int]:
        return height, width


class StubDetector(Detector):
    """Finds 0 to 3 boxes that depend on the first pixel. Images are not scaled.

    Scores also depend on the other images of the batch, as the last bits of a real network may.

    Attributes:
        batches: first pixels of the images of each batch so far.
    """

    def __init__(self) -> None:
        config = Config()
        config = replace(config, data=replace(config.data, size=32))
        super().__init__(ModelInfo(("dark", "bright"), config, (0.0,) * 3, (1.0,) * 3))
        self.batches: list[list[int]] = []

    @property
    def input_sizes(self) -> InputSizes:
        return UnscaledSizes(self.info.config.data)

    def resize(self, image: npt.NDArray[np.uint8], shape: tuple[int, int]) -> Pixels:
        return image

    def detect_scaled(
        self, images: Sequence[Pixels], score: float | None = None, max_detections: int | None = None
    ) -> list[Detections]:
        values = [int(image[0, 0, 0]) for image in images]
        self.batches.append(values)
        shared = sum((place + 1) * value for place, value in enumerate(values)) % 97 / 1000
        return [self._found(value, shared, image.shape) for value, image in zip(values, images, strict=True)]

    def _found(self, value: int, shared: float, shape: tuple[int, ...]) -> Detections:
        count = value % 4
        boxes = np.array([[0, 0, shape[1] - i, shape[0] - i / 3] for i in range(count)], dtype=np.float32)
        scores = np.array([0.9 - i / 8 - shared for i in range(count)], dtype=np.float32)
        labels = np.full(count, value // 128, dtype=np.int64)
        return Detections.of_one_image(boxes.reshape(-1, 4), scores, labels)
