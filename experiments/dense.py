"""Palms, up to 913 in an image: torchvision's RetinaNet with raised limits, trained on as many images as our default.

    retinanet train DATA/palms --out RUN --train.epochs 12
    python experiments/dense.py DATA/palms --out FOLDER [--epochs 12] [--lr 0.01]

Both sides have the same backbone weights, 512 px and bf16 convolutions. The script writes torchvision's detections of
the val images to FOLDER/detections.json. Both sides are then measured by the same command, with any limit:

    retinanet eval RUN/last.safetensors DATA/palms --max-detections 100
    retinanet eval --detections FOLDER/detections.json DATA/palms --max-detections 100
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path

import torch

from retinanet.config import DataConfig
from retinanet.data.formats.open_dataset import read_split
from retinanet.evaluation.coco_ap import coco_results
from retinanet.files import write_json
from torchvision_peer import build, detect, train

SCALING = DataConfig(size=512)
LIMIT = 10_000  # detections per image and candidates per level


def main() -> None:
    """Train, or go on training, and detect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    train_set = read_split(arguments.data, "train")
    val_set = read_split(arguments.data, "val").with_classes(train_set.classes)
    model = build(len(train_set.classes), bf16=True, scaling=SCALING, limit=LIMIT, top_k=LIMIT)
    state = arguments.out / "state.pt"
    train(model, train_set, arguments.epochs, arguments.lr, arguments.seed, SCALING, state)
    write_json(arguments.out / "detections.json", coco_results(detect(model, val_set, SCALING), val_set))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"cpu_seconds": round(used.ru_utime + used.ru_stime)}))


if __name__ == "__main__":
    main()
