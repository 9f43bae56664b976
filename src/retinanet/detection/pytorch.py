"""Detection with PyTorch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retinanet.anchors import AnchorGrid, make_grid
from retinanet.config import AnchorSpec
from retinanet.data.image_sizes import padded_size
from retinanet.data.transforms import normalized_batch, resize_image
from retinanet.decode_config import ResolvedDecodeConfig
from retinanet.detection.detector import Detector, Pixels
from retinanet.detection.streams import in_streams
from retinanet.detections import Detections
from retinanet.errors import ConfigError
from retinanet.hardware import autocast, resolve_device, resolve_precision
from retinanet.machine import Precision
from retinanet.model import Outputs, RetinaNet
from retinanet.model.inference import for_inference
from retinanet.model_info import ModelInfo
from retinanet.postprocess import postprocess
from retinanet.zoo.weights import load_weights

# Pixels of the tiles that go through the network together on the CPU. More take more memory and no less time.
_CPU_PIXELS = 1 << 19


def load_pytorch(
    weights: str | Path, precision: Precision = "auto", device: str = "auto", compile: bool = False
) -> PyTorchDetector:
    """Load a detector from a weight file or a bundled model; see :func:`retinanet.load`."""
    model, info = load_weights(weights)
    return PyTorchDetector(model, info, precision, device, compile)


class PyTorchDetector(Detector):
    """Detects objects in images with a PyTorch model.

    Args:
        model: the network; it is not changed.
        info: its classes and settings.
        precision: arithmetic of the network.
        device: where to run it.
        compile: see :func:`retinanet.load`.

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
        super().__init__(info)
        self.device = resolve_device(device)
        self.dtype = resolve_precision(precision, self.device)
        self.model = model
        self.network = for_inference(model, self.dtype).to(self.device)
        self.compiled = compile
        if compile:
            self.network.compile()

    @property
    def streams(self) -> int:
        """Number of images that are computed at the same time, each alone; 1: a batch is computed as a whole."""
        return 1 if self.compiled or self.device.type != "cpu" else torch.get_num_threads()

    def tile_batch(self, batch: int, shape: tuple[int, int]) -> int:
        """Return how many tiles of ``(h, w)`` input pixels go through the network together; ``batch`` is wanted."""
        if self.device.type != "cpu" or 1 < self.streams <= batch:
            return batch
        return max(1, min(batch, _CPU_PIXELS // (shape[0] * shape[1])))

    def resize(self, image: npt.NDArray[np.uint8], shape: tuple[int, int]) -> Pixels:
        """Scale uint8 RGB ``image`` ``(H, W, 3)`` to ``shape``, as in the training."""
        tensor = _as_tensor(np.ascontiguousarray(image))
        return resize_image(tensor, shape, self.info.config.data).permute(1, 2, 0).numpy()

    def detect_scaled(
        self,
        images: Sequence[Pixels],
        score: float | None = None,
        max_detections: int | None = None,
        padded_to: tuple[int, int] | None = None,
    ) -> list[Detections]:
        """Detect objects in RGB arrays ``(h, w, 3)`` in 0–255 that already have the network's input size.

        On the CPU, a single image gets all threads; of several images, if there are as many as threads, each gets one.

        Args:
            images: the images.
            score: lowest score; unset: the number that the weights store.
            max_detections: largest number of detections per image; unset: the number that the weights store.
            padded_to: ``(H, W)`` of the batch, as an exported file with a fixed size has it. Unset: the next multiples
                of ``data.pad_to``.
        """
        settings = self.decode_config(score, max_detections)
        if 1 < self.streams <= len(images):
            one = partial(self._detect_one, settings=settings, padded_to=padded_to)
            return in_streams(one, images, self.streams)
        return self._detect_batch(images, settings, padded_to)

    def _detect_one(
        self, image: Pixels, settings: ResolvedDecodeConfig, padded_to: tuple[int, int] | None
    ) -> Detections:
        return self._detect_batch([image], settings, padded_to)[0]

    @torch.inference_mode()
    def _detect_batch(
        self, images: Sequence[Pixels], settings: ResolvedDecodeConfig, padded_to: tuple[int, int] | None
    ) -> list[Detections]:
        tensors = [_as_tensor(image) for image in images]
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        padded_to = padded_to or padded_size(sizes, self.info.config.data.pad_to)
        batch = normalized_batch(tensors, self.model.mean, self.model.std, self.device, padded_to)
        grid = _grid_on(self.device, self.info.config.anchors, (batch.shape[-2], batch.shape[-1]))
        with autocast(self.device, self.dtype):
            outputs = self._outputs(batch)
        return postprocess(outputs, grid, sizes, settings)

    def fingerprint(self) -> str:
        """Return a digest of the settings and of all weights, and the arithmetic of the network."""
        digest = hashlib.blake2b(super().fingerprint().encode(), digest_size=16)
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return f"{digest.hexdigest()} {self.dtype} {self.device.type}"

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


@lru_cache(maxsize=16)  # cached, because a copy to the GPU for every image would keep it waiting
@torch.inference_mode(False)
def _grid_on(device: torch.device, anchors: AnchorSpec, size: tuple[int, int]) -> AnchorGrid:
    return make_grid(anchors, size).to(device)


def _as_tensor(image: Pixels) -> Tensor:
    """Return ``image`` ``(h, w, 3)`` as a tensor ``(3, h, w)`` that shares its memory where possible."""
    # torch warns about read-only arrays, such as those of Pillow images, and accepts no negative strides
    unusual = not image.flags.writeable or min(image.strides) < 0
    return torch.from_numpy(np.array(image) if unusual else image).permute(2, 0, 1)
