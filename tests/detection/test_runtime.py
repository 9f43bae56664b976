"""Detection with exported files: the same results as in PyTorch, with every limit that a file may have."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from exported_files import INFO, outputs_of, with_decode, write_files, write_onnx, write_openvino
from retinanet.anchors import make_grid
from retinanet.config import Config
from retinanet.data.formats.open_dataset import read_split
from retinanet.data.image_sizes import padded_size
from retinanet.data.images import read_image
from retinanet.detection.loading import load
from retinanet.detection.runtime import RuntimeDetector, load_exported
from retinanet.detections import Detections
from retinanet.errors import CheckpointError, ConfigError, RetinaNetError
from retinanet.evaluation.predict import predict
from retinanet.postprocess import postprocess
from retinanet.runtime.exported import Arithmetic, ExportedModel
from retinanet.runtime.resize import resize_image

FILES = ("model.onnx", "model.xml", "model.pt2")

# torch.export takes a side of 1 in a feature map for a constant, so the small images of these tests need other files.
DYNAMIC = FILES[:2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write_files(folder)
    return folder


@pytest.fixture(scope="module")
def images() -> list[npt.NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    shapes = [(96, 96), (140, 90), (60, 130), (132, 90), (96, 96), (1, 1)]  # (140, 90) and (132, 90): one padded size
    return [random.integers(0, 255, (*shape, 3), dtype=np.uint8) for shape in shapes]


def expected_in(
    image: npt.NDArray[np.uint8], size: tuple[int, int], padded: tuple[int, int] | None = None
) -> Detections:
    """What PyTorch finds in an image that is scaled to ``size``."""
    height, width = padded or padded_size([size])
    batch = np.zeros((1, 3, height, width), np.uint8)
    batch[0, :, : size[0], : size[1]] = resize_image(image, size, INFO.config.data).transpose(2, 0, 1)
    outputs = outputs_of(batch, np.array([size]))
    [found] = postprocess(outputs, make_grid(INFO.config.anchors, (height, width)), [size], INFO.config.decode)
    return found.rescaled(size, image.shape[:2])


def assert_same(found: Detections, expected: Detections) -> None:
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
    np.testing.assert_array_equal(found.limited, expected.limited)


@pytest.mark.parametrize("name", DYNAMIC)
def test_detections_are_those_of_pytorch(name: str, folder: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    detector = load_exported(folder / name, "fp32", trusted=True)
    found = detector.detect(images, batch=4)
    for image, each in zip(images, found, strict=True):
        assert_same(each, expected_in(image, detector.scaled_size(*image.shape[:2])))
    assert max(map(len, found)) > 5
    assert detector.classes == INFO.classes


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_dataset_gives_what_its_files_give(name: str, folder: Path, parts: Path) -> None:
    detector = load_exported(folder / name, "fp32", trusted=True)
    dataset = read_split(parts, "train")
    finished: list[int] = []
    found = predict(detector, dataset, finished.append)
    assert sum(finished) == len(dataset)
    assert len(found) > 0
    for index in dataset:
        [alone] = load_exported(folder / name, "fp32", trusted=True).detect([read_image(dataset.path(index))])
        assert_same(replace(found.of_image(index), limited=alone.limited), alone)


def test_unreadable_images_of_a_dataset_are_noted(folder: Path, own_parts: Path) -> None:
    dataset = read_split(own_parts, "train")
    dataset.path(2).write_bytes(b"nothing")
    unreadable: dict[int, str] = {}
    predict(load(folder / "model.onnx"), dataset, unreadable=unreadable)
    assert list(unreadable) == [2]


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_a_fixed_size_and_batch(name: str, images: list[npt.NDArray[np.uint8]], tmp_path: Path) -> None:
    write_files(tmp_path, ExportedModel(INFO, size=(64, 128), batch=2))
    detector = load_exported(tmp_path / name, "fp32", trusted=True)
    assert detector.scaled_size(140, 90) == (64, 41)
    assert detector.scaled_size(60, 130) == (59, 128)
    for image, found in zip(images, detector.detect(images), strict=True):
        assert_same(found, expected_in(image, detector.scaled_size(*image.shape[:2]), (64, 128)))


class _WithPostProcessing:
    """A file of the kind ``detector`` that finds four or five objects, of at most five."""

    count = 4
    limit = 0.0
    path = Path("model.onnx")
    arithmetic: Arithmetic = "fp32"
    model = ExportedModel(with_decode(INFO, score=0.2, max_detections=5), kind="detector")

    def __call__(self, images: npt.NDArray[Any], sizes: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        count = len(images)
        last = 0.25 if self.count == 5 else 0.0
        scores = np.array([[0.9, 0.8, 0.7, 0.3, last]] * count, dtype=np.float32)
        return {
            "boxes": np.tile(np.array([1, 2, 30, 40], dtype=np.float32), (count, 5, 1)),
            "scores": scores,
            "labels": np.array([[0, 1, 2, 3, -1]] * count),
            "counts": np.full(count, self.count),
            "limits": np.full(count, max(self.limit, last)),
            "nonfinite": np.zeros(count, dtype=np.bool_),
        }


def test_a_file_with_post_processing() -> None:
    network = _WithPostProcessing()
    detector = RuntimeDetector(network)
    image = np.zeros((48, 48, 3), np.uint8)
    [found] = detector.detect([image])
    assert found.labels.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(found.boxes[0], [0.5, 1, 15, 20])
    assert found.limited.tolist() == []
    [fewer] = detector.detect([image], score=0.5)
    assert fewer.labels.tolist() == [0, 1, 2]
    network.limit = 0.6  # a limit on candidates was reached
    assert detector.detect([image], score=0.5)[0].limited.tolist() == [0]
    assert detector.detect([image], score=0.65)[0].limited.tolist() == []
    network.limit = 0.0
    network.count = 5  # the limit on detections was reached, by scores below the threshold
    assert detector.detect([image], score=0.5)[0].limited.tolist() == []
    assert detector.detect([image])[0].limited.tolist() == [0]
    [two] = detector.detect([image], max_detections=2)
    assert (two.labels.tolist(), two.limited.tolist()) == ([0, 1], [0])
    for arguments in ({"score": 0.1}, {"max_detections": 6}):
        with pytest.raises(ConfigError, match=r"scores from 0\.2 and at most 5 detections per image; export the model"):
            detector.detect([image], **arguments)


def test_bilinear_files_take_floating_point_pixels(tmp_path: Path) -> None:
    values = INFO.config.to_dict()
    values["data"]["resize"] = "bilinear"
    write_files(tmp_path, ExportedModel(replace(INFO, config=Config.from_dict(values))))
    found = [
        load_exported(tmp_path / name, "fp32", trusted=True).detect([np.full((70, 50, 3), 90, np.uint8)])[0]
        for name in DYNAMIC
    ]
    assert_same(*found)


def test_broken_and_foreign_files_are_refused(folder: Path, tmp_path: Path) -> None:
    proto = onnx.load(folder / "model.onnx")
    text = json.loads(ExportedModel(INFO).to_json())
    write_onnx(tmp_path / "foreign.onnx", proto, None)
    write_onnx(tmp_path / "newer.onnx", proto, json.dumps({**text, "format": "retinanet-export/2", "version": "9.0"}))
    write_onnx(tmp_path / "damaged.onnx", proto, json.dumps({**text, "classes": []}))
    write_openvino(tmp_path / "foreign.xml", folder / "model.onnx", None)
    (tmp_path / "cut.onnx").write_bytes((folder / "model.onnx").read_bytes()[:5000])
    (tmp_path / "model.pt2").write_bytes((folder / "model.pt2").read_bytes())
    (tmp_path / "lonely.xml").write_bytes((folder / "model.xml").read_bytes())
    (tmp_path / "cut.xml").write_bytes((folder / "model.xml").read_bytes()[:3000])
    (tmp_path / "cut.bin").write_bytes(b"")
    (tmp_path / "short.xml").write_bytes((folder / "model.xml").read_bytes())
    (tmp_path / "short.bin").write_bytes((folder / "model.bin").read_bytes()[:1000])
    for name, reason in (
        ("foreign.onnx", "written by another program, .* write the file with 'retinanet export'"),
        ("foreign.xml", "written by another program"),
        ("newer.onnx", r"a newer version of this package \(9\.0; .* update the package"),
        ("damaged.onnx", r"metadata cannot be read \(its class names are missing .* export the model again"),
        ("cut.onnx", "ONNX Runtime cannot load the file .* export the model again"),
        ("model.pt2", "can run code in them; use the weights"),
        ("cut.xml", "OpenVINO cannot read the file"),
        ("short.xml", "OpenVINO cannot read the file .* export the model again"),
        ("lonely.xml", r"lonely\.bin is missing beside it"),
        ("absent.onnx", "no such file"),
    ):
        with pytest.raises(CheckpointError, match=rf"{name}: .*{reason}|{name}: {reason}") as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "cut.pt2").write_bytes((folder / "model.pt2").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="PyTorch cannot load the program"):
        load_exported(tmp_path / "cut.pt2", trusted=True)


@pytest.mark.parametrize(
    "change",
    [
        '"size": [100, 100]',
        '"size": [-32, 64]',
        '"size": [Infinity, 32]',
        '"size": "64"',
        '"batch": 1.5',
        '"batch": true',
        '"batch": 0',
        '"batch": Infinity',
        '"verified": [1]',
        '"verified": "x"',
        '"classes": "washer"',
        '"classes": ["one", "two"]',
        '"kind": "detector"',
        '"mean": [1' + 400 * "0" + ", 0, 0]",
        '"metrics": ' + 5000 * "[" + 5000 * "]",
        '"config": {"anchors": {"scales": [1.0]}}',
        '"config": {"anchors": {"strides": [8, 16, 32, 64]}}',
        '"config": {"data": {"resize": "bilinear"}}',
    ],
)
@pytest.mark.parametrize("name", DYNAMIC)
def test_metadata_that_is_damaged_or_of_another_network_is_refused(
    folder: Path, tmp_path: Path, name: str, change: str
) -> None:
    text = f"{ExportedModel(INFO).to_json()[:-1]}, {change}}}"  # of two equal keys the last one counts
    if name == "model.onnx":
        write_onnx(tmp_path / name, onnx.load(folder / "model.onnx"), text)
    else:
        write_openvino(tmp_path / name, folder / "model.onnx", text)
    with pytest.raises(CheckpointError, match=r"export .*again") as caught:
        load(tmp_path / name).detect([np.zeros((60, 80, 3), np.uint8)])
    assert "\n" not in str(caught.value)


def test_several_threads_share_a_detector(folder: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    detector = load(folder / "model.xml", "fp32", threads=2)
    expected = detector.detect(images)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: detector.detect(images), range(8)):
            for one, other in zip(found, expected, strict=True):
                assert_same(one, other)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("model.onnx", {"precision": "bf16"}, "ONNX files run in fp32"),
        ("model.onnx", {"device": "quantum"}, "'quantum' cannot be used with ONNX Runtime"),
        ("model.onnx", {"device": "cuda"}, "has no CUDA"),
        ("model.onnx", {"streams": 2}, "streams is a setting of OpenVINO"),
        ("model.onnx", {"threads": 0}, "threads is 0"),
        ("model.onnx", {"compile": True}, "leave compile out"),
        ("model.xml", {"precision": "fp16"}, "choose auto, fp32 or bf16"),
        ("model.xml", {"device": "quantum"}, "'quantum' cannot be used with OpenVINO"),
        ("model.pt2", {"threads": 2}, r"torch\.set_num_threads"),
        ("person", {"threads": 2}, "settings of exported files"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder: Path, name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(name if name == "person" else folder / name, **settings)


def test_streams_and_threads_change_no_result(folder: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    expected = load(folder / "model.xml", "fp32", threads=1, streams=1).detect(images)
    found = load(folder / "model.xml", "fp32", threads=2, streams=2).detect(images)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


BLOCKED = """
import sys

