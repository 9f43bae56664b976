from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import retinanet
from retinanet.config import Config
from retinanet.data.formats.train_val import read_eval, with_model_classes
from retinanet.data.image_sizes import padded_size
from retinanet.data.synthetic import CLASSES
from retinanet.detection.pytorch import PyTorchDetector
from retinanet.detection.runtime import RuntimeDetector, load_exported
from retinanet.detections import Detections
from retinanet.errors import CheckpointError, ConfigError, DataError, ExportError
from retinanet.evaluation.coco_ap import coco_metrics
from retinanet.evaluation.predict import predict
from retinanet.exporting import api, files
from retinanet.exporting.agreement import EXACT, Agreement, compare_detections
from retinanet.exporting.options import ExportOptions
from retinanet.exporting.raw_outputs import DetectorFile
from retinanet.exporting.sample_images import sample_images
from retinanet.exporting.trace import trace
from retinanet.exporting.verification import Verification, ap_of_both
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.runtime.openvino import import_without_telemetry
from retinanet.zoo.weights import load_weights, save_weights

FORMATS = {"onnx": "model.onnx", "openvino": "model.xml", "torch": "model.pt2"}


def random_weights(path: Path, backbone: str = "resnet18", **settings: Any) -> Path:
    """Weights of a small network that finds something in every image."""
    torch.manual_seed(0)
    raw = {"model": {"backbone": backbone, "channels": 32, "subnet_depth": 1, "pretrained": False}, **settings}
    config = Config.from_dict({"data": {"size": 128, "max_size": 192}, **raw})
    model = RetinaNet.from_config(config.model, config.anchors, len(CLASSES), pretrained=False).eval()
    nn.init.normal_(model.regression.predict.weight, std=0.1)
    bias = model.classification.predict.bias
    assert bias is not None
    nn.init.zeros_(bias)
    with torch.inference_mode():
        spread = torch.cat(model(torch.randn(1, 3, 128, 128)).logits, dim=1).std()
    with torch.no_grad():  # about one score in 30 is above the threshold
        model.classification.predict.weight.mul_(1 / spread)
        bias.fill_(-4.8)
    save_weights(path, model.state_dict(), ModelInfo.of(model, CLASSES, config))
    return path


class TraceOnce:
    """Traces each kind of graph once, for exports of the same model with the same settings to several formats."""

    def __init__(self) -> None:
        self.programs: dict[type[nn.Module], torch.export.ExportedProgram] = {}

    def __call__(self, graph: nn.Module, options: ExportOptions, dtype: torch.dtype) -> torch.export.ExportedProgram:
        if type(graph) not in self.programs:
            self.programs[type(graph)] = trace(graph, options, dtype)
        return self.programs[type(graph)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("export") / "model.safetensors")


@pytest.fixture(scope="module")
def exports(weights: Path) -> dict[str, api.Export]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "trace", TraceOnce())
        return {to: api.export(weights, to) for to in FORMATS}  # type: ignore[arg-type]


