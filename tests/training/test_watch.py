"""A training that learns nothing says why; one that learns says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retinanet.config import AnchorSpec, AssignConfig, Config, DataConfig, TrainConfig
from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.training import watch
from retinanet.training.watch import objects_left_out, why_nothing_is_learnt


def log(losses: list[float], precisions: list[float], foreground: int = 10) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for epoch, (loss, ap) in enumerate(zip(losses, precisions, strict=True)):
        lines += [{"epoch": epoch + part / 4, "loss": loss, "foreground": foreground} for part in range(1, 5)]
        lines.append({"epoch": epoch + 1, "AP": ap})
    return lines


def images(sides: list[float]) -> Dataset:
    """One image of 512 pixels for each side, with a square object of that side and an ignore region."""
    builder = DatasetBuilder("squares", Path("/data"), ("cat",))
    for number, side in enumerate(sides):
        builder.add_image(f"{number}.png", 512, 512)
        builder.add_box((256 - side / 2, 256 - side / 2, 256 + side / 2, 256 + side / 2), 0, "")
        builder.add_box((0, 0, 5, 5), 0, "", ignore=True)
    return builder.build()


@pytest.mark.parametrize(
    ("settings", "left_out"),
    [
        (AssignConfig(), 3),
        (AssignConfig(foreground=0.2, background=0.1), 0),
        (AssignConfig(method="atss"), 0),
        (AssignConfig(force_best=True), 0),
    ],
)
def test_objects_without_anchor_are_counted(settings: AssignConfig, left_out: int) -> None:
    """An anchor of 32 pixels has an IoU of 0.22 with a square of 15 inside it; the others have one over 0.5."""
    config = Config(assign=settings, data=DataConfig(size=512))
    warning = objects_left_out(images([15.0] * 3 + [32.0, 40.0, 101.0, 256.0]), config)
    assert (warning is None) == (left_out == 0)
    if warning:
        assert warning.startswith("3 of 7 objects (43%, in 7 images) are matched with no anchor")
        assert "data anchors" in warning
        assert "\n" not in warning


def test_the_assignment_in_use_is_not_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataConfig(size=512)
    assert "--assign.method atss" in str(objects_left_out(images([15.0] * 5), Config(data=data)))
    monkeypatch.setattr(watch, "positives", lambda dataset, config: np.zeros(len(dataset.boxes), np.int64))
    warning = objects_left_out(images([2.0] * 5), Config(data=data, assign=AssignConfig(method="atss")))
    assert warning is not None
    assert "atss" not in warning
    assert warning.endswith("fit the anchors with 'retinanet data anchors', or try a larger --data.size")
    fitted = Config(data=data, anchors=AnchorSpec(scales=(1.0, 1.1)))
    assert "data anchors" not in str(objects_left_out(images([2.0] * 5), fitted))


def test_few_objects_without_anchor_are_no_news() -> None:
    config = Config(data=DataConfig(size=512))
    assert objects_left_out(images([15.0] * 10 + [64.0] * 90), config) is None
    assert objects_left_out(images([15.0] * 11 + [64.0] * 89), config) is not None


def test_of_many_images_some_are_looked_at() -> None:
    warning = objects_left_out(images([15.0] * 300), Config(data=DataConfig(size=512)))
    assert warning is not None
    assert warning.startswith("100 of 100 objects (100%, in 100 images)")


def test_flat_loss() -> None:
    reason = why_nothing_is_learnt(log([1.0, 1.01, 0.99], [0.0, 0.0, 0.0]), 3, Config())
    assert reason is not None
    assert "has not fallen since the first epoch (1.000 then, 0.990 now)" in reason
    assert "--train.find-lr" in reason
    searched = Config(train=TrainConfig(find_lr=True))
    assert "try another --train.lr" in str(why_nothing_is_learnt(log([1.0, 1.01, 0.99], [0.0, 0.0, 0.0]), 3, searched))


def test_no_precision_although_the_loss_falls() -> None:
    reason = why_nothing_is_learnt(log([1.0, 0.8, 0.6], [0.0, 0.0, 0.0005]), 3, Config())
    assert reason is not None
    assert "AP is still 0 after 3 epochs although the loss falls (1.000 in the first epoch, 0.600 now)" in reason


def test_nothing_matched() -> None:
    reason = why_nothing_is_learnt(log([1.0, 0.8, 0.6], [0.0, 0.0, 0.0], foreground=0), 3, Config())
    assert reason is not None
    assert "no anchor was ever matched" in reason


@pytest.mark.parametrize(
    ("losses", "precisions"),
    [
        ([1.0, 0.8, 0.6], [0.0, 0.1, 0.2]),
        ([1.0, 1.0], [0.0, 0.0]),  # too early
        ([1.0, 0.8, 0.6, 0.6, 0.6], [0.0, 0.1, 0.2, 0.2, 0.2]),  # flat at the end, but lower than at first
    ],
)
def test_all_is_well(losses: list[float], precisions: list[float]) -> None:
    assert why_nothing_is_learnt(log(losses, precisions), len(losses), Config()) is None


def test_nothing_was_evaluated_yet() -> None:
    lines = [line for line in log([1.0, 1.0, 1.0, 1.0], [0.0] * 4) if "AP" not in line]
    assert why_nothing_is_learnt(lines, 4, Config()) is None
