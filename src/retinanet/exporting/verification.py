"""Run a model and its exported file on the same images, and compare outputs, detections and AP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from retinanet.data.dataset import Dataset
from retinanet.data.image_sizes import batches_of_one_padded_size
from retinanet.data.images import read_image
from retinanet.detection.detector import Detector
from retinanet.detection.pytorch import PyTorchDetector
from retinanet.detection.runtime import RuntimeDetector, input_of
from retinanet.detections import Detections
from retinanet.evaluation.coco_ap import coco_metrics
from retinanet.exporting.agreement import EXACT, REDUCED, Agreement, Tolerance, compare_detections, compare_raw
from retinanet.exporting.graph import NetworkGraph, raw_names
from retinanet.exporting.raw_outputs import DetectorFile
from retinanet.exporting.sample_images import sample_images
from retinanet.progress import progress_bar

Pixels = npt.NDArray[np.uint8]

# Number of images that one side detects before the other, and of images that go through a network together.
_BLOCK, _BATCH = 64, 4

# Number of batches of the first block whose outputs are compared. The detections of all images are.
_RAW_BATCHES = 8


# Random outputs have no nearly equal scores.
_POSTPROCESSING = replace(EXACT, differing=0.001)


@dataclass(frozen=True)
class Verification:
    """The result of comparing a file with its model.

    Attributes:
        precision: arithmetic of the file in this comparison: ``fp32``, ``bf16`` or ``int8``.
        images: what the images are.
        agreement: differences of outputs and detections.
        postprocessing: differences of the post-processing in the file on random outputs; ``None`` without.
        ap: AP of the model and of the file, 0–1; ``None`` without a dataset.
        max_drop: largest accepted loss of AP, in points.
    """

    precision: str
    images: str
    agreement: Agreement
    postprocessing: Agreement | None = None
    ap: tuple[float, float] | None = None
    max_drop: float = 0.3

    @property
    def tolerance(self) -> Tolerance:
        """The accepted differences. In reduced precision AP decides alone, if it is known."""
        reduced = replace(REDUCED, score=np.inf, differing=np.inf) if self.ap is not None else REDUCED
        return EXACT if self.precision == "fp32" else reduced

    @property
    def faults(self) -> list[str]:
        """What is wrong, as sentences; empty if the file agrees with its model."""
        found: list[str] = []
        parts = [("", self.agreement, self.tolerance)]
        if self.postprocessing is not None:
            parts.append(("post-processing: ", self.postprocessing, _POSTPROCESSING))
        if self.ap is not None and self.drop > (0.05 if self.precision == "fp32" else self.max_drop):
            found.append(f"AP falls by {self.drop:.2f} points")
        for where, part, accepted in parts:
            if part.raw is not None and not part.raw <= accepted.raw:
                found.append(f"{where}an output differs by {part.raw:.2g}")
            if not part.within(replace(accepted, raw=np.inf)):
                found.append(f"{where}{part.differing} of {part.detections} detections differ")
        return found

    @property
    def drop(self) -> float:
        """Loss of AP in points; below 0 if the file is better."""
        return 0.0 if self.ap is None else 100 * (self.ap[0] - self.ap[1])

    def to_dict(self) -> dict[str, Any]:
        """Convert to what the metadata of the file stores."""
        agreement = self.agreement
        return {
            "precision": self.precision,
            "images": self.images,
            "count": agreement.images,
            "detections": agreement.detections,
            "differing": agreement.differing,
            "raw": agreement.raw,
            "box": agreement.box,
            "score": agreement.score,
            "ap": list(self.ap) if self.ap else None,
            "passed": not self.faults,
        }

    def table(self) -> list[str]:
        """The differences and the accepted ones, as lines of a table, and the verdict."""
        agreement, limits = self.agreement, self.tolerance
        lines = [f"{self.precision} on {agreement.images} images ({self.images}):"]
        lines.append(f"  {'':<28}{'difference':>12}{'accepted':>12}")
        raw = agreement.raw
        lines += [f"  {'outputs, relative':<28}{raw:>12.2g}{_accepted(limits.raw):>12}"] if raw is not None else []
        share = "any" if np.isinf(limits.differing) else f"{limits.differing:.1%}"
        lines.append(
            f"  {'detections that differ':<28}{agreement.differing:>12}{share:>12}   of {agreement.detections}"
        )
        for name, value, limit in (
            ("corner, pixels", agreement.box, limits.box),
            ("score", agreement.score, limits.score),
        ):
            lines.append(f"  {'the others: ' + name:<28}{value:>12.2g}{_accepted(limit):>12}")
        if self.postprocessing is not None:
            part = self.postprocessing
            lines.append(f"  post-processing on random outputs: {part.detections} detections, {part.differing} differ")
        if self.ap is not None:
            lines.append(f"  AP: model {100 * self.ap[0]:.2f}, file {100 * self.ap[1]:.2f}")
        lines.append(f"  verdict: {'the file agrees with the model' if not self.faults else '; '.join(self.faults)}")
        return lines


def _tolerance(precision: str) -> Tolerance:
    return EXACT if precision == "fp32" else REDUCED


def _accepted(limit: float) -> str:
    return "any" if np.isinf(limit) else f"{limit:g}"


def verify_detector(
    model: PyTorchDetector,
    file: RuntimeDetector,
    precision: str,
    dataset: Dataset | None = None,
    console: Console | None = None,
    max_drop: float = 0.3,
) -> Verification:
    """Compare ``file`` with the float32 ``model`` that it was exported from. Both get the same resized images.

    Args:
        model: the model, with precision fp32 and the file's settings of post-processing.
        file: the file.
        precision: arithmetic of the file.
        dataset: images to compare on, with the classes of the model; AP is measured on it. Unset: a photo, drawn
            scenes and noise in several sizes.
        console: where progress is shown.
        max_drop: largest accepted loss of AP in points, if the precision is reduced.
    """
    samples = sample_images() if dataset is None else []
    count = len(samples) if dataset is None else len(dataset)
    sides = _Sides(model, file, _tolerance(precision))
    found: tuple[list[Detections], list[Detections]] = ([], [])
    with progress_bar(console or Console(), f"comparing {precision}", count) as bar:
        for start in range(0, count, _BLOCK):
            block = range(start, min(count, start + _BLOCK))
            images = [samples[i] if dataset is None else _image(dataset, i, model) for i in block]
            for side, detections in zip(found, sides.compare(images), strict=True):
                side += [each.moved(i) for i, each in zip(block, detections, strict=True)]
            bar.advance(len(block))
    ap = None if dataset is None else ap_of_both(dataset, *(Detections.concatenate(side) for side in found))
    name = "a photo, drawn scenes and noise" if dataset is None else dataset.name
    checked = sides.detector_file.compare_postprocessing() if sides.detector_file else None
    return Verification(precision, name, sides.agreement, checked, ap, max_drop)


def ap_of_both(dataset: Dataset, ours: Detections, theirs: Detections) -> tuple[float, float] | None:
    """AP of both sides, or ``None`` if the dataset has no objects."""
    if dataset.ignore.all():
        return None
    first, second = (coco_metrics(dataset, each).summary["AP"] for each in (ours, theirs))
    return first, second


def _image(dataset: Dataset, index: int, model: Detector) -> Pixels:
    return read_image(dataset.path(index), model.info.config.data.pixel_range)


class _Sides:
    """A model and its file, and the differences found so far."""

    def __init__(self, model: PyTorchDetector, file: RuntimeDetector, tolerance: Tolerance) -> None:
        self.model, self.file, self.tolerance = model, file, tolerance
        self.graph = NetworkGraph(model.model).eval()
        description = file.network.model
        self.detector_file = DetectorFile(file.network.path, description) if description.kind == "detector" else None
        self.decode = file.decode_config()
        self.agreement = Agreement()

    def compare(self, images: list[Pixels]) -> tuple[list[Detections], list[Detections]]:
        """Compare both sides on some images, and return the detections of each, in pixels of the images."""
        shapes = [self.file.scaled_size(*image.shape[:2]) for image in images]
        scaled = [self.model.resize(image, shape) for image, shape in zip(images, shapes, strict=True)]
        chunks = batches_of_one_padded_size(shapes, _BATCH, self.file.info.config.data.pad_to)
        # One side after the other, because two runtimes that take turns disturb each other's threads.
        # No limits are given: max_detections would raise the model's top_k, while that of a detector file is fixed.
        padded = self.file.network.model.size
        ours = _in_chunks(lambda some: self.model.detect_scaled(some, padded_to=padded), scaled, chunks)
        theirs = _in_chunks(self.file.detect_scaled, scaled, chunks)
        if not self.agreement.images:
            for chunk in chunks[:_RAW_BATCHES]:
                self.agreement += Agreement(raw=self._compare_raw([scaled[i] for i in chunk]))
        for a, b, shape in zip(ours, theirs, shapes, strict=True):
            self.agreement += compare_detections(a, b, shape, self.tolerance, self.decode.score)
        sizes = list(zip(shapes, (image.shape[:2] for image in images), strict=True))
        return (
            [self.file.in_image(each, *size) for each, size in zip(ours, sizes, strict=True)],
            [self.file.in_image(each, *size) for each, size in zip(theirs, sizes, strict=True)],
        )

    def _compare_raw(self, images: list[Any]) -> float:
        """Largest difference of the outputs on images of one size."""
        file = self.file.network.model
        # What surrounds the images must not matter.
        batch, sizes = input_of(images[: file.batch or len(images)], file, filling=77)
        with torch.inference_mode():
            expected = [each.numpy() for each in self.graph(torch.from_numpy(batch), torch.from_numpy(sizes))]
        compute = self.detector_file.raw_outputs if self.detector_file else self.file.network
        outputs = compute(batch, sizes)
        names = raw_names(len(self.model.info.config.anchors.strides))
        return compare_raw(expected, [outputs[name] for name in names])


def _in_chunks(
    detect: Callable[[list[Any]], list[Detections]], images: list[Any], chunks: list[list[int]]
) -> list[Detections]:
    """Detect objects in ``images``, those of a chunk together."""
    found: dict[int, Detections] = {}
    for chunk in chunks:
        found.update(zip(chunk, detect([images[i] for i in chunk]), strict=True))
    return [found[i] for i in range(len(images))]
