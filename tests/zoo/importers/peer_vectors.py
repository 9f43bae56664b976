"""Networks of other programs and what their own code computed with them, and the comparison with imported detectors."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from retinanet.data.image_sizes import padded_size
from retinanet.data.transforms import normalized_batch
from retinanet.detection.pytorch import PyTorchDetector
from retinanet.detections import Detections
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.zoo.importers import ImportOptions

Load = Callable[..., tuple[RetinaNet, ModelInfo]]

# Full-size networks are with the tests; the others are in a folder beside the repository, if at all.
FIXTURES = Path(__file__).parent / "vectors"
SHARED = Path(__file__).resolve().parents[4] / "shared" / "peer_vectors"

# The networks were run on images of this size instead of 800 and 1333.
SMALL = ImportOptions(size=256, max_size=426)

LEVELS = ("p3", "p4", "p5", "p6", "p7")


@dataclass(frozen=True)
class Vectors:
    """A network of a peer and its results.

    Attributes:
        folder: where they are.
        images: folder of the images.
        bgr: the order of the channels of the network's input.
        resized_bgr: the order of the channels of the resized images.
        ratio_major: the order of the outputs.
    """

    folder: Path
    images: Path
    bgr: bool = False
    resized_bgr: bool = False
    ratio_major: bool = False

    @classmethod
    def of(cls, peer: str, name: str = "", **orders: bool) -> Vectors:
        """Vectors of a peer in a sub-folder ``name``; the test is skipped if they are not there."""
        here, shared = FIXTURES / peer / name, SHARED / peer / name
        folder = here if (here / "expected.safetensors").is_file() else shared
        if not (folder / "expected.safetensors").is_file():
            pytest.skip(f"the vectors of {peer} are not here")
        return cls(folder, FIXTURES if folder == here else SHARED / peer, **orders)

    def read(self, name: str) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = load_file(self.folder / f"{name}.safetensors")
        return tensors

    def image(self, name: str) -> npt.NDArray[np.uint8]:
        return np.array(Image.open(self.images / f"{name}.png").convert("RGB"))

    def state(self, keys: Path | None = None) -> dict[str, Tensor]:
        """The network's tensors; ``keys`` lists those of a full-size network, whose weights a formula gives."""
        return self.read("weights") if keys is None else rebuilt(keys, self.read("weights_1d_and_scales"))

    def settings(self) -> dict[str, dict[str, float]]:
        content = json.loads((self.folder / "expected.json").read_text())
        found: dict[str, dict[str, float]] = content["settings"]["postprocessing"]
        return found