class Blocked:
    names = {"torch", "torchvision", "timm", "supervision", "scipy", "matplotlib", "safetensors", "huggingface_hub"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def run_without_torch(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCKED + code, *words], capture_output=True, text=True)


@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_every_verb_that_takes_weights_runs_without_torch(name: str, folder: Path, parts: Path, tmp_path: Path) -> None:
    code = "from retinanet.cli import main\nsys.exit(main(sys.argv[1:]))"
    weights, photo = str(folder / name), str(parts / "images" / "000000.jpg")
    verbs = (["detect", weights, photo], ["eval", weights, str(parts)], ["eval", weights, weights, str(parts)])
    for number, words in enumerate(verbs):
        done = run_without_torch(code, *words, "--out", str(tmp_path / str(number)))
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "0" / "000000.jpg").is_file()
    assert (tmp_path / "1" / "report.html").is_file()
    assert (tmp_path / "2" / "compare.html").is_file()


def test_python_without_torch(folder: Path, parts: Path, tmp_path: Path) -> None:
    code = """
import retinanet
weights, photo, data, out = sys.argv[1:]
found = retinanet.load(weights)(photo, score=0.05)
print(type(found).__name__, len(found) == len(found.xyxy) == len(found.confidence) == len(found.data["class_name"]))
retinanet.detect(weights, photo, out)
print(retinanet.evaluate(weights, data).metrics.to_dict()["AP"] >= 0)
retinanet.compare(weights, weights, data)
print(any(name in sys.modules for name in ("torch", "openvino_telemetry")))
"""
    for name in ("model.onnx", "model.xml"):
        done = run_without_torch(
            code, str(folder / name), str(parts / "images" / "000000.jpg"), str(parts), str(tmp_path / name)
        )
        assert done.stdout.splitlines() == ["PlainDetections True", "True", "False"], done.stderr


