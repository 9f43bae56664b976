"""Exported files of five backbones beside their models: largest differences at ten sizes, in batches of 1 and 4.

    python benchmarks/export_agreement.py [--out FILE] [--backbone NAME ...] [--quick]

Each backbone gets random weights that give hundreds of detections. It is exported once to ONNX (the detector) and once
to OpenVINO (the network), with dynamic sizes, and each file runs on all sizes. Rows are written as they are measured.
``--quick`` uses three small sizes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from retinanet.config import Config
from retinanet.data.synthetic import CLASSES, draw_scene
from retinanet.detection.pytorch import PyTorchDetector
from retinanet.detection.runtime import RuntimeDetector, input_of, load_exported
from retinanet.exporting.agreement import EXACT, Agreement, compare_detections, compare_raw
from retinanet.exporting.api import export
from retinanet.exporting.graph import NetworkGraph, raw_names
from retinanet.exporting.raw_outputs import DetectorFile
from retinanet.files import write_json
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.recipes import load_recipe
from retinanet.zoo.weights import save_weights

BACKBONES = ("resnet50", "resnet18", "resnext50_32x4d", "tf_efficientnet_lite0", "convnext_tiny")

# (height, width) of the images. The first four also run in batches of 4.
SIZES = ((320, 320), (384, 512), (640, 480), (800, 800))
MORE_SIZES = ((800, 1088), (427, 640), (33, 57), (224, 1024), (97, 401), (608, 128))
QUICK = ((64, 96), (128, 128), (33, 57))


def random_model(backbone: str) -> tuple[RetinaNet, ModelInfo]:
    """A network of the paper's recipe whose random weights find something in every image."""
    torch.manual_seed(0)
    values = load_recipe("paper").to_dict()
    values["model"] |= {"backbone": backbone, "pretrained": False}
    config = Config.from_dict(values)
    model = RetinaNet.from_config(config.model, config.anchors, len(CLASSES), pretrained=False).eval()
    for subnet in (model.classification, model.regression):
        for module in subnet.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    with torch.inference_mode():
        outputs = model(torch.randn(1, 3, 256, 256))
        spread = [torch.cat(part, dim=1).std() for part in outputs]
    with torch.no_grad():
        model.classification.predict.weight.mul_(1.5 / spread[0])
        model.regression.predict.weight.mul_(0.3 / spread[1])
        model.classification.predict.bias.fill_(-6.0)  # type: ignore[union-attr]
    return model, ModelInfo.of(model, CLASSES, config)


def image(size: tuple[int, int], number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A drawn scene or noise, uint8 RGB of ``size``."""
    height, width = size
    if number % 2:
        return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    scene, _, _ = draw_scene(seed=0, index=number, size=320)
    return np.asarray(scene.resize((width, height)))


def compare(original: PyTorchDetector, file: RuntimeDetector, size: tuple[int, int], batch: int) -> Agreement:
    """Differences of the outputs and of the detections for a batch of images."""
    images = [image(size, number) for number in range(batch)]
    pixels, sizes = input_of(images, file.network.model, filling=77)
    with torch.inference_mode():
        graph = NetworkGraph(original.model).eval()
        expected = [each.numpy() for each in graph(torch.from_numpy(pixels), torch.from_numpy(sizes))]
    path, description = file.network.path, file.network.model
    detector = description.kind == "detector"
    compute = DetectorFile(path, description).raw_outputs if detector else file.network
    outputs = compute(pixels, sizes)
    names = raw_names(len(original.info.config.anchors.strides))
    found = Agreement(raw=compare_raw(expected, [outputs[name] for name in names]))
    floor = original.decode_config().score
    for ours, theirs in zip(original.detect_scaled(images), file.detect_scaled(images), strict=True):
        found += compare_detections(ours, theirs, size, EXACT, floor)
    return found


def rows(backbone: str, folder: Path, quick: bool) -> list[dict[str, Any]]:
    """Export a backbone to both formats, and compare each file at all sizes."""
    model, info = random_model(backbone)
    weights = folder / f"{backbone}.safetensors"
    save_weights(weights, model.state_dict(), info)
    original = PyTorchDetector(model, info, "fp32", "cpu")
    measured = []
    for to in ("onnx", "openvino"):
        result = export(weights, to)
        file = load_exported(result.path, "fp32")
        for size in QUICK if quick else SIZES + MORE_SIZES:
            for batch in (1, 4) if size in SIZES + QUICK[:1] else (1,):
                found = compare(original, file, size, batch)
                row = {
                    "backbone": backbone,
                    "to": to,
                    "size": list(size),
                    "batch": batch,
                    "output_difference": found.raw,
                    "box_difference_px": found.box,
                    "score_difference": found.score,
                    "detections": found.detections,
                    "differing": found.differing,
                    "within": found.within(EXACT),
                    "file_mb": round(result.bytes / 1e6, 1),
                }
                print(row, flush=True)
                measured.append(row)
    return measured


def main() -> None:
    """Compare all backbones and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/export_agreement.json"))
    parser.add_argument("--backbone", nargs="+", default=list(BACKBONES))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    measured: list[dict[str, Any]] = []
    for backbone in arguments.backbone:
        with tempfile.TemporaryDirectory() as folder:
            measured += rows(backbone, Path(folder), arguments.quick)
        write_json(arguments.out, {"torch": torch.__version__, "rows": measured}, indent=1)


if __name__ == "__main__":
    main()
