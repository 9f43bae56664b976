"""The detector: loads weights and detects objects in images, as ``supervision.Detections``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from retinanet.anchors import AnchorGrid, make_grid
from retinanet.config import AnchorSpec
from retinanet.data.deep_pixels import PixelRange
from retinanet.data.image_sizes import batches_of_one_size, scaled_size
from retinanet.data.images import read_image, to_rgb
from retinanet.data.transforms import normalized_batch, resize_image
from retinanet.decode_config import ResolvedDecodeConfig, limit_note, nonfinite_note
from retinanet.detections import Detections
from retinanet.errors import ConfigError, DataError
from retinanet.hardware import autocast, resolve_device, resolve_precision
from retinanet.machine import Precision
from retinanet.model import Outputs, RetinaNet
from retinanet.model.inference import for_inference
from retinanet.model_info import ModelInfo
from retinanet.postprocess import postprocess
from retinanet.zoo.weights import load_weights

if TYPE_CHECKING:
    import supervision

_ACCEPTED = "give a path, a Pillow image, a uint8 RGB array, or a list of those"

ImageLike = str | Path | npt.NDArray[Any] | Image.Image


def load(weights: str | Path, precision: Precision = "auto", device: str = "auto", compile: bool = False) -> Detector:
    """Load a detector.

    Args:
        weights: path of a ``.safetensors`` file that ``retinanet train`` wrote, or the name of a bundled model
            (``person``).
        precision: arithmetic of the network; ``auto``: bf16 if the hardware supports it, else fp32.
        device: ``cpu``, ``cuda``, …; ``auto``: a GPU if there is one.
        compile: run the network through ``torch.compile``. Compilation takes up to a minute for each new image size
            and needs a C++ compiler, so it is worthwhile for many images.

    Raises:
        CheckpointError: the file does not exist or was not written by this package.
        ConfigError: the device cannot be used.
    """
    model, info = load_weights(weights)
    return Detector(model, info, precision, device, compile)


class Detector:
    """Detects objects in images.

    Args:
        model: the network; it is not changed.
        info: its classes and settings.
        precision: arithmetic of the network.
        device: where to run it.
        compile: see :func:`load`.

    Attributes:
        model: the network as it was given.
        network: a copy of it prepared by :func:`retinanet.model.inference.for_inference`, on ``device``.
        info: classes and settings.
    """

    def __init__(
        self,
        model: RetinaNet,
        info: ModelInfo,
        precision: Precision = "auto",
        device: str = "auto",
        compile: bool = False,
    ) -> None:
        self.device = resolve_device(device)
        self.dtype = resolve_precision(precision, self.device)
        self.model = model
        self.network = for_inference(model, self.dtype).to(self.device)
        self.compiled = compile
        if compile:
            self.network.compile()
        self.info = info

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, indexed by ``class_id``."""
        return self.info.classes

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a sequence of str; it is one path here
        self, source: ImageLike, score: float = ..., batch: int = ..., max_detections: int | None = ...
    ) -> supervision.Detections: ...

    @overload
    def __call__(
        self, source: Sequence[ImageLike], score: float = ..., batch: int = ..., max_detections: int | None = ...
    ) -> list[supervision.Detections]: ...

    def __call__(
        self,
        source: ImageLike | Sequence[ImageLike],
        score: float = 0.3,
        batch: int = 8,
        max_detections: int | None = None,
    ) -> supervision.Detections | list[supervision.Detections]:
        """Detect objects in one image, or in each image of a list.

        Args:
            source: a path, a Pillow image, a uint8 RGB array ``(H, W, 3)`` (or gray ``(H, W)``), or a list of these.
            score: lowest score returned.
            batch: images that go through the network together.
            max_detections: largest number of detections per image. Unset: the number that the weights store. If an
                image reaches it, a warning says so.

        Returns:
            ``supervision.Detections`` (a list if ``source`` is a list) with ``xyxy`` in pixels of the image,
            ``confidence``, ``class_id``, and names in ``data["class_name"]``; best first.

        Raises:
            DataError: an image cannot be read or has the wrong shape or type.
        """
        from retinanet.detection.draw import (
            to_supervision,  # supervision takes a second to import; training does not need it
        )

        if not 0 <= score < 1 or batch < 1:
            raise ConfigError(f"score is {score} and batch {batch}; give 0 ≤ score < 1 and batch ≥ 1")
        single = isinstance(source, str | Path | np.ndarray | Image.Image)
        if not single and not isinstance(source, list | tuple):
            raise DataError(f"cannot detect in a {type(source).__name__}; {_ACCEPTED}")
        images: Sequence[ImageLike] = [source] if single else source  # type: ignore[list-item, assignment]
        arrays = [_as_rgb(image, self.info.config.data.pixel_range) for image in images]
        results = self.detect([_as_tensor(a) for a in arrays], score, batch, max_detections)
        if limited := sum(len(each.limited) for each in results):
            warnings.warn(limit_note(limited, len(results), self.decode_config(score, max_detections)), stacklevel=2)
        if nonfinite := sum(len(each.nonfinite) for each in results):
            warnings.warn(nonfinite_note(nonfinite, len(results)), RuntimeWarning, stacklevel=2)
        found = [to_supervision(each, self.classes) for each in results]
        return found[0] if single else found

    @torch.inference_mode()
    def detect(
        self,
        images: Sequence[Tensor],
        score: float | None = None,
        batch: int = 8,
        max_detections: int | None = None,
    ) -> list[Detections]:
        """Detect objects in uint8 RGB tensors ``(3, H, W)`` of any size; boxes are in pixels of each image.

        Only images with the same size after scaling share a batch, so the result of an image never depends on others.
        If ``score`` or ``max_detections`` is unset, the number that the weights store is used.
        """
        data = self.info.config.data
        shapes = [scaled_size(image.shape[-2], image.shape[-1], data) for image in images]
        results: dict[int, Detections] = {}
        for chunk in batches_of_one_size(shapes, batch):
            scaled = [resize_image(images[i], shapes[i], data) for i in chunk]
            found = self.detect_scaled(scaled, score, max_detections)
            for i, detections in zip(chunk, found, strict=True):
                results[i] = detections.rescaled(shapes[i], images[i].shape[-2:])
        return [results[i] for i in range(len(images))]

    @torch.inference_mode()
    def detect_scaled(
        self, images: Sequence[Tensor], score: float | None = None, max_detections: int | None = None
    ) -> list[Detections]:
        """Detect objects in tensors ``(3, h, w)`` in 0–255 that already have the network's input size."""
        settings = self.decode_config(score, max_detections)
        batch = normalized_batch(images, self.model.mean, self.model.std, self.device)
        grid = _grid_on(self.device, self.info.config.anchors, (batch.shape[-2], batch.shape[-1]))
        with autocast(self.device, self.dtype):
            outputs = self._outputs(batch)
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        return postprocess(outputs, grid, sizes, settings)

    def _outputs(self, batch: Tensor) -> Outputs:
        if not self.compiled:
            outputs: Outputs = self.network(batch)
            return outputs
        from torch._dynamo.exc import TorchDynamoException

        try:
            outputs = self.network(batch)
        except TorchDynamoException as error:  # most often: no C++ compiler
            reason = str(error).strip().splitlines()[0][:160]
            raise ConfigError(f"the network cannot be compiled here ({reason}); leave compile out") from error
        return outputs

    def decode_config(self, score: float | None = None, max_detections: int | None = None) -> ResolvedDecodeConfig:
        """Return the settings of post-processing, with another score threshold or limit if given.

        Raises:
            ConfigError: ``score`` or ``max_detections`` is out of range.
        """
        stored = self.info.config.decode.at_most(max_detections)
        return stored if score is None else replace(stored, score=score)


@lru_cache(maxsize=16)  # cached, because a copy to the GPU for every image would keep it waiting
@torch.inference_mode(False)
def _grid_on(device: torch.device, anchors: AnchorSpec, size: tuple[int, int]) -> AnchorGrid:
    return make_grid(anchors, size).to(device)


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


def _as_tensor(array: npt.NDArray[np.uint8]) -> Tensor:
    # torch warns about read-only arrays, such as those of Pillow images, so these are copied
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).permute(2, 0, 1)
