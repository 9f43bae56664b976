"""AP, duplicates and seconds of ways to merge the detections of tiles, on three kinds of large images.

    python benchmarks/tile_strategies.py --aerial WEIGHTS --palms WEIGHTS --deeppcb WEIGHTS --data FOLDER [--out FILE]

``aerial``: a drawn image of 12,000×12,000 pixels with 5,000 objects, composed of cells (``benchmarks/aerial.py``).
``palms``: val images of palms in mosaics of 3×3. ``deeppcb``: test images of DeepPCB in mosaics of 2×2, enlarged to
twice their size, and in tiles at their native resolution. FOLDER holds ``palms`` and ``deeppcb``. Cases without weights
are left out. The tiles of an image go through the network once, and each strategy merges the same detections.
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

import retinanet
from aerial import CELL, draw_cell
from retinanet.data.array_windows import ArrayReader
from retinanet.data.dataset import Dataset, FileList
from retinanet.data.formats.train_val import read_eval, with_model_classes
from retinanet.data.images import read_image
from retinanet.data.learnt_sizes import learnt_sizes
from retinanet.detection.detector import Detector
from retinanet.detection.tile_merge import Tiles, merge_tiles
from retinanet.detection.tile_plan import TileOptions, Tiling
from retinanet.detection.tiles import detections_of_tiles
from retinanet.detections import Detections
from retinanet.evaluation.coco_ap import coco_metrics
from retinanet.files import write_json
from retinanet.overlaps import BoxIndex, pair_iou, shared_area
from tile_merging import greedy_nmm, nmm, nms, unmerged

Pixels = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]

# Duplicates are counted among detections with at least this score.
_SCORE = 0.3

# Seed of the cells of the aerial image. Training cells have others.
_SEED = 7


@dataclass(frozen=True, eq=False)
class Scene:
    """A large image and its objects, and the images that it was composed of with their positions in it."""

    pixels: Pixels
    boxes: Boxes
    labels: npt.NDArray[np.int64]
    originals: Sequence[tuple[Pixels, tuple[int, int]]] = ()


def aerial_scene(across: int = 25) -> Scene:
    """Compose ``across`` × ``across`` cells."""
    pixels = np.empty((across * CELL, across * CELL, 3), np.uint8)
    boxes, labels, originals = [], [], []
    for index in range(across**2):
        cell = draw_cell(_SEED, index)
        top, left = index // across * CELL, index % across * CELL
        pixels[top : top + CELL, left : left + CELL] = cell.pixels
        boxes.append(np.array(cell.boxes, np.float32) + np.array([left, top] * 2, np.float32))
        labels += cell.labels
        originals.append((cell.pixels, (top, left)))
    return Scene(pixels, np.concatenate(boxes), np.array(labels), originals)


def mosaics(dataset: Dataset, rows: int, columns: int) -> Iterator[Scene]:
    """Compose the images of a dataset, all of one size, in their order; the last ones that fill no mosaic are left."""
    width, height = (int(side) for side in dataset.sizes[0])
    each = rows * columns
    for first in range(0, len(dataset) - each + 1, each):
        pixels = np.empty((rows * height, columns * width, 3), np.uint8)
        boxes, labels, originals = [], [], []
        for place in range(each):
            image, own = read_image(dataset.path(first + place)), dataset.rows(first + place)
            top, left = place // columns * height, place % columns * width
            pixels[top : top + height, left : left + width] = image
            boxes.append(dataset.boxes[own] + np.array([left, top] * 2, np.float32))
            labels.append(dataset.labels[own])
            originals.append((image, (top, left)))
        yield Scene(pixels, np.concatenate(boxes), np.concatenate(labels).astype(np.int64), originals)


def enlarged(dataset: Dataset) -> Iterator[Scene]:
    """Enlarge the images of a dataset to twice their size."""
    for index in dataset:
        image, own = read_image(dataset.path(index)), dataset.rows(index)
        size = (2 * image.shape[1], 2 * image.shape[0])
        pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        yield Scene(pixels, 2 * dataset.boxes[own], dataset.labels[own].astype(np.int64), [(pixels, (0, 0))])


@dataclass(frozen=True, eq=False)
class Collected:
    """The detections of a case before merging.

    Attributes:
        truth: the large images and their objects.
        tiled: detections of the tiles, and the tiles, of each large image.
        plain: detections in the originals, in pixels of the large images.
        seconds: time of reading, scaling and detecting in all tiles, and in all originals.
        threshold: the model's IoU of suppression.
        note: side and overlap of the tiles.
    """

    truth: Dataset
    tiled: list[tuple[Detections, Tiles]]
    plain: Detections
    seconds: tuple[float, float]
    threshold: float
    note: str


def collect(name: str, detector: Detector, tiling: Tiling, scenes: Iterator[Scene]) -> Collected:
    """Detect in all tiles and in all originals."""
    tiled, plain, truths = [], [], []
    seconds = [0.0, 0.0]
    for number, scene in enumerate(scenes):
        began = time.perf_counter()
        tiled.append(detections_of_tiles(detector, ArrayReader(scene.pixels), tiling))
        seconds[0] += time.perf_counter() - began
        began = time.perf_counter()
        for image, (top, left) in scene.originals:
            [found] = detector.detect([image])
            offset = np.array([left, top] * 2, np.float32)
            plain.append(Detections.of_one_image(found.boxes + offset, found.scores, found.labels, number))
        seconds[1] += time.perf_counter() - began
        truths.append((scene.pixels.shape[:2], scene.boxes, scene.labels))
    truth = as_dataset(name, detector.classes, truths)
    nms_threshold = detector.decode_config().nms
    return Collected(truth, tiled, Detections.concatenate(plain), (seconds[0], seconds[1]), nms_threshold, tiling.note)


def as_dataset(
    name: str, classes: Sequence[str], truths: Sequence[tuple[Any, Boxes, npt.NDArray[np.int64]]]
) -> Dataset:
    """Make a dataset of objects without image files, for the metrics."""
    boxes = np.concatenate([own for _, own, _ in truths]).astype(np.float32)
    count = len(truths)
    return Dataset(
        name=name,
        root=Path(),
        classes=tuple(classes),
        category_ids=tuple(range(1, len(classes) + 1)),
        files=FileList(f"{i}.png" for i in range(count)),
        image_ids=np.arange(1, count + 1),
        sizes=np.array([shape[::-1] for shape, _, _ in truths], np.int32),
        offsets=np.cumsum([0, *(len(own) for _, own, _ in truths)]),
        boxes=boxes,
        labels=np.concatenate([labels for _, _, labels in truths]).astype(np.int32),
        ignore=np.zeros(len(boxes), np.bool_),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
    )


def ours(found: Detections, tiles: Tiles, threshold: float) -> Detections:
    """Merge as the product does."""
    kept = found.take(merge_tiles(found.boxes, found.scores, found.labels, found.images, tiles, threshold))
    return Detections.of_one_image(kept.boxes, kept.scores, kept.labels)


Strategy = Callable[[Detections, Tiles, float], Detections]

STRATEGIES: dict[str, Strategy] = {
    "ours": ours,
    "no merging": lambda found, tiles, threshold: unmerged(found),
    "NMS, IoU 0.5": lambda found, tiles, threshold: nms(found),
    "NMS, IoS 0.5": lambda found, tiles, threshold: nms(found, "ios"),
    "NMM, IoU 0.5": lambda found, tiles, threshold: nmm(found, "iou"),
    "NMM, IoS 0.5": lambda found, tiles, threshold: nmm(found),
    "greedy NMM, IoU 0.5": lambda found, tiles, threshold: greedy_nmm(found, "iou"),
    "greedy NMM, IoS 0.5 (SAHI's default)": lambda found, tiles, threshold: greedy_nmm(found),
}


def compare(case: Collected) -> list[dict[str, Any]]:
    """Merge with each strategy and measure."""
    rows = [_row("originals, plain", case.truth, case.plain, 0.0)]
    for name, merge in STRATEGIES.items():
        began = time.perf_counter()
        merged = [merge(found, tiles, case.threshold) for found, tiles in case.tiled]
        seconds = time.perf_counter() - began
        joined = Detections.concatenate([found.moved(i) for i, found in enumerate(merged)])
        rows.append(_row(name, case.truth, joined, seconds))
        print(rows[-1], flush=True)
    return rows


def _row(name: str, truth: Dataset, found: Detections, seconds: float) -> dict[str, Any]:
    metrics = coco_metrics(truth, found).to_dict()
    shown = {key: round(metrics[key], 4) for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
    doubled = 1000 * duplicates(truth, found) / len(truth.boxes)
    return {"merging": name, **shown, "duplicates": round(doubled, 1), "seconds": round(seconds, 3), "D": len(found)}


def duplicates(truth: Dataset, found: Detections) -> int:
    """Count the detections of objects that have a better detection.

    A detection with a score of at least 0.3 belongs to the object of its class with the highest IoU, if that is at
    least 0.5, or else to an object that contains 70 % of it, as a cut object does.
    """
    own = found.take(found.scores >= _SCORE)
    owners = np.repeat(np.arange(len(truth)), np.diff(truth.offsets))
    boxes, objects = own.boxes.astype(np.float64), truth.boxes.astype(np.float64)
    groups, object_groups = (i * len(truth.classes) + k for i, k in ((own.images, own.labels), (owners, truth.labels)))
    matched = np.full(len(own), -1)
    for covered in (True, False):  # the IoU counts more, so it comes last
        index = BoxIndex(objects, 0.7 if covered else 0.5, object_groups)
        best = np.zeros(len(own))
        for first, second in index.search(boxes, groups, covered).chunks():
            if covered:
                areas = (boxes[first, 2:] - boxes[first, :2]).prod(axis=1)
                share = shared_area(boxes[first], objects[second]) / areas
            else:
                share = pair_iou(boxes[first], objects[second])
            enough = np.flatnonzero(share >= (0.7 if covered else 0.5))
            enough = enough[np.argsort(share[enough])]  # the highest comes last
            better = enough[share[enough] > best[first[enough]]]
            best[first[better]], matched[first[better]] = share[better], second[better]
    counts = np.bincount(matched[matched >= 0], minlength=len(objects))
    return int(np.maximum(counts - 1, 0).sum())


def cases(given: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Collected]]]:
    """Yield the cases that have weights: their names, and what detects in their tiles."""
    if given.aerial:
        detector = retinanet.load(given.aerial)
        yield "aerial", partial(collect, "aerial", detector, detector.tiling(TileOptions()), iter([aerial_scene()]))
    if given.palms:
        detector = retinanet.load(given.palms)
        data = with_model_classes(read_eval(given.data / "palms", "val")[0], detector.classes)
        data = data.subset(range(min(given.palms_images, len(data))))
        yield "palms", partial(collect, "palms", detector, _tiling(detector, data, given.data), mosaics(data, 3, 3))
        fine = detector.tiling(TileOptions(tile=320))
        yield "palms, tiles of 320", partial(collect, "palms", detector, fine, mosaics(data, 3, 3))
    if given.deeppcb:
        detector = retinanet.load(given.deeppcb)
        data = with_model_classes(read_eval(given.data / "deeppcb", "test")[0], detector.classes)
        data = data.subset(range(min(given.images, len(data))))
        tiling = _tiling(detector, data, given.data)
        yield "deeppcb, mosaics", partial(collect, "deeppcb", detector, tiling, mosaics(data, 2, 2))
        fine = detector.tiling(TileOptions(tile=640))
        yield "deeppcb, enlarged", partial(collect, "deeppcb", detector, fine, enlarged(data))
        native = detector.tiling(TileOptions(tile=320))
        yield "deeppcb, native", partial(collect, "deeppcb", detector, native, mosaics(data, 1, 1))


def _tiling(detector: Detector, data: Dataset, folder: Path) -> Tiling:
    """Tiles as ``auto`` chooses them. Older weights get the sizes of their training data."""
    if detector.info.objects is None:
        train, _ = read_eval(folder / data.name.split("/")[0].split(" ")[0], "train")
        detector.info = replace(detector.info, objects=learnt_sizes(train, detector.info.config.data))
    return detector.tiling(TileOptions())


def main() -> None:
    """Measure all cases, and write a file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("aerial", "palms", "deeppcb"):
        parser.add_argument(f"--{name}", help="weights")
    parser.add_argument("--data", type=Path, help="folder of palms and deeppcb")
    parser.add_argument("--images", type=int, default=200, help="test images of DeepPCB")
    parser.add_argument("--palms-images", type=int, default=72, help="val images of palms")
    parser.add_argument("--keep", type=Path, help="folder for the detections of the tiles, as pickles")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tiles.json"))
    given = parser.parse_args()
    results: dict[str, Any] = {}
    for name, detect in cases(given):
        case = detect()
        if given.keep:
            given.keep.mkdir(parents=True, exist_ok=True)
            (given.keep / f"{name.replace(', ', ' ').replace(' ', '_')}.pickle").write_bytes(pickle.dumps(case))
        print(name, case.note, f"network {case.seconds[0]:.1f} s", flush=True)
        results[name] = {
            "tiles": case.note,
            "number_of_tiles": sum(len(tiles.windows) for _, tiles in case.tiled),
            "objects": len(case.truth.boxes),
            "seconds_tiles": round(case.seconds[0], 1),
            "seconds_originals": round(case.seconds[1], 1),
            "merging": compare(case),
        }
        write_json(given.out, results, indent=2)


if __name__ == "__main__":
    main()
