"""The base class of detectors: images in, detections out. It imports no torch."""

from __future__ import annotations

import hashlib
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinanet.data.array_windows import ArrayReader
from retinanet.data.deep_pixels import PixelRange
from retinanet.data.image_sizes import batches_of_one_padded_size, scale_factor, scaled_size
from retinanet.data.images import read_image, to_rgb
from retinanet.data.windows import WindowReader, open_windows
from retinanet.decode_config import (
    DecodeConfig,
    LowestScore,
    ResolvedDecodeConfig,
    limit_note,
    nonfinite_note,
    require_lowest_score,
)
from retinanet.detection.input_sizes import InputSizes
from retinanet.detection.results import to_supervision
from retinanet.detection.tile_plan import TileOptions, TileSide, Tiling
from retinanet.detection.tiles import detect_tiled
from retinanet.detections import Detections
from retinanet.errors import ConfigError, DataError
from retinanet.model_info import ModelInfo

if TYPE_CHECKING:
    import supervision

_ACCEPTED = "give a path, a Pillow image, a uint8 RGB array, or a list of those"

ImageLike = str | Path | npt.NDArray[Any] | Image.Image

# RGB ``(h, w, 3)`` in 0–255: uint8, or float32 after bilinear scaling.
Pixels = npt.NDArray[Any]


