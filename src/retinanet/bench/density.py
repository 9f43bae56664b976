"""``retinanet bench density``: AP, time and memory against the number of objects in an image.

An ideal network detects every object: each anchor that the assignment matches with an object predicts the object's box
with some noise. So the AP shows only what post-processing loses, above all by limits on candidates and detections. Both
sides get the same outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from retinanet.anchors import AnchorGrid, AnchorSpec, make_grid, match_batch
from retinanet.anchors.coding import aligned_iou, encode
from retinanet.bench.measure import Case, measure
from retinanet.config import AssignConfig, DecodeConfig
from retinanet.data.dataset import DatasetBuilder
from retinanet.detections import Detections
from retinanet.evaluation.curves import average_precisions, mean
from retinanet.evaluation.matching import make_scene, match
from retinanet.files import write_json, write_text
from retinanet.machine import cores, processor
from retinanet.model import Outputs
from retinanet.postprocess import postprocess
from retinanet.progress import progress_bar
from retinanet.report import svg
from retinanet.report.html import render

COUNTS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
SIDE = 4096

# Up to this many objects, torchvision's IoU matrix of an image of 4096×4096 pixels fits in memory.
_PEER_OBJECTS = 30

_SIDES = {
    "ours": ("#1f6f8b", ""),
    "torchvision": ("#c8553d", ""),
    "ours, 100 detections": ("#1f6f8b", "6 4"),
    "torchvision, 300 detections": ("#c8553d", "6 4"),
}


@dataclass(frozen=True)
class Ideal:
    """An image with objects, and what an ideal network predicts for it.

    Attributes:
        grid: the anchors.
        boxes: ``(G, 4)``, the objects, all of one class.
        outputs: predictions for a batch of one image.
    """

    grid: AnchorGrid
    boxes: Tensor
    outputs: Outputs


def ideal(count: int, side: int = SIDE, seed: int = 0) -> Ideal:
    """Place ``count`` objects of 26 to 40 pixels in an image of ``side`` pixels, and predict them with some noise."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm((side // 40) ** 2, generator=generator)[:count]
    corner = torch.stack([cells % (side // 40), cells // (side // 40)], dim=1) * 40.0
    size = 26 + 14 * torch.rand(len(cells), 2, generator=generator)
    corner = corner + (40 - size) * torch.rand(len(cells), 2, generator=generator)
    return predicted(torch.cat([corner, corner + size], dim=1), side, generator)


def predicted(boxes: Tensor, side: int, generator: torch.Generator, classes: int = 1) -> Ideal:
    """Return an ideal network's predictions of the objects ``boxes`` ``(G, 4)``, of class 0.

    The score of an anchor is its IoU with the object plus noise, and its box has an error of about 3% of the sides.
    """
    grid = make_grid(AnchorSpec(), (side, side))
    matches = match_batch(grid, [boxes], [boxes.new_zeros(0, 4)], AssignConfig(force_best=True))
    anchors, own = grid.boxes[matches.positive], boxes[matches.box]
    noise = torch.randn(len(own), 5, generator=generator)
    deltas = torch.zeros(1, len(grid.boxes), 4)
    deltas[0, matches.positive] = encode(own, anchors) + 0.03 * noise[:, :4]
    logits = torch.full((1, len(grid.boxes), classes), -10.0)
    scores = (aligned_iou(anchors, own) + 0.05 * noise[:, 4]).clamp(0.1, 0.99)
    logits[0, matches.positive, 0] = scores.logit()
    return Ideal(grid, boxes, Outputs(grid.split(logits, 1), grid.split(deltas, 1)))


def raised_limits(count: int) -> tuple[int, int]:
    """Detections per image, and candidates per level, that lose no object; up to 20 anchors belong to an object."""
    return max(100, 2 * count), max(1000, 20 * count)


def detections_of(scene: Ideal, side: int) -> dict[str, Callable[[], Detections]]:
    """Post-processing of the same outputs by both sides, with raised limits and with the default limits."""
    raised = raised_limits(len(scene.boxes))

    def ours(detections: int, top_k: int) -> Callable[[], Detections]:
        config = DecodeConfig(max_detections=detections, top_k=top_k)
        return lambda: postprocess(scene.outputs, scene.grid, [(side, side)], config)[0]

    def theirs(detections: int, top_k: int) -> Callable[[], Detections]:
        peer = retinanet_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=1, detections_per_img=detections, topk_candidates=top_k
        ).eval()
        head = {"cls_logits": scene.outputs.logits, "bbox_regression": scene.outputs.deltas}
        anchors = [list(scene.grid.split(scene.grid.boxes))]

        @torch.no_grad()
        def call() -> Detections:
            [found] = peer.postprocess_detections(head, anchors, [(side, side)])
            return Detections.of_one_image(*(found[name].numpy() for name in ("boxes", "scores", "labels")))

        return call

    return {
        "ours": ours(*raised),
        "torchvision": theirs(*raised),
        "ours, 100 detections": ours(100, 1000),
        "torchvision, 300 detections": theirs(300, 1000),
    }


def average_precision(scene: Ideal, found: Detections, side: int) -> float:
    """COCO's AP of one image, with all detections."""
    builder = DatasetBuilder("ideal", Path("."), ["object"])
    builder.add_image("0.jpg", side, side)
    for box in scene.boxes.tolist():
        builder.add_box(tuple(box), 0, "object")
    matched = make_scene(builder.build(), found, limit=max(1, len(found)))
    return mean(average_precisions(matched, match(matched), matched.totals()))


def measured(count: int, side: int = SIDE, repeats: int = 3) -> dict[str, Any]:
    """Measure an image with ``count`` objects: AP, time and memory of each side."""
    scene = ideal(count, side)
    sides = detections_of(scene, side)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=False)
    none = [scene.boxes.new_zeros(0, 4)]
    assignment: dict[str, Callable[[], Any]] = {"ours": lambda: match_batch(scene.grid, [scene.boxes], none)}
    if count <= _PEER_OBJECTS:
        assignment["torchvision"] = lambda: matcher(box_iou(scene.boxes, scene.grid.boxes))
    found = {name: call() for name, call in sides.items()}
    raised = {name: sides[name] for name in ("ours", "torchvision")}
    return {
        "objects": count,
        "raised_limits": dict(zip(("detections", "candidates_per_level"), raised_limits(count), strict=True)),
        "AP": {name: round(average_precision(scene, each, side), 4) for name, each in found.items()},
        "detections": {name: len(each) for name, each in found.items()},
        "post_processing": _numbers(measure(Case("post-processing", raised), repeats).to_dict()),
        "assignment": _numbers(measure(Case("assignment", assignment), repeats).to_dict()),
    }


def run(out: Path, console: Console, counts: Sequence[int] = COUNTS, side: int = SIDE) -> list[str]:
    """Measure all ``counts``, and write ``density.json`` and ``density.svg``."""
    points = []
    with progress_bar(console, "measuring", len(counts)) as bar:
        for count in counts:
            bar.update(0, f"{count:,} objects")
            points.append(measured(count, side))
            bar.advance(1)
    head = {"processor": processor(), "cores": cores(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    write_json(out / "density.json", {**head, "side": side, "points": points}, indent=1)
    write_text(out / "density.svg", render("charts.svg", charts=charts(points)))
    console.print(table(points))
    return ["density.json", "density.svg"]


def charts(points: Sequence[dict[str, Any]]) -> list[svg.Drawing]:
    """Draw AP, time and memory against the number of objects."""

    def lines(values: Callable[[dict[str, Any]], dict[str, Any]]) -> list[svg.Line]:
        drawn = []
        for name, (color, dashes) in _SIDES.items():
            known = [(each["objects"], values(each)[name]) for each in points if values(each).get(name) is not None]
            if known:
                x, y = np.array(known, dtype=np.float64).T
                drawn.append(svg.Line(name, x, y, color, dashes=dashes))
        return drawn

    x_label = "objects in the image"
    result = [svg.log_chart(lines(lambda p: p["AP"]), x_label, "AP", "AP of ideal outputs", "AP", unit=True)]
    for key, title in (("post_processing", "post-processing"), ("assignment", "assignment")):
        for value, unit in (("milliseconds", "ms"), ("megabytes", "MB")):
            found = lines(lambda p, k=key, v=value: p[k][v])  # type: ignore[misc]
            if found:
                result.append(svg.log_chart(found, x_label, unit, f"{title}, {unit}", f"{title}: {unit}"))
    return result


def table(points: Sequence[dict[str, Any]]) -> str:
    """Format a Markdown table, a row for each number of objects."""
    names = list(_SIDES)
    heads = ["objects", *(f"AP, {name}" for name in names)]
    heads += [f"{what}, {name}" for what in ("post-processing", "assignment") for name in ("ours", "torchvision")]
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for each in points:
        cells = [f"{each['objects']:,}", *(f"{each['AP'][name]:.3f}" for name in names)]
        for what in ("post_processing", "assignment"):
            for name in ("ours", "torchvision"):
                time, memory = (each[what][key].get(name) for key in ("milliseconds", "megabytes"))
                kept = "" if memory is None else f", {memory:.0f} MB"
                cells.append("not run" if time is None else f"{time:.1f} ms{kept}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _numbers(found: dict[str, Any]) -> dict[str, Any]:
    return {"milliseconds": found["median_ms"], "megabytes": found["extra_memory_mb"]}
