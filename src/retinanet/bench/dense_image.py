"""``retinanet bench dense-image``: detection and a training step on an image with 10,000 objects, beside 10 objects.

The network runs on a synthetic image (``retinanet data sample --objects``). It is not trained, so its outputs are
replaced by those of an ideal network for the same image; see :mod:`retinanet.bench.density`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from retinanet.bench.density import Ideal, predicted
from retinanet.bench.measure import extra_memory
from retinanet.config import Config
from retinanet.data.loader import Batch
from retinanet.data.synthetic import CLASSES, draw_scene
from retinanet.detection.pytorch import PyTorchDetector
from retinanet.files import write_json
from retinanet.hardware import resolve_precision
from retinanet.losses import Normalizer
from retinanet.machine import cores, processor
from retinanet.model import Outputs, RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.postprocess import postprocess, select, suppress
from retinanet.recipes import load_recipe
from retinanet.training.distributed import Processes
from retinanet.training.step import backward, match_ground_truth

_CPU = torch.device("cpu")


class _Replaced(nn.Module):
    """Runs a network, and returns the outputs of an ideal network instead of its own."""

    def __init__(self, network: nn.Module, outputs: Outputs) -> None:
        super().__init__()
        self.network, self.outputs = network, outputs

    def forward(self, images: Tensor) -> Outputs:
        self.network(images)
        return self.outputs


def settings(side: int, objects: int) -> Config:
    """The recipe ``modern`` at ``side`` pixels, with limits for ``objects`` objects in an image."""
    values = load_recipe("modern").to_dict()
    values["data"] |= {"size": side, "max_size": side}
    values["decode"] |= {"max_detections": max(100, 2 * objects), "top_k": max(1000, 20 * objects)}
    return Config.from_dict(values)


def scene(objects: int, side: int) -> tuple[Tensor, Batch, Ideal]:
    """Draw an image with ``objects`` objects. Return it, a batch of it, and the ideal outputs for it."""
    image, parts, _ = draw_scene(0, 0, side, objects)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    boxes = torch.tensor([box for _, box in parts], dtype=torch.float32)
    labels = torch.tensor([CLASSES.index(kind) for kind, _ in parts])
    batch = Batch([pixels], [boxes], [labels], [torch.zeros(0, 4)], [0])
    return pixels, batch, predicted(boxes, -(-side // 32) * 32, torch.Generator().manual_seed(0), len(CLASSES))


def detection(model: RetinaNet, objects: int, side: int) -> dict[str, Any]:
    """Measure detection: seconds and peak memory of all, seconds of post-processing and of suppression alone."""
    config = settings(side, objects)
    pixels, _, ideal = scene(objects, side)
    detector = PyTorchDetector(model, ModelInfo.of(model, CLASSES, config), device="cpu")
    detector.network = _Replaced(detector.network, ideal.outputs)  # type: ignore[assignment]
    array = pixels.permute(1, 2, 0).numpy()
    detector.detect([array])
    began = time.perf_counter()
    [found] = detector.detect([array])
    seconds = time.perf_counter() - began
    memory = extra_memory(lambda: detector.detect([array]))
    candidates = select(ideal.outputs, ideal.grid, [(side, side)], config.decode.resolved()).candidates
    return {
        "objects": objects,
        "detections": len(found),
        "candidates": int((candidates.scores > 0).sum()),
        "seconds": round(seconds, 3),
        "post_processing_seconds": _fastest(
            lambda: postprocess(ideal.outputs, ideal.grid, [(side, side)], config.decode)
        ),
        "suppression_seconds": _fastest(lambda: suppress(candidates, config.decode)),
        "peak_memory_mb": None if memory is None else round(memory / 2**20),
    }


def training_step(objects: int, side: int) -> dict[str, Any]:
    """Measure the gradients of a training step on one image, and the assignment in it."""
    config = settings(side, objects)
    model = RetinaNet.from_config(config.model, config.anchors, len(CLASSES)).train()
    _, batch, _ = scene(objects, side)
    normalizer, dtype = Normalizer(config.loss), resolve_precision("auto", _CPU)

    def step() -> None:
        losses, _ = backward(model, batch, config, normalizer, dtype, Processes(), 1)
        if not losses.total.isfinite():
            raise AssertionError(f"the loss of the training step is {losses.total}")

    began = time.perf_counter()
    step()
    seconds = time.perf_counter() - began
    memory = extra_memory(step)
    size = (batch.images[0].shape[-2], batch.images[0].shape[-1])
    return {
        "objects": objects,
        "seconds": round(seconds, 3),
        "assignment_seconds": _fastest(lambda: match_ground_truth(batch, size, config)),
        "peak_memory_mb": None if memory is None else round(memory / 2**20),
    }


def run(out: Path, console: Console, objects: tuple[int, int] = (10, 10_000), side: int = 4096) -> list[str]:
    """Measure an image with few and one with many objects, and write ``dense_image.json``."""
    config = settings(side, max(objects))
    model = RetinaNet.from_config(config.model, config.anchors, len(CLASSES)).eval()
    found = [detection(model, count, side) for count in objects]
    steps = [training_step(count, side) for count in objects]
    few, many = found
    summary: dict[str, Any] = {
        "suppression_share": round(many["suppression_seconds"] / many["seconds"], 4),
        "detection_memory_ratio": _ratio(many, few),
        "training_memory_ratio": _ratio(steps[1], steps[0]),
    }
    head = {"processor": processor(), "cores": cores(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    write_json(out / "dense_image.json", {**head, "side": side, **summary, "detection": found, "training": steps}, 1)
    console.print(
        f"{many['objects']:,} objects in {side}×{side} pixels: {many['detections']:,} detections in "
        f"{many['seconds']:.1f} s, {100 * summary['suppression_share']:.1f}% of it suppression; memory "
        f"{summary['detection_memory_ratio']} times that of {few['objects']} objects. Training step: "
        f"{steps[1]['seconds']:.1f} s, {steps[0]['seconds']:.1f} s with {few['objects']} objects; memory "
        f"{summary['training_memory_ratio']} times"
    )
    return ["dense_image.json"]


def _ratio(many: dict[str, Any], few: dict[str, Any]) -> float | None:
    values = many["peak_memory_mb"], few["peak_memory_mb"]
    return round(values[0] / values[1], 3) if all(values) else None


def _fastest(call: Callable[[], object], calls: int = 3) -> float:
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return round(min(times), 4)