def test_what_needs_torch_says_how_to_install_it(parts: Path, tmp_path: Path) -> None:
    code = """
from retinanet.cli import main
for words in (
    ["detect", "person", "x.jpg"], ["eval", "person", "DATA"],
    ["train", "DATA"], ["bench"],
    ["reproduce", "table1a"], ["convert", "a.pth", "b.safetensors"], ["data", "inspect", "DATA"],
    ["data", "anchors", "DATA"],
):
    print(main([sys.argv[1] if word == "DATA" else word.replace("x.", sys.argv[2] + "/x.") for word in words]))
import retinanet
for call in ("load('person')", "train('x')", "inspect(sys.argv[1])", "fit_anchors(sys.argv[1])"):
    try:
        eval("retinanet." + call)
    except retinanet.RetinaNetError as error:
        assert isinstance(error, ImportError)
        print(error, file=sys.stderr)
"""
    (tmp_path / "x.jpg").write_bytes((parts / "images" / "000000.jpg").read_bytes())
    done = run_without_torch(code, str(parts), str(tmp_path))
    lines = done.stderr.splitlines()
    assert len(lines) == 12, done.stderr
    assert all(line.endswith("needs PyTorch; install it with: pip install 'retinanet[torch]'") for line in lines), lines
    assert set(done.stdout.splitlines()) == {"1"}


def test_a_missing_runtime_says_how_to_install_it(folder: Path) -> None:
    code = """
Blocked.names |= {"onnxruntime", "openvino"}
import retinanet
for weights in sys.argv[1:]:
    try:
        retinanet.load(weights)
    except retinanet.RetinaNetError as error:
        print(error)
"""
    done = run_without_torch(code, str(folder / "model.onnx"), str(folder / "model.xml"))
    assert done.stdout.splitlines() == [
        f"{folder}/model.onnx needs ONNX Runtime; install it with: pip install 'retinanet[runtime]'",
        f"{folder}/model.xml needs OpenVINO; install it with: pip install 'retinanet[openvino]'",
    ], done.stderr


def test_the_metadata_survives_a_file() -> None:
    model = ExportedModel(INFO, "detector", "int8", (64, 96), 4, {"passed": True}, "0.2")
    assert ExportedModel.from_json(model.to_json(), Path("x")) == model
    with pytest.raises(RetinaNetError, match="x: its metadata cannot be read"):
        ExportedModel.from_json("{", Path("x"))
