"""Train on large images with ``data.tile``, and on the same images cut into files beforehand, and compare the AP.

    python experiments/training_tiles.py OUT [--images 20] [--seeds 0] [--epochs 6]

OUT gets the generated images (5,000 × 5,000 pixels, with clusters of objects of about 20 pixels), the cut files and the
runs. Runs are resumed if the script is started again. The result is ``experiments/results/training_tiles.json``.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.data.formats.open_dataset import read_split
from retinanet.data.images import read_image
from retinanet.data.sampling import TrainingOrder, sampling_factors
from retinanet.data.synthetic import CLASS_ODDS, CLASSES, LOOKALIKES, Scene, render_part
from retinanet.data.training_tiles import training_tiles
from retinanet.data.workbench import workbench
from retinanet.detection.loading import load
from retinanet.detection.tile_plan import TileOptions
from retinanet.evaluation.coco_ap import coco_metrics
from retinanet.evaluation.predict import predict
from retinanet.files import write_json
from retinanet.recipes import load_recipe
from retinanet.training.loop import train_on

RESULT = Path(__file__).parent / "results" / "training_tiles.json"
SIDE, TILE, VAL_IMAGES, LARGE_VAL_IMAGES = 5000, 128, 5, 2
CLUSTERS, PARTS, LURES = 5, 12, 30  # of each image: clusters, objects of each cluster, lookalikes anywhere


def draw(seed: int, side: int) -> tuple[Image.Image, list[tuple[str, tuple[int, int, int, int]]]]:
    """Draw a large image; return it with the class and the box of each object."""
    rng = np.random.default_rng([7, seed])
    background = Image.fromarray(np.clip(workbench(rng, 1024), 0, 255).astype(np.uint8)).resize((side, side))
    scene = Scene(np.asarray(background, dtype=np.float32), rng.uniform(0, 2 * math.pi))
    places = [
        (kind, rng.normal(middle, 120, 2))
        for middle in rng.uniform(200, side - 200, (CLUSTERS, 2))
        for kind in rng.choice(CLASSES, PARTS, p=CLASS_ODDS)
    ]
    places += [(kind, rng.uniform(0, side, 2)) for kind in rng.choice(LOOKALIKES, LURES)]
    rng.shuffle(places)
    objects = []
    for kind, (x, y) in places:
        part = render_part(kind, rng.uniform(17, 25), rng, scene.light)
        box = scene.place(part, int(x), int(y), scene.tint(rng, kind), min_visible=0.5)
        if box is not None and kind in CLASSES:
            objects.append((str(kind), box))
    pixels = scene.colour + scene.through[..., None] * scene.background
    pixels += np.float32(3) * rng.standard_normal((side, side, 1), np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), objects


class Coco:
    """COCO annotations that grow image by image."""

    def __init__(self) -> None:
        categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
        self.content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": categories}

    def add_image(self, file: str, width: int, height: int) -> None:
        """Add an image; the next boxes belong to it."""
        number = len(self.content["images"]) + 1
        self.content["images"].append({"id": number, "file_name": file, "width": width, "height": height})

    def add_box(self, label: int, box: tuple[float, ...], crowd: bool = False) -> None:
        """Add a box to the latest image."""
        x1, y1, x2, y2 = (float(v) for v in box)
        rows, image = self.content["annotations"], len(self.content["images"])
        row = {"id": len(rows) + 1, "image_id": image, "category_id": label + 1, "iscrowd": int(crowd)}
        rows.append({**row, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})


def write_large(out: Path, images: int, side: int) -> None:
    """Write the large images: ``images`` for training, and ``VAL_IMAGES`` for evaluation."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    first = 0
    for split, count in (("train", images), ("val", VAL_IMAGES)):
        coco = Coco()
        for number in range(first, first + count):
            image, objects = draw(number, side)
            image.save(out / "images" / f"{number:03d}.jpg", quality=92)
            coco.add_image(f"{number:03d}.jpg", side, side)
            for kind, box in objects:
                coco.add_box(CLASSES.index(kind), box)
        write_json(out / f"instances_{split}.json", coco.content)
        first += count