def rebuilt(keys: Path, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a full-size network, from the list of their names and shapes, and from what is stored."""
    state = {}
    for line in keys.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        key, shape, _ = (part.strip() for part in line.split("\t"))
        sides = tuple(int(side) for side in shape.split("x") if side.isdecimal())
        if key in stored:
            state[key] = stored[key]
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(0)
        elif len(sides) == 4:
            values = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(sides).astype(np.float32)
            weight = torch.from_numpy(values * np.float32(math.sqrt(2 / math.prod(sides[1:]))))
            scale = stored.get(key + ".scale")
            state[key] = weight if scale is None else weight * scale.reshape(-1, 1, 1, 1)
        else:
            state[key] = torch.zeros(sides)
    return state


def detectors(loaded: tuple[RetinaNet, ModelInfo], vectors: Vectors) -> dict[str, PyTorchDetector]:
    """The imported network with each of the settings of post-processing."""
    model, info = loaded
    found = {}
    for name, values in vectors.settings().items():
        limits = {"top_k": int(values["topk"]), "max_detections": int(values["max"])}
        decode = replace(info.config.decode, score=values["score"], nms=values["nms"], **limits)  # type: ignore[arg-type]
        own = replace(info, config=replace(info.config, decode=decode))
        found[name] = PyTorchDetector(model, own, "fp32", "cpu")
    return found


def output_errors(model: RetinaNet, pixels: Tensor, expected: dict[str, Tensor], vectors: Vectors) -> dict[str, float]:
    """Largest difference of each output of the network that ``expected`` has, for normalized ``pixels`` in RGB."""
    with torch.inference_mode():
        outputs = model(pixels)
    errors = {}
    for kind, levels in (("logits", outputs.logits), ("deltas", outputs.deltas)):
        for level, ours in zip(LEVELS, levels, strict=True):
            theirs = expected.get(f"wide.{kind}.{level}")
            if theirs is None:
                continue
            _, channels, rows, columns = theirs.shape
            theirs = theirs.view(9, channels // 9, rows, columns)
            if vectors.ratio_major:
                theirs = theirs.view(3, 3, -1, rows, columns).transpose(0, 1).reshape(theirs.shape)
            theirs = theirs.permute(2, 3, 0, 1).reshape(1, -1, channels // 9)
            errors[f"{kind}.{level}"] = float((ours - theirs).abs().max())
    assert errors
    return errors


def wide_input(loaded: tuple[RetinaNet, ModelInfo], vectors: Vectors) -> Tensor:
    """The image ``wide`` as the network's input, made by this package from the PNG."""
    model, info = loaded
    detector = PyTorchDetector(model, info, "fp32", "cpu")
    image = vectors.image("wide")
    pixels = torch.from_numpy(detector.resize(image, detector.scaled_size(*image.shape[:2]))).permute(2, 0, 1)
    size = padded_size([pixels.shape[-2:]], info.config.data.pad_to)
    return normalized_batch([pixels], info.mean, info.std, size=size)


def agreeing(found: Detections, expected: dict[str, Tensor], prefix: str) -> int:
    """Number of expected detections that were found: same label, score within 1e-4, box within 0.02 pixels."""
    boxes, scores, labels = (expected[f"{prefix}.{part}"].numpy() for part in ("boxes", "scores", "labels"))
    free = set(range(len(found)))
    count = 0
    for box, score, label in zip(boxes, scores, labels, strict=True):
        for i in sorted(free):
            near = abs(found.scores[i] - score) < 1e-4 and np.abs(found.boxes[i] - box).max() < 0.02
            if near and found.labels[i] == label:
                free.remove(i)
                count += 1
                break
    return count


def assert_equal_detections(found: Detections, expected: dict[str, Tensor], prefix: str) -> None:
    count = len(expected[f"{prefix}.scores"])
    assert (len(found), agreeing(found, expected, prefix)) == (count, count), prefix


def assert_equals_peer(loaded: tuple[RetinaNet, ModelInfo], vectors: Vectors, inputs: Any = None) -> None:
    """Compare outputs and detections of an imported network with all results of the peer."""
    expected = vectors.read("expected")
    inputs = inputs or vectors
    names = sorted({key.split(".")[0] for key in expected if key.endswith(".default.boxes")})
    stored = inputs.read("inputs") if (inputs.folder / "inputs.safetensors").is_file() else {}
    own = wide_input(loaded, vectors)
    inputs_rgb = [own]
    if "wide.input" in stored:
        inputs_rgb.append(stored["wide.input"].flip(1) if vectors.bgr else stored["wide.input"])
        assert float((own - inputs_rgb[1]).abs().max()) < 1e-4
    for pixels in inputs_rgb:
        errors = output_errors(loaded[0], pixels, expected, vectors)
        assert max(errors.values()) < 5e-4, errors
    for setting, detector in detectors(loaded, vectors).items():
        for name in names:
            image = vectors.image(name)
            assert_equal_detections(detector.detect([image])[0], expected, f"{name}.{setting}")
            if f"{name}.resized" not in stored:
                continue
            resized = stored[f"{name}.resized"].numpy()
            resized = np.ascontiguousarray(resized[..., ::-1]) if vectors.resized_bgr else resized
            assert np.array_equal(detector.resize(image, detector.scaled_size(*image.shape[:2])), resized), name
            (found,) = detector.detect_scaled([resized])
            found = detector.in_image(found, resized.shape[:2], image.shape[:2])
            assert_equal_detections(found, expected, f"{name}.{setting}")
