"""Runs of ``retinanet eval``, and the detections of another detector that they evaluate."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retinanet.cli import main

CPU = ("--precision", "fp32", "--device", "cpu")


class Eval:
    """Runs `retinanet eval` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> str:
        """Run a command that succeeds, and return its output."""
        assert main(["eval", *map(str, words)]) == 0
        return self._capsys.readouterr().out

    def fails(self, *words: object, code: int = 1) -> str:
        """Run a command that fails, and return its only line of error output."""
        assert main(["eval", *map(str, words)]) == code
        [line] = self._capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ")
        return line


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_peer_detections(parts: Path, file: Path) -> Path:
    """Write the detections of a torchvision RetinaNet with random weights on val, in COCO's results format."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
        )
        sizes = tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in (8, 16, 32, 64, 128))
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
        model = RetinaNet(
            backbone, 5, anchor_generator=anchors, min_size=96, max_size=96, detections_per_img=300
        ).eval()
        head = model.head.classification_head.cls_logits
        torch.nn.init.normal_(head.weight, std=0.05)
        torch.nn.init.constant_(head.bias, -2.0)
        torch.nn.init.normal_(model.head.regression_head.bbox_reg.weight, std=0.01)
    content = read(parts / "instances_val.json")
    found = []
    for image in content["images"]:
        pixels = np.asarray(Image.open(parts / "images" / image["file_name"]).convert("RGB"))
        with torch.inference_mode():
            [result] = model([torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255])
        for box, score, label in zip(*(result[key].tolist() for key in ("boxes", "scores", "labels")), strict=True):
            if label:  # torchvision's class 0 is background
                bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
                found.append({"image_id": image["id"], "category_id": label, "bbox": bbox, "score": score})
    file.write_text(json.dumps(found))
    return file


def pycocotools_numbers(truth: Path, found: Path) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **read(truth)}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(str(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def annotate_with(parts: Path, found: Path, every: int = 9) -> None:
    """Use some detections, slightly moved, as annotations: otherwise an untrained detector has an AP of 0."""
    content = read(parts / "instances_val.json")
    content["annotations"] = []
    for number, row in enumerate(read(found)[::every]):
        x, y, width, height = (float(np.float32(v)) for v in row["bbox"])
        if width < 2 or height < 2:
            continue
        box = [x, y, width, height * (1 - (number % 5) / 17.9)]
        object_ = {"id": number + 1, "image_id": row["image_id"], "category_id": row["category_id"], "bbox": box}
        content["annotations"].append({**object_, "area": box[2] * box[3], "iscrowd": int(number % 11 == 1)})
    for key in ("info", "licenses"):
        content.pop(key, None)
    (parts / "instances_val.json").write_text(json.dumps(content))
