"""``retinanet.export`` and ``retinanet.verify``: write a model for another runtime, and compare it with the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from retinanet.data.dataset import Dataset
from retinanet.data.formats.open_dataset import open_dataset
from retinanet.data.formats.train_val import read_eval, read_train_val, with_model_classes
from retinanet.detection.pytorch import PyTorchDetector
from retinanet.detection.runtime import EXPORTED, load_exported
from retinanet.errors import CheckpointError, ConfigError, ExportError
from retinanet.evaluation.detections import read_detections
from retinanet.evaluation.model_evaluation import detections_on
from retinanet.exporting.agreement import REDUCED, Agreement, compare_detections
from retinanet.exporting.files import companions, staged, write_model
from retinanet.exporting.graph import DETECTIONS, DetectorGraph, NetworkGraph, raw_names
from retinanet.exporting.options import SUFFIXES, ExportOptions, Target
from retinanet.exporting.trace import to_onnx, trace
from retinanet.exporting.verification import Verification, ap_of_both, verify_detector
from retinanet.machine import Precision
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.optional_packages import explain_missing_packages
from retinanet.progress import plain_console
from retinanet.read_options import ReadOptions
from retinanet.runtime.exported import ExportedModel
from retinanet.zoo.weights import load_weights

_DEFAULT_OPTIONS, _DEFAULT_READING = ExportOptions(), ReadOptions()

# What a file has in common with its weights. Score and limits can be other ones, see ExportOptions.
_MODEL_PARTS: dict[str, Callable[[ModelInfo], object]] = {
    "classes": lambda info: info.classes,
    "networks": lambda info: info.config.model,
    "anchors": lambda info: info.config.anchors,
    "normalizations": lambda info: (info.mean, info.std),
    "input sizes": lambda info: (
        info.config.data.size,
        info.config.data.longest,
        info.config.data.resize,
        info.config.data.pad_to,
    ),
    "pixel ranges": lambda info: info.config.data.pixel_range,
    "NMS thresholds": lambda info: info.config.decode.nms,
    "ways of decoding": lambda info: (info.config.decode.clip, info.config.decode.size_limit),
}

# Receives a line at each stage.
Say = Callable[[str], object]


@dataclass(frozen=True)
class Export:
    """Result of an export.

    Attributes:
        path: the file. An OpenVINO model has a ``.bin`` file beside it.
        description: the metadata in the file.
        verifications: comparisons with the model, one for each arithmetic.
        notes: sentences for the user.
    """

    path: Path
    description: ExportedModel
    verifications: tuple[Verification, ...]
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        """All files of the model; ``path`` is the last one."""
        return companions(self.path)

    @property
    def bytes(self) -> int:
        """Size of the files."""
        return sum(file.stat().st_size for file in self.files)


def export(
    weights: str | Path,
    to: Target = "onnx",
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    split: str = "val",
    options: ExportOptions = _DEFAULT_OPTIONS,
    reading: ReadOptions = _DEFAULT_READING,
    console: Console | None = None,
    say: Say = lambda line: None,
) -> Export:
    """Write a model for another runtime, and compare the file with the model.

    A file that does not agree with its model is removed, and an error says what differs.

    Args:
        weights: path of a weights file, or name of a bundled model.
        to: ``onnx``, ``openvino`` or ``torch`` (``torch.export``).
        out: the file. Unset: named after the weights, beside them (a bundled model: in the current folder).
        data: dataset to compare on, and to quantize with. Unset: a photo, drawn scenes and noise.
        split: split of ``data`` to compare on.
        options: what the file contains.
        reading: how the dataset is read.
        console: where progress is shown.
        say: called with a line for each stage.

    Raises:
        ExportError: the network cannot be exported, or the file does not agree with the model.
        ConfigError: the settings do not fit each other.
        RetinaNetError: the weights or the data cannot be read, or the file cannot be written.
    """
    if to not in SUFFIXES:
        raise ConfigError(f"--to is {to!r}; choose {', '.join(SUFFIXES)}")
    kind = options.graph_for(to)
    if options.int8 and data is None:
        raise ConfigError("--int8 needs images to choose the value ranges of the layers; give --data DATA")
    path = _path(weights, to, out)
    with explain_missing_packages(f"exporting to {to}"):
        _require_packages(to, options.int8)
    if Path(weights).suffix.lower() in EXPORTED:
        raise ConfigError(f"{weights} is an exported file; give the weights that it was exported from")
    weights_file = path.with_suffix(".bin")
    if to == "openvino" and weights_file.exists() and not path.exists():
        raise ConfigError(f"{weights_file} would be overwritten; move it, or choose another name with --out")
    model, info = load_weights(weights)
    info = _with_limits(info, options)
    dataset, notes = _read(data, split, info, reading)
    notes += options.padding_notes(info.config.data.pad_to)
    console = console or plain_console()

    description = ExportedModel(info, kind, "int8" if options.int8 else "fp32", options.input_size, options.batch)
    original = PyTorchDetector(model, info, precision="fp32", device="cpu")
    calibration = dataset
    if options.int8:
        from retinanet.exporting.int8 import quantized, require_images

        assert dataset is not None
        calibration, more = _calibration_data(data, info, reading, dataset)
        notes += more
        require_images(calibration, dataset)
    with staged(path) as staging:
        converted = _converted(model, description, to, options, say)
        if options.int8:
            assert dataset is not None
            assert calibration is not None
            say("quantizing to INT8 with accuracy control")
            converted, more = quantized(converted, description, original, calibration, dataset, options.max_drop, say)
            notes += more
        write_model(to, converted, description, staging)
        done = []
        for precision in _precisions(to, options.int8):
            say(f"comparing the file with the model ({precision})")
            chosen: Precision = "auto" if precision == "int8" else precision  # type: ignore[assignment]
            file = load_exported(staging, chosen if to == "openvino" else "auto", trusted=True)
            done.append(verify_detector(original, file, precision, dataset, console, options.max_drop))
        notes += _accepted(done, path)
        description = replace(description, verified={each.precision: each.to_dict() for each in done})
        write_model(to, converted, description, staging)
    return Export(path, description, tuple(done), tuple(notes))


def _accepted(verifications: Sequence[Verification], path: Path) -> list[str]:
    """Return notes for the user, or refuse the file ``path``.

    A file that is right in fp32 is kept: it runs in fp32 if bf16 loses too much.
    """
    failed = [each for each in verifications if each.faults]
    if fatal := [each for each in failed if each.precision != "bf16"]:
        table = "\n".join(line for each in verifications for line in each.table())
        fault = f"{fatal[0].precision}: {fatal[0].faults[0]}"
        raise ExportError(f"{path} was not written, because it would not agree with the model: {fault}", table)
    return [f"bf16: {each.faults[0]}, so the file runs in fp32 unless --precision bf16 is given" for each in failed]


def _converted(model: RetinaNet, description: ExportedModel, to: Target, options: ExportOptions, say: Say) -> Any:
    """The model as an ``onnx.ModelProto``, an ``openvino.Model`` or a ``torch.export.ExportedProgram``."""
    config = description.info.config
    network = NetworkGraph(model).eval()
    graph: torch.nn.Module = network
    names = raw_names(len(config.anchors.strides))
    if description.kind == "detector":
        graph = DetectorGraph(network, config.anchors, config.decode.resolved()).eval()
        names = [*DETECTIONS, *names]
    say("tracing the network")
    program = trace(graph, options, torch.float32 if description.input_type is np.float32 else torch.uint8)
    if to == "torch":
        return program
    say(f"converting it to ONNX (opset {options.opset})")
    proto = to_onnx(program, names, options.opset, hidden=description.kind == "detector")
    if to == "onnx":
        return proto
    from retinanet.exporting.openvino import to_openvino

    return to_openvino(proto)


def verify(
    file: str | Path,
    weights: str | Path,
    data: str | Path | None = None,
    *,
    split: str = "val",
    precision: Precision = "auto",
    trust: bool = False,
    reading: ReadOptions = _DEFAULT_READING,
    console: Console | None = None,
) -> Verification:
    """Compare an exported file with the weights that it was exported from.

    Args:
        file: a file that ``retinanet export`` wrote.
        weights: path of the weights file, or name of a bundled model.
        data: dataset to compare on. Unset: a photo, drawn scenes and noise.
        split: split of ``data``.
        precision: arithmetic of an OpenVINO file.
        trust: open a ``.pt2`` file, which can run code; only for files that you made yourself.
        reading: how the dataset is read.
        console: where progress is shown.

    Raises:
        RetinaNetError: a file cannot be read, or the file is that of another model.
    """
    if Path(file).suffix.lower() not in EXPORTED:
        raise ConfigError(f"{file}: not an exported file ({', '.join(EXPORTED)}); 'retinanet export' writes them")
    exported = load_exported(Path(file), precision, trusted=trust)
    model, info = load_weights(weights)
    own = exported.info
    if different := [name for name, part in _MODEL_PARTS.items() if part(own) != part(info)]:
        raise CheckpointError(f"{file} was not exported from {weights}: {', '.join(different)} differ")
    dataset, _ = _read(data, split, info, reading)
    original = PyTorchDetector(model, own, precision="fp32", device="cpu")
    return verify_detector(original, exported, exported.network.arithmetic, dataset, console)


def verify_detections(
    detections: str | Path,
    weights: str | Path,
    data: str | Path,
    *,
    split: str = "val",
    reading: ReadOptions = _DEFAULT_READING,
    console: Console | None = None,
) -> Verification:
    """Compare the detections that another program computed with an exported file with those of the weights.

    Another program resizes images in its own way, so the differences of a reduced precision are accepted.

    Args:
        detections: JSON file in COCO's results format, or another output of ``retinanet detect``.
        weights: path of the weights file, or name of a bundled model.
        data: dataset that the detections belong to.
        split: split of ``data``.
        reading: how the dataset is read.
        console: where progress is shown.

    Raises:
        RetinaNetError: a file cannot be read.
    """
    model, info = load_weights(weights)
    dataset, _ = _read(data, split, info, reading)
    assert dataset is not None
    theirs, _ = read_detections(Path(detections), dataset)
    original = PyTorchDetector(model, info, precision="fp32", device="cpu")
    ours = detections_on(dataset, original, "images", console)
    agreement = Agreement()
    # A file may leave out low scores; the lowest one is taken for its threshold.
    floor = max(info.config.decode.score, float(theirs.scores.min(initial=1.0)))
    for image, (width, height) in enumerate(dataset.sizes.tolist()):
        mine, other = ours.of_image(image), theirs.of_image(image)
        agreement += compare_detections(mine, other, (height, width), REDUCED, floor)
    return Verification("another program", dataset.name, agreement, ap=ap_of_both(dataset, ours, theirs))


def _path(weights: str | Path, to: Target, out: str | Path | None) -> Path:
    suffix = SUFFIXES[to]
    if out is None:
        path = Path(weights)
        return path.with_suffix(suffix) if path.suffix else Path(f"{path.name}{suffix}")
    path = Path(out)
    if path.is_dir():
        return path / f"{Path(weights).stem}{suffix}"
    if path.suffix != suffix:
        raise ConfigError(f"--out {out}: {to} files end in {suffix}")
    return path


def _require_packages(to: Target, int8: bool) -> None:
    """Import what the export needs, so that a missing package is reported before the work."""
    from importlib import import_module

    needed = {"onnx": ["onnx", "onnxscript", "onnxslim", "onnxruntime"], "torch": []}
    needed["openvino"] = ["onnx", "onnxscript", "onnxslim", "openvino"]
    for name in needed[to]:
        if name != "openvino":  # OpenVINO is imported without its telemetry
            import_module(name)
    if to == "openvino":
        from retinanet.runtime.openvino import import_without_telemetry

        import_without_telemetry("openvino")
        if int8:
            import_without_telemetry("nncf")


def _with_limits(info: ModelInfo, options: ExportOptions) -> ModelInfo:
    decode = info.config.decode.at_most(options.max_detections)
    if options.score is not None:
        decode = replace(decode, score=options.score)
    return replace(info, config=replace(info.config, decode=decode))


def _read(
    data: str | Path | None, split: str, info: ModelInfo, reading: ReadOptions
) -> tuple[Dataset | None, list[str]]:
    """The images to compare on, with the classes of the model."""
    if data is None:
        return None, []
    dataset, notes = read_eval(data, split, info.config.data.val_fraction, options=reading)
    return with_model_classes(dataset, info.classes), list(notes)


def _calibration_data(
    data: str | Path | None, info: ModelInfo, reading: ReadOptions, dataset: Dataset
) -> tuple[Dataset, list[str]]:
    """The images that the value ranges are taken from: those of the training, else those of the comparison."""
    assert data is not None
    if not open_dataset(data, reading).has("train"):
        return dataset, ["there is no split train, so the value ranges come from the images that AP is measured on"]
    # If val is held out of train, its images are not used for the value ranges.
    train, _, _ = read_train_val(data, val_fraction=info.config.data.val_fraction, options=reading)
    return with_model_classes(train, info.classes), []


def _precisions(to: Target, int8: bool) -> list[str]:
    if int8:
        return ["int8"]
    if to == "openvino":
        from retinanet.runtime.openvino import has_bf16

        return ["fp32", "bf16"] if has_bf16() else ["fp32"]
    return ["fp32"]
