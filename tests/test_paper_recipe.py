"""The recipe ``paper`` is the paper: every setting, the schedule, and the flags of the paper's comparisons.

The paper's facts and their tests: ``docs/paper-to-code.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from retinanet import cli
from retinanet.config import Config
from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.data.image_sizes import scaled_size
from retinanet.data.sampling import TrainingOrder
from retinanet.recipes import load_recipe
from retinanet.training import loop
from retinanet.training.job import Job
from retinanet.training.optim import learning_rate

COCO_IMAGES = 118_287  # train2017, which is the paper's trainval35k
# What the paper says.
STATED: dict[str, dict[str, object]] = {
    "model": {
        "backbone": "resnet50.tv_in1k",
        "pretrained": True,
        "norm": "frozen",
        "channels": None,  # 256 for ResNets, asserted below
        "subnet_depth": 4,
        "subnet_norm": "none",
        "prior": 0.01,
        "p6_from": "c5",
        "relu_before_p7": True,
    },
    "anchors": {
        "sizes": (32.0, 64.0, 128.0, 256.0, 512.0),
        "scales": (1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
        "ratios": (0.5, 1.0, 2.0),
        "strides": (8, 16, 32, 64, 128),
        "layout": "paper",
        "offset": 0.0,
    },
    "assign": {"method": "iou", "foreground": 0.5, "background": 0.4, "force_best": False},
    "loss": {
        "classification": "focal",
        "alpha": 0.25,
        "gamma": 2.0,
        "box": "smooth_l1",
        "box_weight": 1.0,
        "normalizer": "batch",
    },
    "data": {
        "size": 800,
        "max_size": None,  # 1333, asserted below
        "tile": None,
        "flip": 0.5,
        "scale": (1.0, 1.0),
        "crop": 0.0,
        "color": 0.0,
        "repeat_rare": 0.0,
        "background": None,
    },
    "train": {
        "epochs": 12,
        "batch": 16,
        "optimizer": "sgd",
        "lr": 0.01,
        "backbone_lr": 1.0,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "schedule": "step",
        "ema": None,
        "find_lr": False,
        "patience": None,
    },
    "decode": {"score": 0.05, "nms": 0.5},
}
# What the paper leaves open, and this implementation had to choose. ``docs/paper-to-code.md`` lists them, too.
CHOSEN: dict[str, dict[str, object]] = {
    "model": {"norm_eps": None, "freeze_stages": 0, "stride_in": "3x3"},
    "assign": {"ignore_overlap": 0.5},
    "loss": {"beta": 0.11},
    "data": {"resize": "antialiased", "crowd": "ignore", "pad_to": 32},
    "train": {"warmup": 8000, "bias_lr": 1.0, "bias_decay": True, "clip": None, "precision": "auto"},
    "decode": {
        "max_detections": None,  # 100, and 1000 for top_k; more for dense training images
        "top_k": None,
        "clip": "image",
        "size_limit": "above",
    },
}
# Where the images are, and which images and boxes are left out.
READING: dict[str, object] = {
    "images": None,
    "skip_broken": False,
    "voc_origin": "auto",
    "min_score": 0.0,
    "exif": "auto",
    "box_form": "auto",
    "box_frame": "auto",
    "pixel_range": None,
}
# Not read by the paper's losses and assignment, or without influence on the result.
UNUSED: dict[str, dict[str, object]] = {
    "model": {"weights": None, "init": None, "stage_channels": None},
    "assign": {"candidates": 9},
    "loss": {"star_beta": 1.0, "ohem_batch": 128, "ohem_nms": 0.5},
    "data": {"train": None, "val": None, "val_fraction": 0.1, "workers": None, "verify": "auto", "visible": 0.5}
    | READING,
    "train": {
        "device": "auto",
        "seed": 0,
        "accumulate": 1,
        "sync_norm": False,  # batch norm is frozen
        "eval_every": 1,
        "checkpoint_minutes": 5.0,
        "track": (),
        "images_every": 0,
    },
}


@pytest.fixture(scope="module")
def paper() -> Config:
    return load_recipe("paper")


# The settings


def test_every_setting_is_accounted_for(paper: Config) -> None:
    """A new option needs a line in one of the three tables above."""
    expected: dict[str, dict[str, object]] = {}
    for table in (STATED, CHOSEN, UNUSED):
        for group, values in table.items():
            assert not expected.setdefault(group, {}).keys() & values.keys()
            expected[group].update(values)
    assert paper.to_dict() == expected


def test_anchors_are_nine_and_cover_32_to_813_pixels(paper: Config) -> None:
    assert paper.anchors.per_location == 9
    sides = [size * scale for size in paper.anchors.sizes for scale in paper.anchors.scales]
    assert (min(sides), round(max(sides))) == (32, 813)
    assert sides == pytest.approx([32 * 2 ** (k / 3) for k in range(15)])  # three per octave, without gaps


def test_the_longer_side_is_at_most_1333(paper: Config) -> None:
    assert paper.data.longest == 1333
    assert scaled_size(480, 640, paper.data) == (800, 1067)
    assert max(scaled_size(400, 1000, paper.data)) == 1333


def test_twelve_epochs_of_coco_are_90k_steps(paper: Config) -> None:
    steps = paper.train.epochs * COCO_IMAGES / paper.train.batch
    assert steps == pytest.approx(90_000, rel=0.02)


# The schedule


@pytest.mark.parametrize("batch", [16, 8, 2])
def test_the_schedule_counts_images(paper: Config, batch: int) -> None:
    """Batches of any size see as many images before each drop, at a learning rate in proportion to the batch."""
    builder = DatasetBuilder("toy", Path("/data"), ("cat",))
    for i in range(997):
        builder.add_image(f"{i}.jpg", *((50, 100) if i % 3 else (100, 50)))
    dataset = builder.build()
    settings = replace(paper.train, batch=batch)
    order = TrainingOrder(dataset, batch, settings.epochs, seed=0)
    total = len(dataset) * settings.epochs

    seen, drops, last = 0, [], 0.0
    for step, images in enumerate(order):
        rate = learning_rate(settings, seen, total)
        assert rate == pytest.approx(learning_rate(paper.train, seen, total) * batch / 16)
        if rate < last:
            assert rate == pytest.approx(last / 10)
            drops.append(seen)
        seen, last = seen + len(images), rate
        if (step + 1) % order.steps_per_epoch == 0:
            assert seen == (step + 1) // order.steps_per_epoch * len(dataset)
    assert seen == total
    assert [drop - total * share for drop, share in zip(drops, (6 / 9, 8 / 9), strict=True)] == pytest.approx(
        [batch / 2] * 2, abs=batch / 2
    )
    assert last == pytest.approx(0.01 * batch / 16 / 100)


# From the command line into the training


class _Stopped(Exception):
    """A training that is not run; ``value`` is what it would have been run with."""

    def __init__(self, value: Any) -> None:
        self.value = value


@pytest.fixture
def settings_of(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Config]:
    """The settings that ``retinanet train`` would train with."""

    def stop(job: Job, *arguments: Any) -> NoReturn:
        raise _Stopped(job.config)

    def settings(*flags: str) -> Config:
        monkeypatch.setattr("retinanet.training.api.train_job", stop)
        with pytest.raises(_Stopped) as caught:
            cli.main(["train", str(parts), "--out", str(tmp_path / "run"), *flags])
        config: Config = caught.value.value
        return config

    return settings


def test_recipe_on_the_command_line(settings_of: Callable[..., Config], paper: Config) -> None:
    assert settings_of("--recipe", "paper") == paper
    assert settings_of() == load_recipe("modern") != paper
    changed = settings_of("--recipe", "paper", "--train.batch", "8", "--loss.gamma", "1")
    assert changed == replace(paper, train=replace(paper.train, batch=8), loss=replace(paper.loss, gamma=1.0))


@pytest.mark.parametrize(
    ("flags", "group", "values"),
    [
        ("--loss.classification ce", "loss", {"classification": "ce"}),
        ("--loss.classification alpha_ce --loss.alpha 0.75", "loss", {"classification": "alpha_ce", "alpha": 0.75}),
        ("--loss.gamma 0.5 --loss.alpha 0.5", "loss", {"gamma": 0.5, "alpha": 0.5}),
        ("--anchors.scales 1 --anchors.ratios 1", "anchors", {"scales": (1.0,), "ratios": (1.0,)}),
        (
            "--anchors.scales 1 1.1892 1.4142 1.6818",
            "anchors",
            {"scales": (1.0, 1.1892, 1.4142, 1.6818)},
        ),
        (
            "--loss.classification ohem --loss.ohem-batch 128 --loss.ohem-nms 0.5",
            "loss",
            {"classification": "ohem", "ohem_batch": 128, "ohem_nms": 0.5},
        ),
        ("--loss.classification ohem_1_3", "loss", {"classification": "ohem_1_3"}),
        *[(f"--data.size {size}", "data", {"size": size}) for size in (400, 500, 600, 700)],
        ("--model.backbone resnet101.tv_in1k", "model", {"backbone": "resnet101.tv_in1k"}),
        ("--model.backbone resnext101_32x8d", "model", {"backbone": "resnext101_32x8d"}),
        (
            "--loss.classification focal_star --loss.gamma 4 --loss.star-beta 0",
            "loss",
            {"classification": "focal_star", "gamma": 4.0, "star_beta": 0.0},
        ),
        ("--model.p6-from p5", "model", {"p6_from": "p5"}),
        ("--model.no-relu-before-p7", "model", {"relu_before_p7": False}),
        ("--anchors.layout torchvision", "anchors", {"layout": "torchvision"}),
        ("--loss.normalizer image", "loss", {"normalizer": "image"}),
        ("--loss.normalizer moving", "loss", {"normalizer": "moving"}),
        ("--loss.normalizer rank", "loss", {"normalizer": "rank"}),
        ("--train.bias-lr 2 --train.no-bias-decay", "train", {"bias_lr": 2.0, "bias_decay": False}),
        ("--loss.box l1", "loss", {"box": "l1"}),
        ("--assign.force-best", "assign", {"force_best": True}),
        ("--data.crowd drop", "data", {"crowd": "drop"}),
        ("--data.crowd object", "data", {"crowd": "object"}),
    ],
)
def test_comparisons_and_deviations_are_flags(
    settings_of: Callable[..., Config], paper: Config, flags: str, group: str, values: dict[str, Any]
) -> None:
    expected = replace(paper, **{group: replace(getattr(paper, group), **values)})
    assert settings_of("--recipe", "paper", *flags.split()) == expected


@pytest.mark.parametrize(
    ("policy", "objects", "regions"), [("ignore", [0, 1], [2]), ("drop", [0, 1], []), ("object", [0, 1, 2], [])]
)
def test_training_treats_crowds_as_the_setting_says(
    paper: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, objects: list[int], regions: list[int]
) -> None:
    """Not in the paper; the others' policies are options."""
    boxes = [(0.0, 0.0, 20.0, 20.0), (5.0, 5.0, 50.0, 40.0), (30.0, 0.0, 64.0, 30.0)]
    builder = DatasetBuilder("toy", tmp_path, ("cat",))
    builder.add_image("a.jpg", 64, 64)
    for index, box in enumerate(boxes):
        builder.add_box(box, 0, "", ignore=index == 2)
    dataset = builder.build()

    def stop(train_set: Dataset, *arguments: Any) -> NoReturn:
        raise _Stopped(train_set)

    monkeypatch.setattr(loop, "training_loader", stop)
    model = replace(paper.model, backbone="resnet18", pretrained=False, channels=32, subnet_depth=0)
    data = replace(paper.data, crowd=policy)  # type: ignore[arg-type]
    config = replace(paper, model=model, data=data, train=replace(paper.train, device="cpu"))
    with pytest.raises(_Stopped) as caught:
        loop.train_on(config, dataset, dataset, tmp_path / "run")
    used: Dataset = caught.value.value
    assert used.boxes[~used.ignore].tolist() == [list(boxes[index]) for index in objects]
    assert used.boxes[used.ignore].tolist() == [list(boxes[index]) for index in regions]