def write_cut(large: Path, out: Path, tile: int) -> None:
    """Cut the large images into files of ``tile`` pixels on a fixed grid; an object less visible than half is a crowd.

    Neighboring tiles overlap by an eighth. Tiles without an object or a part of an object are left out, except every
    tenth.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        data, coco, empty = read_split(large, split), Coco(), 0
        for index in data:
            pixels, boxes, labels = read_image(data.path(index)), data.boxes[data.rows(index)], data.labels
            labels = labels[data.rows(index)]
            starts = np.rint(np.linspace(0, len(pixels) - tile, math.ceil(len(pixels) / (tile * 7 / 8)))).astype(int)
            for top in starts:
                for left in starts:
                    shown = np.clip(boxes - np.array([left, top] * 2), 0, tile)
                    share = (shown[:, 2:] - shown[:, :2]).prod(axis=1) / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
                    empty += not share.any()
                    if not share.any() and empty % 10:
                        continue
                    name = f"{split}-{index:03d}-{top}-{left}.png"
                    Image.fromarray(pixels[top : top + tile, left : left + tile]).save(out / "images" / name)
                    coco.add_image(name, tile, tile)
                    for row in np.flatnonzero(share):
                        coco.add_box(int(labels[row]), tuple(shown[row]), crowd=share[row] < 0.5)
        write_json(out / f"instances_{split}.json", coco.content)


def settings(epochs: int, seed: int, tile: int | None, size: int) -> Config:
    """The recipe ``modern`` with a small network."""
    config = load_recipe("modern")
    return replace(
        config,
        model=replace(config.model, channels=64, subnet_depth=2),
        data=replace(config.data, size=size, tile=tile, background=0.2, workers=1, verify="never"),
        train=replace(config.train, epochs=epochs, batch=4, seed=seed, eval_every=1000, precision="fp32"),
    )


def images_per_epoch(dataset: Dataset, config: Config) -> int:
    """Number of images or tiles that an epoch shows."""
    images, factors = dataset, sampling_factors(dataset, config.data)
    if config.data.tile is not None:
        tiles = training_tiles(dataset, config.data)
        images, factors = tiles.as_dataset(), tiles.factors()
    return TrainingOrder(images, config.train.batch, 1, 0, factors=factors).images_per_epoch


def train_both(out: Path, large: Path, cut: Path, epochs: int, seed: int) -> list[dict[str, Any]]:
    """Train on tiles of the large images, and on as many cut files; evaluate both on the same cut files."""
    val_set = read_split(cut, "val")
    rows: list[dict[str, Any]] = []
    for name, folder, tile in (("data.tile", large, TILE), ("cut files", cut, None)):
        train_set = read_split(folder, "train")
        config = settings(1, seed, tile, TILE)
        each = images_per_epoch(train_set, config)
        passes = max(1, round(rows[0]["images"] / each)) if rows else epochs
        config = replace(config, train=replace(config.train, epochs=passes))
        run = out / f"{name.replace(' ', '-')}-{seed}"
        result = train_on(config, train_set, val_set, run, resume=True, console=Console())
        metrics = {key: result.metrics[key] for key in ("AP", "AP50", "AP75")}
        shown = {"epochs": passes, "images": passes * each}
        whole = {"AP on large images": ap_on_large_images(result.best, large, LARGE_VAL_IMAGES)}
        last = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        seconds = {"seconds": json.loads(last)["seconds"]}  # also of a run that was finished before
        rows.append({"trained on": name, "seed": seed, **shown, **seconds, **metrics, **whole})
    return rows


def ap_on_large_images(weights: Path, large: Path, count: int) -> float:
    """AP on the first large val images, which are detected tile by tile."""
    detector, dataset = load(weights, "fp32"), read_split(large, "val").subset(range(count))
    tiling = detector.tiling(TileOptions("auto"))
    return round(coco_metrics(dataset, predict(detector, dataset, tiling=tiling)).to_dict()["AP"], 4)


def main() -> None:
    """Generate the data, train and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    large, cut = arguments.out / "large", arguments.out / "cut"
    if not (large / "instances_val.json").exists():
        write_large(large, arguments.images, arguments.side)
    if not (cut / "instances_val.json").exists():
        write_cut(large, cut, TILE)
    rows = [row for seed in arguments.seeds for row in train_both(arguments.out, large, cut, arguments.epochs, seed)]
    write_json(
        arguments.result, {"side": arguments.side, "images": arguments.images, "tile": TILE, "runs": rows}, indent=1
    )


if __name__ == "__main__":
    main()