@pytest.fixture
def converted(exports: dict[str, api.Export], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports take the networks of ``exports``, because tracing takes most of the time."""

    def read(model: Any, description: Any, to: str, *arguments: Any) -> Any:
        if to == "onnx":
            return onnx.load(str(exports["onnx"].path))
        return import_without_telemetry("openvino").Core().read_model(exports["openvino"].path)

    monkeypatch.setattr(api, "_converted", read)


def test_each_format_is_written_beside_the_weights_and_agrees(exports: dict[str, api.Export], weights: Path) -> None:
    for to, result in exports.items():
        assert result.path == weights.with_name(FORMATS[to])
        assert all(file.is_file() for file in result.files)
        exact = result.verifications[0]
        assert exact.precision == "fp32"
        assert exact.agreement.images == len(sample_images())
        assert exact.agreement.detections > 100
        assert exact.agreement.raw is not None
        assert exact.agreement.within(EXACT)
        assert exact.faults == []
        assert result.description.verified is not None
        assert result.description.verified["fp32"]["passed"] is True
    assert not [path for path in weights.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("to", FORMATS)
def test_a_file_has_dynamic_sizes_and_batches(exports: dict[str, api.Export], weights: Path, to: str) -> None:
    model, info = load_weights(weights)
    original, file = PyTorchDetector(model, info, "fp32", "cpu"), load_exported(exports[to].path, "fp32", trusted=True)
    generator = np.random.default_rng(0)
    for height, width, count in [(32, 32, 1), (64, 32, 4), (33, 190, 3), (128, 128, 4), (96, 160, 2), (1, 9, 1)]:
        images = [generator.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]
        ours, theirs = original.detect_scaled(images), file.detect_scaled(images)
        for a, b in zip(ours, theirs, strict=True):
            assert len(a) == len(b)
            np.testing.assert_allclose(a.boxes, b.boxes, atol=0.01)
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
            assert a.labels.tolist() == b.labels.tolist()
            assert a.limited.tolist() == b.limited.tolist()


def test_a_backbone_with_layer_norm(tmp_path: Path) -> None:
    weights = random_weights(tmp_path / "model.safetensors", "convnext_atto")
    result = api.export(weights, "onnx", options=ExportOptions(graph="network"))
    assert result.verifications[0].agreement.detections > 0
    assert result.verifications[0].faults == []


def test_fixed_size_batch_and_limits(weights: Path, tmp_path: Path) -> None:
    options = ExportOptions(size=(96, 160), batch=2, score=0.1, max_detections=3)
    result = api.export(weights, "onnx", tmp_path / "fixed.onnx", options=options)
    shape = onnx.load(str(result.path)).graph.input[0].type.tensor_type.shape
    assert [dimension.dim_value for dimension in shape.dim] == [2, 3, 96, 160]
    detector = load_exported(result.path)
    found = detector.detect(sample_images()[:3])
    assert all(len(each) <= 3 and each.scores.min(initial=1) >= 0.1 for each in found)
    assert any(len(each.limited) for each in found)
    with pytest.raises(ConfigError, match="export the model again"):
        detector.detect(sample_images()[:1], score=0.06)


def _changed(path: Path, tensor: str, factor: float) -> None:
    proto = onnx.load(str(path))
    [constant] = [each for each in proto.graph.initializer if each.name == tensor]
    values = onnx.numpy_helper.to_array(constant) * np.float32(factor)
    constant.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor))
    onnx.save(proto, str(path))


def _float_constants(path: Path) -> Sequence[Any]:
    return [each for each in onnx.load(str(path)).graph.initializer if each.data_type == onnx.TensorProto.FLOAT]


@pytest.mark.usefixtures("converted")
@pytest.mark.parametrize("which", ["weight", "anchors"])
def test_a_planted_fault_is_refused_and_no_file_remains(
    which: str, weights: Path, exports: dict[str, api.Export], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong weight is found in the outputs, wrong anchors in the detections and on random outputs."""
    constants = _float_constants(exports["onnx"].path)
    if which == "weight":
        name = max(constants, key=lambda each: int(np.prod(each.dims))).name
    else:
        name = next(each.name for each in constants if list(each.dims) == [9, 4])
    write = files.write_model

    def with_fault(target: Any, model: Any, description: Any, path: Path) -> None:
        write(target, model, description, path)
        _changed(path, name, 1.02)

    monkeypatch.setattr(api, "write_model", with_fault)
    with pytest.raises(ExportError, match="was not written") as raised:
        api.export(weights, "onnx", tmp_path / "wrong.onnx")
    assert "verdict" in raised.value.table
    assert list(tmp_path.iterdir()) == []


def test_post_processing_alone_is_compared_on_random_outputs(exports: dict[str, api.Export], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(exports["onnx"].path.read_bytes())
    file = DetectorFile(path, exports["onnx"].description)
    agreement = file.compare_postprocessing()
    assert agreement.detections == 200
    assert agreement.within(EXACT)
    [name] = [each.name for each in _float_constants(path) if list(each.dims) == [9, 4]][:1]
    _changed(path, name, 1.02)
    assert not DetectorFile(path, exports["onnx"].description).compare_postprocessing().within(EXACT)


def _damaged(path: Path, tensor: str, place: tuple[int, ...], value: float) -> None:
    """Replace one number of a tensor."""
    proto = onnx.load(str(path))
    [constant] = [each for each in proto.graph.initializer if each.name.endswith(tensor)]
    values = onnx.numpy_helper.to_array(constant).copy()
    values[place] = value
    constant.CopyFrom(onnx.numpy_helper.from_array(values, constant.name))
    onnx.save(proto, str(path))


@pytest.mark.filterwarnings("ignore:1 of 1 images reached a limit")
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("tensor", "place"),
    # The middle of a kernel, because runtimes differ in whether they multiply the zeros around the image.
    [("classification.predict.bias", (0,)), ("regression.predict.weight", (0, 0, 1, 1))],
)
def test_predictions_that_are_not_finite_are_left_out_and_marked(
    exports: dict[str, api.Export], weights: Path, tmp_path: Path, tensor: str, place: tuple[int, ...], value: float
) -> None:
    """The first class or the first coordinate of the first anchor is NaN or infinite at every location."""
    path = tmp_path / "damaged.onnx"
    path.write_bytes(exports["onnx"].path.read_bytes())
    _damaged(path, tensor, place, value)
    model, info = load_weights(weights)
    with torch.no_grad():
        model.get_parameter(tensor)[place] = value
    images = [image for image in sample_images() if max(image.shape) <= 500]
    detectors = PyTorchDetector(model, info, "fp32", "cpu"), load_exported(path), load_exported(exports["onnx"].path)
    ours, theirs, sound = ([detector.detect_scaled([image])[0] for image in images] for detector in detectors)
    for a, b in zip(ours, theirs, strict=True):
        assert compare_detections(a, b, (200, 200), EXACT).within(EXACT)
        assert b.nonfinite.tolist() == a.nonfinite.tolist()
        assert np.isfinite(b.boxes).all()
    assert theirs[0].nonfinite.tolist() == [0]
    assert not any(len(each.nonfinite) for each in sound)
    assert sum(len(each) for each in theirs) > 50
    with pytest.warns(RuntimeWarning, match="NaN or infinite on 1 of 1 images"):
        load_exported(path)(images[:1])


def test_limits_of_a_file_matter_only_above_the_threshold(weights: Path, tmp_path: Path) -> None:
    """With a threshold above the scores that a limit left out, nothing can be missing."""
    result = api.export(weights, "onnx", tmp_path / "few.onnx", options=ExportOptions(max_detections=3))
    detector = load_exported(result.path)
    found_in = [(image, detector.detect([image])[0]) for image in sample_images()]
    full = [(image, found) for image, found in found_in if len(found) == 3]
    assert full
    for image, found in full:
        assert found.limited.tolist() == [0]
        middle = float(found.scores[1:].mean())
        assert detector.detect([image], score=middle)[0].limited.tolist() == []


@pytest.mark.usefixtures("converted")
def test_a_failed_or_stopped_export_leaves_older_files_untouched(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = tmp_path / "model.xml"
    older.write_text("older")

    def interrupted(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "verify_detector", interrupted)
    with pytest.raises(KeyboardInterrupt):
        api.export(weights, "openvino", older)
    assert [path.name for path in tmp_path.iterdir()] == ["model.xml"]
    assert older.read_text() == "older"


def test_a_file_that_loses_ap_in_bf16_is_kept_and_runs_in_fp32(
    exports: dict[str, api.Export], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verified(model: Any, file: Any, precision: str, *rest: Any) -> Verification:
        return Verification(precision, "some images", Agreement(1), ap=(0.5, 0.49 if precision == "bf16" else 0.5))

    network = import_without_telemetry("openvino").Core().read_model(exports["openvino"].path)
    monkeypatch.setattr(api, "_converted", lambda *arguments: network)
    monkeypatch.setattr(api, "_precisions", lambda *arguments: ["fp32", "bf16"])
    monkeypatch.setattr(api, "verify_detector", verified)
    result = api.export(weights, "openvino", tmp_path / "model.xml")
    assert result.notes == ("bf16: AP falls by 1.00 points, so the file runs in fp32 unless --precision bf16 is given",)
    assert load_exported(result.path).network.arithmetic == "fp32"
    assert load_exported(result.path, "bf16").network.arithmetic == "bf16"


def test_verify_repeats_the_comparison(exports: dict[str, api.Export], weights: Path) -> None:
    assert api.verify(exports["onnx"].path, weights).faults == []
    assert api.verify(exports["openvino"].path, weights, precision="fp32").precision == "fp32"
    assert api.verify(exports["torch"].path, weights, trust=True).faults == []
    with pytest.raises(CheckpointError, match="can run code"):
        api.verify(exports["torch"].path, weights)


def test_verify_refuses_a_file_of_another_model(exports: dict[str, api.Export]) -> None:
    with pytest.raises(CheckpointError, match="was not exported from person"):
        api.verify(exports["onnx"].path, "person")


def test_verify_refuses_a_file_with_another_input_size(
    exports: dict[str, api.Export], weights: Path, tmp_path: Path
) -> None:
    proto = onnx.load(str(exports["onnx"].path))
    [entry] = proto.metadata_props
    content = json.loads(entry.value)
    content["config"]["data"]["size"] = 96
    entry.value = json.dumps(content)
    onnx.save(proto, str(tmp_path / "other.onnx"))
    with pytest.raises(CheckpointError, match="input sizes differ"):
        api.verify(tmp_path / "other.onnx", weights)


def test_without_objects_the_detections_decide(parts: Path) -> None:
    images, _ = read_eval(parts, "val")
    nothing = Detections.concatenate([])
    assert ap_of_both(images, nothing, nothing) == (0.0, 0.0)
    assert ap_of_both(replace(images, ignore=np.ones_like(images.ignore)), nothing, nothing) is None
    differs = Verification("int8", "images", Agreement(1, 100, 50))
    assert differs.faults == ["50 of 100 detections differ"]
    assert replace(differs, ap=(0.5, 0.5)).faults == []


def test_verify_finds_other_weights_of_the_same_network(
    exports: dict[str, api.Export], weights: Path, tmp_path: Path
) -> None:
    model, info = load_weights(weights)
    with torch.no_grad():
        next(model.fpn.parameters()).mul_(1.01)
    save_weights(tmp_path / "other.safetensors", model.state_dict(), info)
    assert api.verify(exports["onnx"].path, tmp_path / "other.safetensors").faults


@pytest.mark.usefixtures("converted")
def test_settings_that_do_not_fit(weights: Path, own_parts: Path, tmp_path: Path) -> None:
    for to, options, message in (
        ("onnx", {"int8": True}, "give --to openvino"),
        ("openvino", {"graph": "detector"}, "is for --to onnx"),
        ("openvino", {"int8": True}, "give --data DATA"),
        ("torch", {"opset": 20, "graph": "detector"}, "is for --to onnx"),
    ):
        with pytest.raises(ConfigError, match=message):
            api.export(weights, to, tmp_path / "x", options=ExportOptions(**options))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="choose onnx"):
        api.export(weights, "tensorrt")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"end in \.onnx"):
        api.export(weights, "onnx", tmp_path / "model.xml")
    with pytest.raises(ConfigError, match="give 512"):
        ExportOptions(size=(500,))
    with pytest.raises(ConfigError, match="choose 18, 20"):
        ExportOptions(opset=19)
    with pytest.raises(ConfigError, match="--score is 2"):
        ExportOptions(score=2)
    (tmp_path / "own.bin").touch()
    with pytest.raises(ConfigError, match=r"own\.bin would be overwritten"):
        api.export(weights, "openvino", tmp_path / "own.xml")
    with pytest.raises(ConfigError, match="is an exported file"):
        api.export(tmp_path / "own.onnx", "onnx")
    (tmp_path / "own.bin").unlink()
    with pytest.raises(ConfigError, match="opset"):
        ExportOptions(opset=5)
    with pytest.raises(DataError, match="too few for INT8"):
        api.export(weights, "openvino", tmp_path / "q.xml", data=own_parts, options=ExportOptions(int8=True))
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".onnx", ".xml", ".bin", ".pt2")]


