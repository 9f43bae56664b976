"""A training chooses the limits on detections from its densest image, stores them, and keeps them when resumed."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from retinanet import load
from retinanet.config import Config, DecodeConfig
from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.detection.detector import Detector
from retinanet.errors import CheckpointError
from retinanet.model import RetinaNet
from retinanet.training.decode_limits import with_limits
from retinanet.training.distributed import Processes
from retinanet.training.job import Job
from retinanet.training.loop import train_on
from retinanet.training.resume import open_run
from retinanet.training.tracking import grouped
from retinanet.training.validation import epoch_line, validate
from retinanet.zoo.weights import read_info
from training_runs import log_lines, sample_dataset, small_config, train_and_val


def with_objects(count: int) -> Dataset:
    builder = DatasetBuilder("dots", Path("/data"), ("dot",))
    builder.add_image("0.jpg", 100, 100)
    for number in range(count):
        x, y = 3.0 * (number % 30), 3.0 * (number // 30 % 30)
        builder.add_box((x, y, x + 2, y + 2 + number / 1000), 0, "")
    builder.add_image("1.jpg", 100, 100)
    return builder.build()


def chosen(train: int, val: int = 0, decode: DecodeConfig | None = None) -> tuple[DecodeConfig, str]:
    """The limits for datasets with so many objects in an image, and what is printed."""
    text = io.StringIO()
    config = replace(Config(), decode=decode or DecodeConfig())
    console = Console(file=text, width=1000)
    job = with_limits(Job(config, with_objects(train), with_objects(val), Path("run"), console, Processes()))
    return job.config.decode, text.getvalue()


def test_few_objects_give_the_paper_s_limits_without_a_word() -> None:
    decode, said = chosen(train=50, val=100)
    assert (decode.max_detections, decode.top_k, said) == (100, 1000, "")


def test_the_densest_training_image_decides_and_is_told_in_a_line() -> None:
    decode, said = chosen(train=150)
    assert decode == DecodeConfig(top_k=3000, max_detections=300)
    assert said.splitlines() == [
        "the densest training image has 150 objects; the detector returns up to 300 detections per image "
        "(--decode.max-detections)"
    ]


def test_denser_val_images_are_told() -> None:
    decode, said = chosen(train=20, val=130)
    assert decode.max_detections == 100
    [line] = said.splitlines()
    assert line.startswith("warning: the densest val image has 130 objects")
    assert "--decode.max-detections" in line


def test_a_limit_that_is_set_stays_and_is_told_if_it_is_too_low() -> None:
    decode, said = chosen(train=150, val=400, decode=DecodeConfig(max_detections=120))
    assert (decode.max_detections, decode.top_k) == (120, 1200)
    [line] = said.splitlines()
    assert line.startswith("warning: decode.max_detections is 120, but the densest training image has 150 objects")
    assert chosen(train=150, decode=DecodeConfig(max_detections=500))[1] == ""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset with more than 50 objects in an image, and a training on it."""
    folder = tmp_path_factory.mktemp("dense")
    parts = sample_dataset(folder)
    train_set, val_set = train_and_val(parts)
    train_on(small_config(), _crowded(train_set), val_set, folder / "run")
    return parts, folder / "run"


def _crowded(dataset: Dataset) -> Dataset:
    """The dataset with 60 more objects in its first image."""
    builder = DatasetBuilder(dataset.name, dataset.root, dataset.classes, dataset.category_ids)
    for image in dataset:
        width, height = (int(side) for side in dataset.sizes[image])
        builder.add_image(dataset.files[image], width, height, image_id=int(dataset.image_ids[image]))
        for row in range(dataset.rows(image).start, dataset.rows(image).stop):
            builder.add_box(tuple(dataset.boxes[row].tolist()), int(dataset.labels[row]), "")
        for number in range(60 if image == 0 else 0):
            x = float(number)
            builder.add_box((x, 5, x + 10, 15), 0, "")
    return builder.build()


def test_weights_and_recipe_of_the_run_store_the_limits(run: tuple[Path, Path]) -> None:
    _, out = run
    for name in ("best", "last"):
        decode = read_info(out / f"{name}.safetensors").config.decode
        assert decode.max_detections == 200
        assert decode.top_k == 2000
    assert "max_detections: 200" in (out / "config.yaml").read_text()
    assert load(out / "best.safetensors").decode_config().max_detections == 200


def test_a_resumed_run_keeps_them(run: tuple[Path, Path]) -> None:
    _, out = run
    for recipe in (None, small_config()):  # the limits of the recipe are unset
        config, checkpoint = open_run(out, resume=True, recipe=recipe)
        assert checkpoint is not None
        assert (config.decode.max_detections, config.decode.top_k) == (200, 2000)
    other = replace(small_config(), decode=DecodeConfig(max_detections=500))
    with pytest.raises(CheckpointError, match=r"decode\.max_detections 200 → 500"):
        open_run(out, resume=True, recipe=other)


def test_validation_counts_all_detections_and_the_images_at_the_limit(
    run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, out = run
    _, val_set = train_and_val(parts)
    metrics = log_lines(out / "metrics.jsonl")[-1]
    assert metrics["AP"] >= 0
    assert "AP@100" not in metrics
    monkeypatch.setattr("retinanet.evaluation.limits.COCO_LIMIT", 1)  # now an image has more objects
    config = replace(small_config(), decode=DecodeConfig(score=0.0, max_detections=3, top_k=50))
    model = RetinaNet.from_config(config.model, config.anchors, len(val_set.classes), pretrained=False).eval()
    found, _ = validate(model, config, val_set, Processes())
    assert found["images_at_limit"] == len(val_set)
    assert "AP@100" in found
    assert "AP@100 " in epoch_line(1, 2, 0.5, found, 0.0)
    names = grouped({"step": 3, "epoch": 1, **found})
    assert names["val/images_at_limit"] == len(val_set)
    assert "val/AR" in names
    assert not any("@" in name for name in names)  # MLflow refuses it


def test_eval_of_a_higher_limit_finds_what_a_low_limit_cut_off(run: tuple[Path, Path]) -> None:
    _, out = run
    detector: Detector = load(out / "best.safetensors", precision="fp32", device="cpu")
    image = np.full((96, 96, 3), 90, np.uint8)
    with pytest.warns(UserWarning, match=r"1 of 1 images reached a limit \(3 detections per image"):
        few = detector(image, score=0.0, max_detections=3)
    many = detector(image, score=0.0, max_detections=10**9)
    assert len(few) == 3 < len(many)
    assert np.array_equal(many.xyxy[:3], few.xyxy)