class Detector(ABC):
    """Detects objects in images. :func:`retinanet.load` returns one.

    A subclass runs a network: :class:`retinanet.detection.pytorch.PyTorchDetector`, or
    :class:`retinanet.detection.runtime.RuntimeDetector` for exported files.

    Attributes:
        info: classes and settings.
    """

    def __init__(self, info: ModelInfo) -> None:
        self.info = info

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, indexed by ``class_id``."""
        return self.info.classes

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a sequence of str; it is one path here
        self,
        source: ImageLike,
        score: LowestScore = ...,
        batch: int = ...,
        max_detections: int | None = ...,
        tile: TileSide | None = ...,
        overlap: int | None = ...,
        tile_scales: Sequence[float] = ...,
    ) -> supervision.Detections: ...

    @overload
    def __call__(
        self,
        source: Sequence[ImageLike],
        score: LowestScore = ...,
        batch: int = ...,
        max_detections: int | None = ...,
        tile: TileSide | None = ...,
        overlap: int | None = ...,
        tile_scales: Sequence[float] = ...,
    ) -> list[supervision.Detections]: ...

    def __call__(
        self,
        source: ImageLike | Sequence[ImageLike],
        score: LowestScore = 0.3,
        batch: int = 8,
        max_detections: int | None = None,
        tile: TileSide | None = None,
        overlap: int | None = None,
        tile_scales: Sequence[float] = (1.0,),
    ) -> supervision.Detections | list[supervision.Detections]:
        """Detect objects in one image, or in each image of a list.

        Args:
            source: a path, a Pillow image, a uint8 RGB array ``(H, W, 3)`` (or gray ``(H, W)``), or a list of these.
            score: lowest score returned. ``"auto"``: the threshold with the best F1 on val, which a training stores in
                the weights.
            batch: images, or tiles, that go through the network together.
            max_detections: largest number of detections per image. Unset: the number that the weights store; with
                tiles, no limit per image but this number per tile. If an image reaches a limit, a warning says so.
            tile: divide each image into tiles of this side in pixels, for small objects in large images. ``"auto"``:
                the side at which objects appear as large as in the training. ``"none"``: each image is scaled
                as a whole. Unset: ``"none"``, or ``"auto"`` if the model was trained on tiles.
            overlap: pixels that neighboring tiles share. Unset: the length of the largest learnt object.
            tile_scales: passes over the image, such as ``(1, 0.5)``: the second has tiles of twice the side, for
                objects that are larger than a tile.

        Returns:
            ``supervision.Detections`` (a list if ``source`` is a list) with ``xyxy`` in pixels of the image,
            ``confidence``, ``class_id``, and names in ``data["class_name"]``; best first. If supervision is not
            installed, a :class:`retinanet.detection.results.PlainDetections` with these attributes.

        Raises:
            ConfigError: a setting is out of range, or ``"auto"`` and the model stores no object sizes or threshold.
            DataError: an image cannot be read or has the wrong shape or type.
        """
        score = self.lowest_score(score)
        if batch < 1:
            raise ConfigError(f"batch is {batch}; give at least 1")
        single = isinstance(source, str | Path | np.ndarray | Image.Image)
        if not single and not isinstance(source, list | tuple):
            raise DataError(f"cannot detect in a {type(source).__name__}; {_ACCEPTED}")
        images: Sequence[ImageLike] = [source] if single else source  # type: ignore[list-item, assignment]
        pixel_range = self.info.config.data.pixel_range
        tiling = self.chosen_tiling(TileOptions.of(tile, overlap, tile_scales))
        if tiling is not None:
            results = []
            for image in images:
                with _windows_of(image, pixel_range) as reader:
                    results.append(self.detect_tiled(reader, tiling, score, batch, max_detections))
        else:
            results = self.detect([_as_rgb(image, pixel_range) for image in images], score, batch, max_detections)
        if limited := sum(len(each.limited) for each in results):
            settings = self.limits(score, max_detections, tiled=tiling is not None)
            per: Literal["image", "tile"] = "tile" if tiling and max_detections is None else "image"
            warnings.warn(limit_note(limited, len(results), settings, per), stacklevel=2)
        if nonfinite := sum(len(each.nonfinite) for each in results):
            warnings.warn(nonfinite_note(nonfinite, len(results)), RuntimeWarning, stacklevel=2)
        found = [to_supervision(each, self.classes) for each in results]
        return found[0] if single else found

    def detect(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        score: float | None = None,
        batch: int = 8,
        max_detections: int | None = None,
    ) -> list[Detections]:
        """Detect objects in uint8 RGB arrays ``(H, W, 3)`` of any size; boxes are in pixels of each image.

        Only images that are padded to the same size share a batch, so the result of an image never depends on others.
        If ``score`` or ``max_detections`` is unset, the number that the weights store is used.
        """
        shapes = [self.scaled_size(*image.shape[:2]) for image in images]
        results: dict[int, Detections] = {}
        for chunk in batches_of_one_padded_size(shapes, batch, self.info.config.data.pad_to):
            scaled = [self.resize(images[i], shapes[i]) for i in chunk]
            found = self.detect_scaled(scaled, score, max_detections)
            for i, detections in zip(chunk, found, strict=True):
                results[i] = self.in_image(detections, shapes[i], images[i].shape[:2])
        return [results[i] for i in range(len(images))]

    def lowest_score(self, given: LowestScore) -> float:
        """Return the number for ``auto``: the score threshold with the best mean F1 on val, if the weights store it.

        Raises:
            ConfigError: they store none.
        """
        require_lowest_score(given)
        if given != "auto":
            return given
        stored = self.info.metrics.get("threshold")
        if stored is None:
            raise ConfigError(
                "--score auto: these weights store no threshold; find it with 'retinanet eval' and give it as a number"
            )
        if not isinstance(stored, int | float) or not 0 < stored < 1:
            raise ConfigError(f"--score auto: these weights store {stored!r} as threshold; give a number")
        return float(stored)

    def chosen_tiling(self, given: TileOptions | None) -> Tiling | None:
        """Return how images are divided into tiles, or ``None`` if they are not.

        Without wishes of the user (``given`` is ``None``), a model that was trained on tiles divides images as with
        ``auto``.

        Raises:
            ConfigError: see :meth:`tiling`.
        """
        if given is None and self.info.config.data.tile is not None:
            given = TileOptions()
        return None if given is None or given.tile == "none" else self.tiling(given)

    def tiling(self, options: TileOptions) -> Tiling:
        """Choose side and overlap of the tiles for this model; ``note`` of the result says them in a sentence.

        Raises:
            ConfigError: ``options.tile`` is ``auto`` and the model stores no object sizes, or the overlap is too large.
        """
        data = self.info.config.data
        side = data.tile or data.size
        return Tiling.choose(options, self.info.objects, self.scaled_size(side, side)[0])

    def detect_tiled(
        self,
        reader: WindowReader,
        tiling: Tiling,
        score: float | None = None,
        batch: int = 8,
        max_detections: int | None = None,
        wanted: float = 0.0,
    ) -> Detections:
        """Detect objects in an image that is read by window, tile by tile; boxes are in pixels of the image.

        Args:
            reader: the image; see :func:`retinanet.data.windows.open_windows`.
            tiling: the division into tiles; see :meth:`tiling`.
            score: lowest score; unset: the number that the weights store.
            batch: largest number of tiles that go through the network together. It does not change the result.
            max_detections: largest number of detections in the image; unset: no limit. A tile has the limit that the
                weights store. If the image or a tile reaches its limit, the result is marked as ``limited``.
            wanted: a limit that costs only detections below this score is not marked.
        """
        return detect_tiled(self, reader, tiling, score, batch, max_detections, wanted)

    def limits(
        self, score: float | None = None, max_detections: int | None = None, tiled: bool = False
    ) -> ResolvedDecodeConfig:
        """Return the settings of post-processing of an image, or of the tiles of an image.

        ``max_detections`` is the limit of the image. If it is unset, the limit of the result is that of an image, or of
        a tile if ``tiled``.
        """
        if not tiled:
            return self.decode_config(score, max_detections)
        DecodeConfig().at_most(max_detections)  # refuse an invalid number
        own = self.decode_config(score, self.tile_limit(max_detections))
        return own if max_detections is None else replace(own, max_detections=max_detections)

    def tile_limit(self, max_detections: int | None) -> int | None:
        """Return the limit on the detections of a tile if ``max_detections`` is that of the image; None: as stored."""
        stored = self.info.config.decode.resolved().max_detections
        return max_detections if max_detections is not None and max_detections > stored else None

    def tile_batch(self, batch: int, shape: tuple[int, int]) -> int:
        """Return how many tiles of ``(h, w)`` input pixels go through the network together; ``batch`` is wanted."""
        return batch

    @property
    def streams(self) -> int:
        """Number of images that are computed at the same time, each alone; 1: a batch is computed as a whole.

        With several streams, images of different padded sizes may share a batch.
        """
        return 1

    @property
    def input_sizes(self) -> InputSizes:
        """The sizes of images in the input of the network."""
        return InputSizes(self.info.config.data)

    def scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the ``(height, width)`` that an image is scaled to for the network."""
        return self.input_sizes.scaled(height, width)

    def in_image(self, found: Detections, scaled: Sequence[int], size: Sequence[int]) -> Detections:
        """Convert boxes from an image that was ``scaled`` to ``(height, width)`` to the image of the given ``size``."""
        config = self.info.config
        down, across = size[0] / scaled[0], size[1] / scaled[1]
        if config.data.resize == "pillow_floor" and tuple(scaled) == scaled_size(size[0], size[1], config.data):
            down = across = 1 / scale_factor(size[0], size[1], config.data)  # before the sides were rounded down
        return found.scaled(across, down, inclusive=config.anchors.layout == "inclusive")

    @abstractmethod
    def resize(self, image: npt.NDArray[np.uint8], shape: tuple[int, int]) -> Pixels:
        """Scale uint8 RGB ``image`` ``(H, W, 3)`` to ``shape``, as in the training."""

    @abstractmethod
    def detect_scaled(
        self, images: Sequence[Pixels], score: float | None = None, max_detections: int | None = None
    ) -> list[Detections]:
        """Detect objects in RGB arrays ``(h, w, 3)`` in 0–255 that already have the network's input size."""

    def fingerprint(self) -> str:
        """Return a text that differs between detectors with other classes, settings, weights or arithmetic."""
        return hashlib.blake2b(json.dumps(self.info.to_dict()).encode(), digest_size=16).hexdigest()

    def decode_config(self, score: float | None = None, max_detections: int | None = None) -> ResolvedDecodeConfig:
        """Return the settings of post-processing, with another score threshold or limit if given.

        Raises:
            ConfigError: ``score`` or ``max_detections`` is out of range.
        """
        stored = self.info.config.decode.at_most(max_detections)
        return stored if score is None else replace(stored, score=score)


def _windows_of(image: ImageLike, pixel_range: PixelRange | None) -> WindowReader:
    if isinstance(image, str | Path):
        return open_windows(image, pixel_range)
    return ArrayReader(_as_rgb(image, pixel_range))


def _as_rgb(image: ImageLike, pixel_range: PixelRange | None) -> npt.NDArray[np.uint8]:
    if isinstance(image, str | Path):
        return read_image(Path(image), pixel_range)
    if isinstance(image, Image.Image):
        return to_rgb(image, pixel_range)
    if not isinstance(image, np.ndarray):
        raise DataError(f"cannot detect in a {type(image).__name__}; {_ACCEPTED}")
    if image.dtype != np.uint8:
        raise DataError(f"the array holds {image.dtype}; give uint8 values from 0 to 255")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(f"the array has shape {image.shape}; expected (height, width, 3) RGB or (height, width) gray")
    return image
