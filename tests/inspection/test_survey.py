from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from retinanet.anchors.assign import assign
from retinanet.anchors.grid import make_grid
from retinanet.config import AssignConfig, Config, DataConfig
from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.data.formats.open_dataset import read_split
from retinanet.inspection.survey import Balance, Survey, coverage_findings

NO_ANCHOR = "No anchor is positive, so no object can be learned."
CONFIG = Config(data=DataConfig(size=128))


def dataset(boxes: list[tuple[float, float, float, float, int]], ignored: int | None = None) -> Dataset:
    """One image of 128 × 128 pixels."""
    builder = DatasetBuilder("one [train]", Path(), ["cat", "dog", "cow"])
    builder.add_image("0.png", 128, 128)
    for number, (*corners, label) in enumerate(boxes):
        builder.add_box((corners[0], corners[1], corners[2], corners[3]), label, "", ignore=number == ignored)
    return builder.build()


BOXES = dataset([(16, 16, 48, 48, 0), (64, 64, 128, 128, 0), (3, 3, 8, 8, 1), (0, 0, 100, 9, 1), (0, 0, 9, 9, 1)], 4)


def test_coverage_of_each_group() -> None:
    groups = {each.name: each for each in Survey.of(BOXES, CONFIG).coverage()}
    assert (groups["all"].boxes, groups["all"].reached) == (4, 0.5)
    assert (groups["cat"].boxes, groups["cat"].reached, groups["cat"].assigned) == (2, 1, 1)
    assert (groups["dog"].boxes, groups["dog"].reached, groups["dog"].assigned) == (2, 0, 0)
    assert (groups["small (under 32×32)"].boxes, groups["medium"].boxes) == (2, 2)
    assert "cow" not in groups
    assert [each.by for each in groups.values()] == ["all", "size", "size", "class", "class"]


def test_numbers_of_anchors_are_those_of_assignment(sound: Path) -> None:
    data = read_split(sound, "train").subset(range(6))
    survey = Survey.of(data, CONFIG)
    grid = make_grid(CONFIG.anchors, (128, 128))
    foreground = 0
    for index in data:
        rows = data.rows(index)
        boxes = torch.from_numpy(data.boxes[rows][~data.ignore[rows]] * np.float32(128 / 96))
        foreground += int((assign(grid, boxes, config=CONFIG.assign) >= 0).sum())
    assert survey.anchors == len(grid.boxes)
    assert survey.foreground * 6 == foreground


def test_crowds_are_treated_as_in_training() -> None:
    policies = {"ignore": (4, 1), "drop": (4, 0), "object": (5, 0)}
    for crowd, (objects, ignored) in policies.items():
        config = Config.from_dict({"data": {"size": 128, "crowd": crowd}})
        survey = Survey.of(BOXES, config)
        assert (int(survey.objects.sum()), int(survey.dataset.ignore.sum())) == (objects, ignored)


def test_balance_is_the_loss_of_the_first_step() -> None:
    survey = Survey.of(BOXES, CONFIG)
    balance = Balance.of(survey, 0.01, 0.25, 2.0)
    anchors, foreground, classes = round(survey.anchors), round(survey.foreground), 3
    targets = torch.zeros(anchors, classes, dtype=torch.float64)
    targets[:foreground, 0] = 1
    logits = torch.full_like(targets, math.log(0.01 / 0.99))
    for ours, alpha, gamma in ((balance.focal, 0.25, 2.0), (balance.cross_entropy, -1.0, 0.0)):
        loss = sigmoid_focal_loss(logits, targets, alpha, gamma)
        assert ours == pytest.approx((float(loss[targets == 1].sum()), float(loss[targets == 0].sum())))
    assert f"1 : {(anchors - foreground) / foreground:.0f}" in balance.sentences(0.01, 0.25, 2.0)[0]


def test_data_without_boxes() -> None:
    survey = Survey.of(dataset([]), CONFIG)
    assert list(survey.coverage()) == []
    assert math.isnan(survey.imbalance)
    assert Balance.of(survey, 0.01, 0.25, 2.0).sentences(0.01, 0.25, 2.0) == [
        "No anchor is positive, so no object can be learned."
    ]
    assert json.loads(json.dumps(survey.to_dict(), allow_nan=False))["imbalance"] is None


def test_low_coverage_is_a_finding_only_where_iou_decides() -> None:
    survey = Survey.of(BOXES, CONFIG)
    findings = {f.code: f for f in coverage_findings("train", survey, CONFIG.assign)}
    assert findings["low-coverage"].what.startswith("2 of 4 boxes")
    assert findings["no-anchor"].what.startswith("2 of 4 boxes")
    atss = replace(CONFIG, assign=AssignConfig(method="atss"))
    assert "low-coverage" not in {f.code for f in coverage_findings("train", Survey.of(BOXES, atss), atss.assign)}


def test_large_data_is_sampled(monkeypatch: pytest.MonkeyPatch, sound: Path) -> None:
    monkeypatch.setattr("retinanet.inspection.survey.ASSIGNED_IMAGES", 10)
    data = read_split(sound, "train")
    counted: list[int] = []
    survey = Survey.of(data, CONFIG, counted.append)
    assert sum(counted) == 10
    looked_at = {int(np.searchsorted(data.offsets, row, "right")) - 1 for row in np.flatnonzero(survey.positives >= 0)}
    assert 8 <= len(looked_at) <= 10
    assert not np.isnan(survey.overlaps[~data.ignore]).any()
