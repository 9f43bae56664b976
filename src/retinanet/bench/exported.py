"""``retinanet bench export``: a model in every runtime and precision, beside PyTorch and torchvision.

Two runtimes that are called in turn disturb each other's threads. So each side is measured in blocks: all calls of a
side, then all calls of the next one, and all sides again.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from retinanet.bench.inputs import textured_image
from retinanet.bench.options import BenchOptions
from retinanet.bench.peer import set_input_size, torchvision_retinanet
from retinanet.data.dataset import Dataset
from retinanet.data.formats.open_dataset import read_eval, with_model_classes
from retinanet.data.images import read_image
from retinanet.data.synthetic import CLASSES, write_sample
from retinanet.data.transforms import normalized_batch
from retinanet.detection.detector import Detector
from retinanet.detection.pytorch import PyTorchDetector, load_pytorch
from retinanet.detection.runtime import RuntimeDetector, input_of, load_exported
from retinanet.detection.sources import detect_in_files, find_images
from retinanet.evaluation.coco_ap import coco_metrics
from retinanet.evaluation.model_evaluation import detections_on
from retinanet.exporting.api import export
from retinanet.exporting.options import ExportOptions
from retinanet.files import write_atomically, write_json
from retinanet.hardware import autocast
from retinanet.machine import Precision, cores, processor
from retinanet.runtime.openvino import has_bf16
from retinanet.zoo.importers import from_torchvision
from retinanet.zoo.weights import save_weights

# Each side has this many blocks; a block lasts at least so many seconds and calls, after one call that is not counted.
_BLOCKS, _SECONDS, _CALLS = 5, 1.0, 3

# Number of files that the throughput is measured on.
_FILES = 64

# Input size and number of classes of the ResNet-50.
_SIDE, _CLASSES = 800, len(CLASSES)

TORCHVISION = "torchvision fp32"


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
    """

    name: str
    network: Callable[[], Any]
    detect: Callable[[], Any]
    files: Callable[[], Any] | None = None
    ap: float | None = None
    megabytes: float | None = None
    file_count: int = 0
    """Number of image files."""


@dataclass(frozen=True)
class Row:
    """The figures of a side; times are medians in milliseconds."""

    model: str
    side: str
    network_ms: float
    detect_ms: float
    images_per_second: float | None
    ap: float | None
    megabytes: float | None


def run(out: Path, console: Console, options: BenchOptions, side: int = _SIDE) -> list[str]:
    """Measure torchvision's ResNet-50 and a model; write ``export.json``, and ``export.png`` if AP is known.

    Args:
        out: folder of the results.
        console: where progress and the table are shown.
        options: the model, and the dataset for its AP and INT8.
        side: side of the input of the ResNet-50 in pixels.

    Returns:
        The names of the files in ``out``.
    """
    weights, data, split = options.weights, options.data, options.split
    threads = options.threads or cores()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            rows += measured(f"ResNet-50, {side}×{side}", resnet_sides(place, console, threads, side), console)
            _save(out, rows, threads)
            sides = model_sides(weights, place, console, data, split, threads)
            rows += measured(Path(weights).stem, sides, console)
    finally:
        torch.set_num_threads(before)
    _save(out, rows, threads)
    console.print(table(rows))
    if not any(row.ap is not None for row in rows):
        return ["export.json"]
    write_atomically(out / "export.png", lambda temporary: _plot(rows, temporary))
    return ["export.json", "export.png"]


def _save(out: Path, rows: Sequence[Row], threads: int) -> None:
    head = {"processor": processor(), "threads": threads, "torch": torch.__version__, "versions": _versions()}
    write_json(out / "export.json", {**head, "rows": [asdict(row) for row in rows]}, indent=1)


def resnet_sides(folder: Path, console: Console, threads: int, side: int) -> list[Side]:
    """The sides of torchvision's RetinaNet with random weights, on a uint8 array. INT8 is calibrated on scenes."""
    peer = torchvision_retinanet(_CLASSES)
    set_input_size(peer, side)
    imported = from_torchvision(peer.state_dict(), precision="fp32", device="cpu")
    data = replace(imported.info.config.data, size=side, max_size=side)
    info = replace(imported.info, classes=CLASSES, config=replace(imported.info.config, data=data))
    path = folder / "resnet50.safetensors"
    save_weights(path, imported.model.state_dict(), info)
    write_sample(folder / "scenes", images=50, size=side)
    files = _exported(path, folder, console, folder / "scenes", "val", max_drop=100)
    image = np.ascontiguousarray(textured_image(side, side).transpose(1, 2, 0))

    @torch.inference_mode()
    def their_network() -> Any:
        features = list(peer.backbone(batch).values())
        return peer.head(features)

    @torch.inference_mode()
    def theirs() -> Any:
        return peer([torch.from_numpy(image).permute(2, 0, 1).float() / 255])

    batch = normalized_batch([torch.from_numpy(image).permute(2, 0, 1)], imported.model.mean, imported.model.std)
    sides = [Side(TORCHVISION, their_network, theirs)]
    for name, detector, _, megabytes in _detectors(path, files, threads):
        pixels = detector.resize(image, (side, side))
        detect = _call(detector.detect, [image])
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
        dataset = _dataset(weights, data, split)
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
                _call(_detect_file, detector, paths[0]),
                _call(_detect_files, detector, sources),
                ap,
                megabytes,
                len(sources),
            )
        )
    return sides


