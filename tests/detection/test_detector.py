from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import supervision
import torch
from PIL import Image

import retinanet
from retinanet.data.images import read_image
from retinanet.data.synthetic import CLASSES
from retinanet.data.transforms import normalized_batch
from retinanet.detection.draw import draw
from retinanet.detection.pytorch import PyTorchDetector, load_pytorch
from retinanet.detections import Detections
from retinanet.errors import CheckpointError, ConfigError, DataError
from retinanet.hardware import autocast
from retinanet.zoo.weights import load_weights

Array = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def detector(weights: Path) -> PyTorchDetector:
    return load_pytorch(weights, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def photo(parts: Path) -> Path:
    return parts / "images" / "000000.jpg"


@pytest.fixture(scope="module")
def images(photo: Path) -> list[Array]:
    """Images of several shapes. Two of them differ in size, but are padded to the same size."""
    with Image.open(photo) as image:
        sizes = [(96, 96), (140, 90), (60, 130), (132, 90), (96, 96), (60, 130)]
        rotated = [image.rotate(40 * i).resize(size) for i, size in enumerate(sizes)]
    return [np.asarray(image.convert("RGB")) for image in rotated]


def same(a: supervision.Detections, b: supervision.Detections, tolerance: float = 0.0) -> None:
    assert a.class_id is not None
    assert a.confidence is not None
    assert b.confidence is not None
    assert len(a) == len(b) > 0
    np.testing.assert_array_equal(a.class_id, b.class_id)
    assert float(np.abs(a.confidence - b.confidence).max()) <= tolerance
    np.testing.assert_allclose(a.xyxy, b.xyxy, rtol=0, atol=100 * tolerance)


def test_result_has_boxes_scores_and_names(detector: PyTorchDetector, photo: Path) -> None:
    found = detector(photo, score=0.2)
    assert isinstance(found, supervision.Detections)
    assert found.confidence is not None
    assert found.class_id is not None
    assert len(found) > 3
    assert found.xyxy.dtype == np.float32
    assert found.confidence.min() >= 0.2
    assert (np.diff(found.confidence) <= 0).all()
    assert list(found.data["class_name"]) == [CLASSES[k] for k in found.class_id]
    assert detector.classes == CLASSES


@pytest.mark.filterwarnings("ignore:.* reached a limit")
@pytest.mark.filterwarnings("error")
def test_every_kind_of_image_gives_the_same(detector: PyTorchDetector, photo: Path) -> None:
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    array = np.asarray(image)
    expected = detector(array)
    alpha = image.copy()
    alpha.putalpha(10)
    for source in (str(photo), photo, image, alpha, array[:, ::-1][:, ::-1], np.asfortranarray(array)):
        same(detector(source), expected)
    [only] = detector([photo])
    same(only, expected)


def test_grey_images_are_repeated_to_three_channels(detector: PyTorchDetector, photo: Path) -> None:
    with Image.open(photo) as image:
        grey = image.convert("L")
    plane = np.asarray(grey)
    expected = detector(np.stack([plane] * 3, axis=2))
    same(detector(grey), expected)
    same(detector(plane), expected)


def test_list_keeps_its_order(detector: PyTorchDetector, images: list[Array]) -> None:
    alone = [detector(image) for image in images]
    together = detector(images)
    assert isinstance(together, list)
    assert len(together) == len(images)
    for one, other in zip(alone, together, strict=True):
        same(one, other, tolerance=1e-5)


def test_result_depends_on_neither_batch_nor_neighbours(detector: PyTorchDetector, images: list[Array]) -> None:
    expected = detector(images, batch=8)
    for one, other in zip(expected, detector(images, batch=1), strict=True):
        same(one, other, tolerance=1e-5)
    for one, other in zip(expected, detector(images[::-1], batch=2)[::-1], strict=True):
        same(one, other, tolerance=1e-5)


def test_same_input_gives_the_same_bits(detector: PyTorchDetector, images: list[Array]) -> None:
    for one, other in zip(detector(images), detector(images), strict=True):
        same(one, other)


def test_boxes_lie_inside_the_image(detector: PyTorchDetector, images: list[Array]) -> None:
    for image, found in zip(images, detector(images, score=0.01), strict=True):
        height, width = image.shape[:2]
        assert found.xyxy.min() >= 0
        assert (found.xyxy[:, [0, 2]] <= width).all()
        assert (found.xyxy[:, [1, 3]] <= height).all()
        assert (found.xyxy[:, 2:] >= found.xyxy[:, :2]).all()


def test_higher_score_only_leaves_out(detector: PyTorchDetector, photo: Path) -> None:
    many, few = detector(photo, score=0.2), detector(photo, score=0.5)
    assert many.confidence is not None
    kept = many[many.confidence > 0.5]
    assert 0 < len(few) < len(many)
    assert isinstance(kept, supervision.Detections)
    same(few, kept, tolerance=1e-6)  # the sigmoid of a longer vector may round its last bit otherwise


def test_nothing_found(detector: PyTorchDetector, photo: Path) -> None:
    found = detector(photo, score=0.999)
    assert len(found) == 0
    assert found.xyxy.shape == (0, 4)
    assert found.confidence is not None
    assert found.class_id is not None
    assert found.confidence.shape == found.class_id.shape == (0,)
    assert len(found.data["class_name"]) == 0
    assert draw(read_image(photo), Detections.empty(), detector.classes).shape == (96, 96, 3)


def test_predictions_that_are_not_numbers_are_left_out_and_told(detector: PyTorchDetector, photo: Path) -> None:
    model = copy.deepcopy(detector.model)
    assert model.classification.predict.bias is not None
    with torch.no_grad():
        model.classification.predict.bias[0] = math.nan  # of the first anchor at each location
    damaged = PyTorchDetector(model, detector.info, "fp32", "cpu")
    with pytest.warns(RuntimeWarning, match=r"NaN or infinite on 2 of 2 images and left out; check .* precision fp32"):
        found = damaged([photo, photo], score=0.05)
    assert all(np.isfinite(each.xyxy).all() for each in found)
    assert len(found[0]) > 0


def test_empty_list(detector: PyTorchDetector) -> None:
    assert detector([]) == []


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (3000, 2)])
def test_extreme_shapes(detector: PyTorchDetector, size: tuple[int, int]) -> None:
    found = detector(np.zeros((*size, 3), dtype=np.uint8), score=0.01)
    assert (found.xyxy <= np.array([size[1], size[0]] * 2)).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3), dtype=np.float32), "float32"),
        (np.zeros((8, 8, 3), dtype=np.int64), "int64"),
        (np.zeros((8, 8, 4), dtype=np.uint8), r"\(8, 8, 4\)"),
        (np.zeros((3, 8, 8), dtype=np.uint8), r"\(3, 8, 8\)"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), r"\(2, 8, 8, 3\)"),
        (np.zeros((0, 8, 3), dtype=np.uint8), r"\(0, 8, 3\)"),
        (np.zeros(8, dtype=np.uint8), r"\(8,\)"),
        ("nowhere.jpg", "nowhere.jpg"),
        ([None], "NoneType"),
        ([3], "int"),
    ],
)
def test_wrong_images_are_refused(detector: PyTorchDetector, image: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        detector(image)


def test_precisions_agree(weights: Path, photo: Path) -> None:
    # Every score of the network, before suppression: which of two equal neighbours survives that is a matter of chance.
    image = torch.from_numpy(read_image(photo)).permute(2, 0, 1)
    scores = {}
    for precision in ("fp32", "bf16"):
        detector = load_pytorch(weights, precision=precision, device="cpu")
        batch = normalized_batch([image], detector.model.mean, detector.model.std)
        with torch.inference_mode(), autocast(detector.device, detector.dtype):
            scores[precision] = torch.cat(detector.network(batch).logits, dim=1).float().sigmoid()
    difference = (scores["fp32"] - scores["bf16"]).abs()
    assert scores["fp32"].max() > 0.5
    assert 0 < difference.max() < 0.1
    assert difference.mean() < 0.005


def test_supervision_draws_and_filters_the_result(detector: PyTorchDetector, photo: Path) -> None:
    found = detector(photo)
    scene = read_image(photo)
    marked = supervision.BoxAnnotator(thickness=1).annotate(scene.copy(), found)
    marked = supervision.LabelAnnotator().annotate(marked, found)
    assert marked.shape == scene.shape
    assert (marked != scene).any()
    chosen = found[found.data["class_name"] == "screw"]
    assert isinstance(chosen, supervision.Detections)
    assert set(chosen.data["class_name"]) <= {"screw"}
    assert 0 < len(chosen) < len(found)


def test_drawing_leaves_the_image_alone(detector: PyTorchDetector, photo: Path) -> None:
    image = read_image(photo)
    before = image.copy()
    drawn = draw(image, detector.detect([image])[0], detector.classes)
    np.testing.assert_array_equal(image, before)
    assert drawn.dtype == np.uint8
    assert drawn.shape == image.shape
    assert (drawn != image).any()


def test_wrong_weights_and_devices(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such weights file"):
        retinanet.load(tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match="quantum"):
        retinanet.load(weights, device="quantum")


@pytest.mark.parametrize("score", [1.0, -0.1, float("nan")])
def test_scores_out_of_range(detector: PyTorchDetector, photo: Path, score: float) -> None:
    with pytest.raises(ConfigError, match=f"--score is {score}; give a number, at least 0 and below 1, or auto"):
        detector(photo, score=score)


def test_batches_have_an_image(detector: PyTorchDetector, photo: Path) -> None:
    with pytest.raises(ConfigError, match="batch is 0; give at least 1"):
        detector(photo, batch=0)


@pytest.mark.parametrize("source", [None, b"abc", 3, {"a": 1}])
def test_sources_that_are_not_images(detector: PyTorchDetector, source: Any) -> None:
    with pytest.raises(DataError, match=f"cannot detect in a {type(source).__name__}; give a path"):
        detector(source)


def test_unknown_precision(weights: Path) -> None:
    with pytest.raises(ConfigError, match="choose auto, fp32, bf16, fp16"):
        retinanet.load(weights, precision="fp8")  # type: ignore[arg-type]


def test_a_compiled_network_finds_the_same(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    """The compiler itself is left out: it takes a quarter of a minute."""
    compiled: list[object] = []
    genuine = torch.nn.Module.compile

    def compile_quickly(module: torch.nn.Module) -> None:
        compiled.append(module)
        genuine(module, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_quickly)
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    plain, quick = load_pytorch(weights), load_pytorch(weights, compile=True)
    assert compiled == [quick.network]
    expected, found = plain(image, score=0.0), quick(image, score=0.0)
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=1e-2)


def test_a_network_that_cannot_be_compiled_says_so(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def broken(*arguments: object) -> None:
        raise TorchDynamoException("No working C++ compiler found\nmore lines")

    detector = load_pytorch(weights)
    detector.compiled = True
    monkeypatch.setattr(detector.network, "forward", broken)
    with pytest.raises(ConfigError, match=r"cannot be compiled here \(No working C\+\+ compiler found\); leave"):
        detector(np.zeros((40, 40, 3), dtype=np.uint8))


def test_the_model_handed_in_is_not_changed(weights: Path) -> None:
    """A training that looks at its own detections goes on as before."""
    model, info = load_weights(weights)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    detector = PyTorchDetector(model, info, "bf16", "cpu")
    assert model.training
    assert detector.model is model
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not detector.network.training
