"""Make a bundled model from a finished training: float16 weights and a card with the measurements.

    python experiments/bundled.py NAME WEIGHTS DATA

DATA contains the folders of ``runs.SETS``. The shipped float16 weights are loaded by name and evaluated on held-out
images. The card lists the settings of the training that differ from the ``modern`` recipe. ``results/bundled.json``
gets the same measurements, and ``tests/test_readme_results.py`` compares the README and the card with it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import retinanet
from retinanet.config import Config
from retinanet.data.formats.open_dataset import read_split
from retinanet.evaluation.coco_ap import coco_metrics
from retinanet.evaluation.predict import predict
from retinanet.recipes import load_recipe
from retinanet.zoo.weights import BUNDLED, load_weights, read_info, save_weights

RESULTS = Path(__file__).parent / "results" / "bundled.json"


@dataclass(frozen=True)
class Card:
    """The texts of a card."""

    title: str
    folder: str
    held_out: tuple[str, ...]
    data: str
    license: str
    limits: str
    example: str
    looked_at: str = ""


# Written after viewing the drawn images. Other weights need another inspection.
LOOKED_AT = """
## Inspected by eye

Nine photographs that were not in the training data:

| photograph | detections with a score of 0.3 or more |
|---|---|
| Eileen Collins, above | found with 0.95, but without her left shoulder; a false positive in the corner, 0.3 |
| the cameraman of scikit-image | found with 0.95 |
| Grace Hopper | found with 0.96 |
| COCO 94614 and 266409: a skier each | both found, 0.97 and 0.95 |
| COCO 8844: a woman behind bananas | found with 0.96; two more boxes on parts of her, 0.41 and 0.35 |
| COCO 13729: four people in a room | three at 0.88, the fourth at 0.53; six false positives, 0.35 to 0.54 |
| COCO 581206: a hand and legs around a hot dog | three boxes on them, 0.81, 0.47 and 0.40 |
| COCO 338304: a crowd behind sheep | 52 boxes, 0.31 to 0.85, many around several people: too difficult for this model |
"""

CARDS = {
    "person": Card(
        "People in photographs",
        "coco_person",
        ("val",),
        "2,025 photographs with people of COCO val2017, at most 384 pixels per side, 8,008 boxes; COCO train2017 was "
        "not used. Measured on 668 other photographs of val2017.",
        "annotations: CC BY 4.0 (COCO Consortium); the photographs are under various Creative Commons licenses of "
        "their Flickr authors and are not part of this package. Weights: Apache-2.0.",
        "Trained on few photographs: people who are small (under about 16 pixels at 320 pixels per side), far away, "
        "cut off, crowded or in unusual poses are not detected. Not for identifying people, and not for any use where "
        "a missed person does harm. The photographs show everyday scenes by Flickr users; other cameras, places and "
        "times are not represented.",
        "![Eileen Collins (NASA, public domain), boxed](person.jpg)",
        LOOKED_AT,
    ),
    "blood-cells": Card(
        "Red cells, white cells and platelets in blood smears",
        "bccd/BCCD",
        ("val", "test"),
        "205 images of stained blood smears, 640×480 (BCCD). Measured on 87 (val) and 72 (test) other images.",
        "MIT (Shenggan/BCCD_Dataset). Weights: Apache-2.0.",
        "One microscope, one stain, one magnification. Some overlapping red cells are not detected or get "
        "two boxes. Not a medical device.",
        "There is no example image, because the images of the dataset are not part of this package.",
    ),
}


def main() -> None:
    """Write the weights and the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(CARDS))
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    card = CARDS[arguments.name]
    model, info = load_weights(arguments.weights)
    target = BUNDLED / f"{arguments.name}.safetensors"
    BUNDLED.mkdir(exist_ok=True)
    half = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    save_weights(target, half, info)

    detector = retinanet.load(arguments.name)
    rows = []
    splits: dict[str, Any] = {}
    for split in card.held_out:
        dataset = read_split(arguments.data / card.folder, split).with_classes(detector.classes)
        metrics = coco_metrics(dataset, predict(detector, dataset))
        splits[split] = {"images": len(dataset)} | {
            key: round(metrics.summary[key], 4) for key in ("AP", "AP50", "AP75")
        }
        splits[split]["per_class"] = {
            name: {key: round(value, 4) for key, value in row.items()} for name, row in metrics.per_class.items()
        }
        numbers = " | ".join(f"{metrics.summary[key]:.3f}" for key in ("AP", "AP50", "AP75"))
        rows.append(f"| {split}, {len(dataset)} images | {numbers} |")
        if len(metrics.per_class) > 1:
            rows += [f"| – {name} | {row['AP']:.3f} | {row['AP50']:.3f} | |" for name, row in metrics.per_class.items()]
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))
    stored[arguments.name] = {
        "command": f"retinanet eval {arguments.name} {card.folder} --split SPLIT",
        "splits": splits,
    }
    RESULTS.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (BUNDLED / f"{arguments.name}.md").write_text(
        TEXT.format(
            name=arguments.name,
            title=card.title,
            classes=", ".join(detector.classes),
            data=card.data,
            license=card.license,
            limits=card.limits,
            example=card.example,
            rows="\n".join(rows),
            looked_at=card.looked_at,
            recipe=_recipe_flags(info.config),
            epochs=f"{read_info(arguments.weights).progress['epoch']:g}",
            seed=info.config.train.seed,
            date=date.today().isoformat(),
            parameters=f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}",
            size=f"{target.stat().st_size / 1e6:.1f}",
            seconds=_speed(detector),
            threshold=detector.lowest_score("auto"),
        ),
        encoding="utf-8",
    )
    print(f"wrote {target} and its card")


def _recipe_flags(config: Config) -> str:
    """The flags that turn the ``modern`` recipe into this configuration."""
    start, flags = load_recipe("modern").to_dict(), []
    for group, settings in config.to_dict().items():
        for key, value in settings.items():
            ignored = (group, key) in {
                ("data", "workers"),
                ("data", "verify"),
                ("model", "channels"),
                ("train", "seed"),
            }
            if value != start[group][key] and not ignored:
                text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
                flags.append(f"--{group}.{key.replace('_', '-')} {text}")
    return " ".join(flags)


def _speed(detector: Any) -> str:
    """Milliseconds for one 640×480 JPEG, from file to detections, with one thread and with two."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.jpg"
        image.save(file)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            times = []
            for _ in range(22):
                began = time.perf_counter()
                detector(file)
                times.append(time.perf_counter() - began)
            results.append(f"{1000 * statistics.median(times[2:]):.0f} ms with {threads} thread{'s' * (threads > 1)}")
    return ", ".join(results)


TEXT = """# `{name}`: {title}

    retinanet detect {name} PHOTO.jpg

{example}

* **Classes**: {classes}
* **Data**: {data}
* **License of the data**: {license}
* **Recipe**: `modern` with `{recipe}`, {epochs} epochs, seed {seed}, made on {date} by `experiments/bundled.py`
* **Size**: {parameters} million parameters, {size} MB in float16
* **Speed**: {seconds}, for a 640×480 JPEG on an AMD EPYC (bf16)
* **Threshold** (`--score auto`): {threshold:.2f}, with the best F1 on val
* **Limits**: {limits}

| held out | AP | AP50 | AP75 |
|---|---|---|---|
{rows}
{looked_at}"""


if __name__ == "__main__":
    main()