def test_public_names() -> None:
    assert retinanet.export is api.export
    assert retinanet.verify is api.verify


def test_bundled_model_has_the_same_ap_in_every_format(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = read_eval(shared_data / "bccd" / "BCCD", "test")
    images = with_model_classes(images.subset(range(12)), load_weights("blood-cells")[1].classes)
    monkeypatch.setattr(api, "_read", lambda *arguments: (images, []))
    # On few images, bf16 can change AP by more than is accepted.
    monkeypatch.setattr(api, "_precisions", lambda *arguments: ["fp32"])
    monkeypatch.setattr(api, "trace", TraceOnce())
    detector = retinanet.load("blood-cells", "fp32", "cpu")
    expected = coco_metrics(images, predict(detector, images)).summary["AP"]
    assert expected > 0.5
    # All images have the same size, and a network of a fixed size is traced faster.
    options = ExportOptions(size=padded_size([detector.scaled_size(480, 640)]), batch=1)
    for to, name in FORMATS.items():
        result = api.export("blood-cells", to, tmp_path / name, data="bccd", options=options)  # type: ignore[arg-type]
        exact = result.verifications[0]
        assert exact.ap is not None
        assert (exact.agreement.images, exact.agreement.differing) == (12, 0)
        assert abs(exact.ap[0] - exact.ap[1]) < 1e-6
        found = coco_metrics(images, predict(load_exported(result.path, "fp32", trusted=True), images)).summary["AP"]
        assert found == pytest.approx(expected, abs=5e-4), to  # the file's own resizing rounds differently


def test_a_runtime_detector_is_returned(exports: dict[str, api.Export]) -> None:
    detector = retinanet.load(exports["onnx"].path)
    assert isinstance(detector, RuntimeDetector)
    assert detector.classes == CLASSES
