"""The sides of ``retinanet bench export``: a model, exported to every format, in every runtime and precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from retinanet.bench.inputs import textured_image
from retinanet.bench.peer import set_input_size, torchvision_retinanet
from retinanet.data.formats.train_val import read_eval, with_model_classes
from retinanet.data.images import read_image
from retinanet.data.synthetic import CLASSES, write_sample
from retinanet.data.transforms import normalized_batch
from retinanet.detection.detector import Detector
from retinanet.detection.pipeline import detect_in_files
from retinanet.detection.pytorch import PyTorchDetector, load_pytorch
from retinanet.detection.runtime import RuntimeDetector, input_of, load_exported
from retinanet.detection.sources import find_images
from retinanet.evaluation.coco_ap import coco_metrics
from retinanet.evaluation.model_evaluation import detections_on
from retinanet.exporting.api import export
from retinanet.exporting.options import SUFFIXES, ExportOptions, Target
from retinanet.hardware import autocast
from retinanet.machine import Precision
from retinanet.runtime.openvino import has_bf16
from retinanet.zoo.importers import from_torchvision
from retinanet.zoo.weights import find_weights, read_info, save_weights

# Number of files that the throughput is measured on.
_FILES = 64


@dataclass(frozen=True)
class Side:
    """A model in a runtime.

    Attributes:
        name: runtime and precision.
        network: one call of the network, with its input ready.
        detect: detection in one image, from a uint8 array in memory or from a file.
        files: detection in image files; ``None``: not measured.
        ap: AP on the dataset, 0–1.
        megabytes: size of the files of the model.
        file_count: number of image files.
    """

    name: str
    network: Callable[[], Any]
    detect: Callable[[], Any]
    files: Callable[[], Any] | None = None
    ap: float | None = None
    megabytes: float | None = None
    file_count: int = 0


def resnet_sides(folder: Path, console: Console, threads: int, side: int) -> list[Side]:
    """The sides of torchvision's RetinaNet with random weights, on a uint8 array. INT8 is calibrated on scenes."""
    peer = torchvision_retinanet(len(CLASSES))
    set_input_size(peer, side)
    imported = from_torchvision(peer.state_dict(), precision="fp32", device="cpu")
    data = replace(imported.info.config.data, size=side, max_size=side)
    info = replace(imported.info, classes=CLASSES, config=replace(imported.info.config, data=data))
    path = folder / "resnet50.safetensors"
    save_weights(path, imported.model.state_dict(), info)
    write_sample(folder / "scenes", images=50, size=side)
    files = _exported(path, folder, console, folder / "scenes", "val", trained=False)
    image = np.ascontiguousarray(textured_image(side, side).transpose(1, 2, 0))

    @torch.inference_mode()
    def their_network() -> Any:
        features = list(peer.backbone(batch).values())
        return peer.head(features)

    @torch.inference_mode()
    def theirs() -> Any:
        return peer([torch.from_numpy(image).permute(2, 0, 1).float() / 255])

    batch = normalized_batch([torch.from_numpy(image).permute(2, 0, 1)], imported.model.mean, imported.model.std)
    sides = [Side("torchvision fp32", their_network, theirs)]
    for name, detector, _, megabytes in _detectors(path, files, threads):
        pixels = detector.resize(image, (side, side))
        detect = partial(detector.detect, [image])
        sides.append(Side(name, _network(detector, pixels), detect, megabytes=megabytes))
    return sides