def measured(title: str, sides: Sequence[Side], console: Console) -> list[Row]:
    """Measure the sides in blocks."""
    console.print(f"{title}: measuring {', '.join(each.name for each in sides)} …")
    networks: dict[str, list[float]] = {side.name: [] for side in sides}
    detections: dict[str, list[float]] = {side.name: [] for side in sides}
    folders: dict[str, list[float]] = {side.name: [] for side in sides}
    for number, side in itertools.product(range(_BLOCKS), sides):
        networks[side.name] += _block(side.network)
        detections[side.name] += _block(side.detect)
        if side.files and number < 3:
            folders[side.name] += _block(side.files, seconds=0, calls=1)
    rows = []
    for side in sides:
        network, detect = (1000 * statistics.median(each[side.name]) for each in (networks, detections))
        files = folders[side.name]
        rate = round(side.file_count / statistics.median(files), 1) if files else None
        rows.append(
            Row(
                title,
                side.name,
                round(network, 2),
                round(detect, 2),
                rate,
                None if side.ap is None else round(side.ap, 5),
                None if side.megabytes is None else round(side.megabytes, 1),
            )
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Format a Markdown table. The times faster are relative to the first side of each model."""
    lines = ["| model | runtime | network | times faster | image to detections | times faster | files | AP | size |"]
    lines.append("|" + "---|" * 9)
    for title, group in itertools.groupby(rows, key=lambda row: row.model):
        first, *rest = group
        for row in (first, *rest):
            cells = [
                title,
                row.side,
                f"{row.network_ms:.1f} ms",
                f"{first.network_ms / row.network_ms:.2f}",
                f"{row.detect_ms:.1f} ms",
                f"{first.detect_ms / row.detect_ms:.2f}",
                "" if row.images_per_second is None else f"{row.images_per_second:.1f}/s",
                "" if row.ap is None else f"{100 * row.ap:.2f}",
                "" if row.megabytes is None else f"{row.megabytes:.1f} MB",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Files:
    """Exported files of a model by format, with AP by format and arithmetic."""

    paths: dict[str, Path]
    ap: dict[tuple[str, str], float]
    megabytes: dict[str, float]


def _exported(
    weights: str | Path, folder: Path, console: Console, data: Path | None, split: str, max_drop: float = 0.3
) -> _Files:
    """Export to ONNX, OpenVINO and, if there is ``data``, to OpenVINO INT8. Each file is compared with the model."""
    files = _Files({}, {}, {})
    float_options, int8_options = ExportOptions(graph="network"), ExportOptions(int8=True, max_drop=max_drop)
    kinds: list[tuple[str, Any, ExportOptions]] = [
        ("onnx", "onnx", float_options),
        ("openvino", "openvino", float_options),
    ]
    if data is not None:
        kinds.append(("int8", "openvino", int8_options))
    for name, to, options in kinds:
        console.print(f"{Path(weights).stem}: exporting to {name} …")
        path = folder / f"{Path(weights).stem}-{name}{'.onnx' if to == 'onnx' else '.xml'}"
        # The untrained ResNet-50 has no AP, so only its INT8 file needs the scenes.
        images = data if max_drop < 100 or name == "int8" else None
        result = export(weights, to, path, data=images, split=split, options=options, console=console)
        files.paths[name], files.megabytes[name] = path, result.bytes / 1e6
        if max_drop < 100:
            for each in result.verifications:
                if each.ap is not None:
                    files.ap[name, each.precision] = each.ap[1]
                    files.ap["torch", "fp32"] = each.ap[0]
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
        return _call(detector.network, *input_of([pixels], detector.network.model))
    batch = normalized_batch([torch.from_numpy(pixels).permute(2, 0, 1)], detector.model.mean, detector.model.std)

    @torch.inference_mode()
    def network() -> Any:
        with autocast(detector.device, detector.dtype):
            return detector.network(batch)

    return network


def _call(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _detect_file(detector: Detector, path: Path) -> Any:
    return detector.detect([read_image(path, detector.info.config.data.pixel_range)])


def _detect_files(detector: Detector, sources: Any) -> None:
    for _ in detect_in_files(detector, sources, 0.3):
        pass


def _dataset(weights: str | Path, data: Path, split: str) -> Dataset:
    info = load_pytorch(weights, "fp32", "cpu").info
    dataset, _ = read_eval(data, split, info.config.data.val_fraction)
    return with_model_classes(dataset, info.classes)


def _block(call: Callable[[], Any], seconds: float = _SECONDS, calls: int = _CALLS) -> list[float]:
    """Seconds of each call of a block."""
    call()
    taken: list[float] = []
    while len(taken) < calls or sum(taken) < seconds:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return taken


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torchvision", "onnx", "onnxruntime", "openvino", "nncf")}


def _plot(rows: Sequence[Row], path: Path) -> None:
    """Draw AP against the time of an image, with a marker for each runtime."""
    from matplotlib.figure import Figure

    known = [row for row in rows if row.ap is not None]
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for row in known:
        marker = "o" if row.side.startswith("PyTorch") else "s"
        axes.plot(row.detect_ms, 100 * (row.ap or 0), marker, markersize=7, label=row.side)
    values = [100 * (row.ap or 0) for row in known]
    # Half a point of room, so that differences of rounding do not fill the axis.
    axes.set_ylim(min(values) - 0.5, max(values) + 0.5)
    axes.set_xlim(0, 1.25 * max(row.detect_ms for row in known))
    axes.set(xlabel="ms from an image file to its detections", ylabel="AP", title=known[0].model)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
