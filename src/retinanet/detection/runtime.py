"""Detection with exported files, without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retinanet.data.image_sizes import padded_size
from retinanet.decode_config import ResolvedDecodeConfig
from retinanet.detection.detector import Detector, Pixels
from retinanet.detection.input_sizes import InputSizes
from retinanet.detections import Detections
from retinanet.errors import CheckpointError, ConfigError
from retinanet.machine import Precision
from retinanet.optional_packages import explain_missing_packages
from retinanet.runtime.anchors import anchor_boxes
from retinanet.runtime.exported import ExportedModel, ExportedNetwork
from retinanet.runtime.postprocess import Outputs, postprocess
from retinanet.runtime.resize import resize_image

# The formats of exported files.
EXPORTED = (".onnx", ".xml", ".pt2")


def load_exported(
    path: Path,
    precision: Precision = "auto",
    device: str = "auto",
    threads: int | None = None,
    streams: int | None = None,
    trusted: bool = False,
) -> RuntimeDetector:
    """Load a detector from an exported file; see :func:`retinanet.load`.

    PyTorch unpickles parts of ``.pt2`` files and evaluates text in them, so such a file can run code. It is loaded only
    if it is ``trusted``.
    """
    for name, value in (("threads", threads), ("streams", streams)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    suffix = path.suffix.lower()
    if streams is not None and suffix != ".xml":
        raise ConfigError(f"{path}: streams is a setting of OpenVINO files (.xml); leave it out")
    if threads is not None and suffix == ".pt2":
        raise ConfigError(f"{path}: threads is a setting of ONNX and OpenVINO files; use torch.set_num_threads")
    if suffix == ".pt2" and not trusted:
        raise CheckpointError(
            f"{path}: PyTorch's loader of .pt2 files can run code in them; use the weights, or export them with --to "
            "onnx or --to openvino. Only 'retinanet verify --trust' opens a .pt2 file"
        )
    network: ExportedNetwork
    with explain_missing_packages(str(path)):
        match suffix:
            case ".onnx":
                from retinanet.runtime.onnxruntime import OnnxNetwork

                network = OnnxNetwork(path, precision, device, threads)
            case ".xml":
                from retinanet.runtime.openvino import OpenVinoNetwork

                network = OpenVinoNetwork(path, precision, device, threads, streams)
            case _:
                from retinanet.runtime.torch_program import TorchProgram

                network = TorchProgram(path, precision, device)
    return RuntimeDetector(network)


class RuntimeDetector(Detector):
    """Detects objects in images with an exported file.

    Attributes:
        network: the file in its runtime.
        info: classes and settings.
    """

    def __init__(self, network: ExportedNetwork) -> None:
        super().__init__(network.model.info)
        self.network = network

    @property
    def input_sizes(self) -> InputSizes:
        """The sizes of images in the input of the network, which is fixed in some files."""
        return InputSizes(self.info.config.data, self.network.model.size)

    def resize(self, image: npt.NDArray[np.uint8], shape: tuple[int, int]) -> Pixels:
        """Scale uint8 RGB ``image`` ``(H, W, 3)`` to ``shape``, as in the training up to rounding."""
        return resize_image(image, shape, self.info.config.data)

    def detect_scaled(
        self, images: Sequence[Pixels], score: float | None = None, max_detections: int | None = None
    ) -> list[Detections]:
        """Detect objects in RGB arrays ``(h, w, 3)`` in 0–255 that already have the network's input size."""
        settings = self.decode_config(score, max_detections)
        model = self.network.model
        steps = model.batch or max(1, len(images))
        found: list[Detections] = []
        for begin in range(0, len(images), steps):
            batch, sizes = input_of(images[begin : begin + steps], model)
            outputs = self.network(batch, sizes)
            own = [(image.shape[0], image.shape[1]) for image in images[begin : begin + steps]]
            height, width = batch.shape[2:]
            if model.kind == "detector":
                found += [_decoded(outputs, image, settings) for image in range(len(own))]
            else:
                levels, anchors = Outputs.of(outputs), anchor_boxes(self.info.config.anchors, (height, width))
                if [level.shape[1] for level in levels.logits] != [len(level) for level in anchors]:
                    raise CheckpointError(
                        f"{self.network.path}: the anchors of its metadata do not fit the network; export it again"
                    )
                found += postprocess(levels, anchors, own, settings, (height, width))
        return found

    def tile_limit(self, max_detections: int | None) -> int | None:
        """Return the limit on the detections of a tile if ``max_detections`` is that of the image; None: as stored."""
        # The limit of a file that contains the post-processing cannot be raised.
        return None if self.network.model.kind == "detector" else super().tile_limit(max_detections)

    def fingerprint(self) -> str:
        """Return a digest of the exported file, and the arithmetic that its runtime uses."""
        digest = hashlib.blake2b(digest_size=16)
        for path in (self.network.path, self.network.path.with_suffix(".bin")):
            if path.is_file():
                digest.update(path.read_bytes())
        return f"{digest.hexdigest()} {self.network.arithmetic}"

    def decode_config(self, score: float | None = None, max_detections: int | None = None) -> ResolvedDecodeConfig:
        """Return the settings of post-processing, with another score threshold or limit if given.

        Raises:
            ConfigError: ``score`` or ``max_detections`` is out of range, or the file contains the post-processing with
                stricter limits.
        """
        settings = super().decode_config(score, max_detections)
        if self.network.model.kind == "detector":
            stored = self.info.config.decode.resolved()
            if settings.score < stored.score or settings.max_detections > stored.max_detections:
                raise ConfigError(
                    f"{self.network.path}: the file contains the post-processing, with scores from {stored.score:g} "
                    f"and at most {stored.max_detections} detections per image; export the model again for a lower "
                    "score or more detections"
                )
        return settings


def input_of(
    images: Sequence[Pixels], model: ExportedModel, filling: int = 0
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.int64]]:
    """Make the input of an exported file from RGB arrays ``(h, w, 3)``, at most ``model.batch`` of them.

    Returns:
        ``images`` ``(B, 3, H, W)``, with ``filling`` around each image, and ``sizes`` ``(B, 2)``. A fixed batch is
        filled up with images of one pixel.
    """
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    height, width = model.size or padded_size(sizes, model.info.config.data.pad_to)
    count = model.batch or len(images)
    batch = np.full((count, 3, height, width), filling, model.input_type)
    for row, image in zip(batch, images, strict=False):
        row[:, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
    return batch, np.array(sizes + [(1, 1)] * (count - len(images)), dtype=np.int64)


def _decoded(outputs: Mapping[str, npt.NDArray[Any]], image: int, settings: ResolvedDecodeConfig) -> Detections:
    """Return the detections of an image that a file with post-processing computed, limited to ``settings``."""
    count = int(outputs["counts"][image])
    boxes, scores, labels = (outputs[name][image, :count] for name in ("boxes", "scores", "labels"))
    # The file has compared logits with its own threshold, so only a higher threshold leaves detections out.
    kept = np.flatnonzero(scores > np.float32(settings.score))
    # A limit of the file matters if it left out scores above the threshold.
    limited = outputs["limits"][image] > np.float32(settings.score) or len(kept) >= settings.max_detections
    kept = kept[: settings.max_detections]
    found = Detections.of_one_image(boxes[kept], scores[kept], labels[kept])
    nonfinite = bool(outputs["nonfinite"][image])
    return replace(found, limited=_position(bool(limited)), nonfinite=_position(nonfinite))


def _position(marked: bool) -> npt.NDArray[np.int64]:
    """The position of a single image if it is marked, else nothing."""
    return np.zeros(int(marked), dtype=np.int64)