def model_sides(
    weights: str | Path, folder: Path, console: Console, data: Path | None, split: str, threads: int
) -> list[Side]:
    """The sides of a model, on the images of ``data`` or on JPEG files of 640×480 pixels."""
    files = _exported(weights, folder, console, data, split)
    if data is None:
        (folder / "images").mkdir()
        for number in range(_FILES):
            shifted = np.roll(textured_image(480, 640), number, axis=2).transpose(1, 2, 0)
            Image.fromarray(shifted).save(folder / "images" / f"{number}.jpg", quality=90)
        paths, dataset = sorted((folder / "images").iterdir()), None
    else:
        info = read_info(find_weights(weights))
        dataset = with_model_classes(read_eval(data, split, info.config.data.val_fraction)[0], info.classes)
        paths = [dataset.path(index) for index in range(min(_FILES, len(dataset)))]
    sources = find_images([str(path) for path in paths])
    sides = []
    for name, detector, ap, megabytes in _detectors(weights, files, threads):
        image = read_image(paths[0], detector.info.config.data.pixel_range)
        pixels = detector.resize(image, detector.scaled_size(*image.shape[:2]))
        if dataset is not None and ap is None:
            ap = coco_metrics(dataset, detections_on(dataset, detector, name, console)).summary["AP"]
        sides.append(
            Side(
                name,
                _network(detector, pixels),
                partial(_detect_file, detector, paths[0]),
                partial(_detect_files, detector, sources),
                ap,
                megabytes,
                len(sources),
            )
        )
    return sides


@dataclass(frozen=True)
class _Files:
    """Exported files of a model by format, with AP by format and arithmetic."""

    paths: dict[str, Path]
    ap: dict[tuple[str, str], float]
    megabytes: dict[str, float]


def _exported(
    weights: str | Path, folder: Path, console: Console, data: Path | None, split: str, trained: bool = True
) -> _Files:
    """Export to ONNX, OpenVINO and, if there is ``data``, to OpenVINO INT8. Each file is compared with the model.

    A model that is not ``trained`` has no AP, so only its INT8 file needs the images of ``data``.
    """
    files = _Files({}, {}, {})
    network, int8 = ExportOptions(graph="network"), ExportOptions(int8=True, max_drop=0.3 if trained else 100)
    kinds: list[tuple[str, Target, ExportOptions]] = [("onnx", "onnx", network), ("openvino", "openvino", network)]
    kinds += [("int8", "openvino", int8)] if data is not None else []
    for name, to, options in kinds:
        console.print(f"{Path(weights).stem}: exporting to {name} …")
        path = folder / f"{Path(weights).stem}-{name}{SUFFIXES[to]}"
        images = data if trained or options.int8 else None
        result = export(weights, to, path, data=images, split=split, options=options, console=console)
        files.paths[name], files.megabytes[name] = path, result.bytes / 1e6
        for each in result.verifications if trained else ():
            if each.ap is not None:
                files.ap["torch", "fp32"], files.ap[name, each.precision] = each.ap
    return files


def _detectors(
    weights: str | Path, files: _Files, threads: int
) -> Iterator[tuple[str, PyTorchDetector | RuntimeDetector, float | None, float | None]]:
    """Name, detector, AP and size of each runtime and precision."""
    precisions: list[Precision] = ["fp32", "bf16"] if has_bf16() else ["fp32"]
    for precision in precisions:
        yield f"PyTorch {precision}", load_pytorch(weights, precision, "cpu"), files.ap.get(("torch", precision)), None
    sides: list[tuple[str, str, Precision]] = [("onnx", "fp32", "auto")]
    sides += [("openvino", precision, precision) for precision in precisions]
    sides += [("int8", "int8", "auto")] if "int8" in files.paths else []
    for name, arithmetic, precision in sides:
        runtime = "ONNX Runtime" if name == "onnx" else "OpenVINO"
        detector = load_exported(files.paths[name], precision, threads=threads)
        yield f"{runtime} {arithmetic}", detector, files.ap.get((name, arithmetic)), files.megabytes[name]


def _network(detector: PyTorchDetector | RuntimeDetector, pixels: Any) -> Callable[[], Any]:
    """A call of the detector's network with one image of the network's size."""
    if isinstance(detector, RuntimeDetector):
        return partial(detector.network, *input_of([pixels], detector.network.model))
    batch = normalized_batch([torch.from_numpy(pixels).permute(2, 0, 1)], detector.model.mean, detector.model.std)

    @torch.inference_mode()
    def network() -> Any:
        with autocast(detector.device, detector.dtype):
            return detector.network(batch)

    return network


def _detect_file(detector: Detector, path: Path) -> Any:
    return detector.detect([read_image(path, detector.info.config.data.pixel_range)])


def _detect_files(detector: Detector, sources: Any) -> None:
    for _ in detect_in_files(detector, sources, 0.3):
        pass
