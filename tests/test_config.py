from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from retinanet.config import (
    AnchorSpec,
    AssignConfig,
    Config,
    DataConfig,
    DecodeConfig,
    LossConfig,
    ModelConfig,
    TrainConfig,
)
from retinanet.errors import ConfigError
from retinanet.recipes import load_recipe
from retinanet.schema import without_effect


@pytest.mark.parametrize(("size", "longest"), [(800, 1333), (600, 1000), (400, 666)])
def test_longest_side(size: int, longest: int) -> None:
    assert DataConfig(size=size).longest == pytest.approx(longest, abs=1)
    assert DataConfig(size=size, max_size=2000).longest == 2000


def test_settings_round_trip() -> None:
    for config in (Config(), load_recipe("modern"), Config(anchors=AnchorSpec(sizes=(20.0, 40.0, 80.0, 160.0, 320.0)))):
        assert Config.from_dict(config.to_dict()) == config
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    hash(Config.from_dict(json.loads(json.dumps(Config().to_dict()))))  # lists became tuples: usable as a key


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("key", ["train.lr", "loss.gamma", "loss.box_weight"])
def test_numbers_must_be_finite(key: str, value: str) -> None:
    group, name = key.split(".")
    with pytest.raises(ConfigError):
        Config.from_dict({group: {name: value}})


@pytest.mark.parametrize(
    ("make", "flag"),
    [
        (lambda: ModelConfig(prior=0.0), "model.prior"),
        (lambda: ModelConfig(prior=1.0), "model.prior"),
        (lambda: ModelConfig(subnet_depth=-1), "model.subnet-depth"),
        (lambda: ModelConfig(freeze_stages=-1), "model.freeze-stages"),
        (lambda: ModelConfig(channels=0), "model.channels"),
        (lambda: ModelConfig(channels=100), "model.channels"),
        (lambda: AssignConfig(foreground=0.3, background=0.4), "assign"),
        (lambda: AssignConfig(background=-0.1), "assign"),
        (lambda: AssignConfig(candidates=0), "assign.candidates"),
        (lambda: AssignConfig(ignore_overlap=-1.0), "assign.ignore-overlap"),
        (lambda: LossConfig(alpha=1.5), "loss.alpha"),
        (lambda: LossConfig(gamma=-1.0), "loss.gamma"),
        (lambda: LossConfig(beta=0.0), "loss.beta"),
        (lambda: LossConfig(box_weight=-1.0), "loss.box-weight"),
        (lambda: LossConfig(classification="focal_star", gamma=0.0), "loss.gamma"),
        (lambda: LossConfig(star_beta=math.inf), "loss.star-beta"),
        (lambda: LossConfig(star_beta=math.nan), "loss.star-beta"),
        (lambda: LossConfig(ohem_batch=3), "loss.ohem-batch"),
        (lambda: LossConfig(ohem_nms=0.0), "loss.ohem-nms"),
        (lambda: LossConfig(ohem_nms=1.1), "loss.ohem-nms"),
        (lambda: DataConfig(size=16), "data.size"),
        (lambda: DataConfig(tile=63), "data.tile"),
        (lambda: DataConfig(visible=0), "data.visible"),
        (lambda: DataConfig(size=800, max_size=700), "data.max-size"),
        (lambda: DataConfig(val_fraction=0.0), "data.val-fraction"),
        (lambda: DataConfig(scale=(2.0, 1.0)), "data.scale"),
        (lambda: DataConfig(scale=(0.0, 1.0)), "data.scale"),
        (lambda: DataConfig(flip=1.1), "data.flip"),
        (lambda: DataConfig(crop=-0.1), "data.crop"),
        (lambda: DataConfig(color=1.0), "data.color"),
        (lambda: DataConfig(workers=-1), "data.workers"),
        (lambda: TrainConfig(epochs=0), "train.epochs"),
        (lambda: TrainConfig(batch=0), "train.batch"),
        (lambda: TrainConfig(eval_every=0), "train.eval-every"),
        (lambda: TrainConfig(images_every=-1), "train.images-every"),
        (lambda: TrainConfig(lr=0.0), "train.lr"),
        (lambda: TrainConfig(backbone_lr=-1.0), "train.backbone-lr"),
        (lambda: TrainConfig(momentum=1.0), "train.momentum"),
        (lambda: TrainConfig(momentum=-0.1), "train.momentum"),
        (lambda: TrainConfig(clip=0.0), "train.clip"),
        (lambda: TrainConfig(ema=1.0), "train.ema"),
        (lambda: TrainConfig(weight_decay=-1.0), "train.weight-decay"),
        (lambda: TrainConfig(warmup=-1), "train.warmup"),
        (lambda: TrainConfig(checkpoint_minutes=0.0), "train.checkpoint-minutes"),
        (lambda: DecodeConfig(score=1.0), "decode.score"),
        (lambda: DecodeConfig(nms=0.0), "decode.nms"),
        (lambda: DecodeConfig(top_k=0), "decode.top-k"),
        (lambda: DecodeConfig(max_detections=0), "decode.max-detections"),
    ],
)
def test_invalid_values_name_the_flag(make: Callable[[], Any], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag.replace(".", r"\.")) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classification": "focal_star", "gamma": 0.0}, "loss.gamma is 0; FL* divides by it, so it must be positive"),
        ({"ohem_batch": 3}, "loss.ohem-batch is 3; it must be at least 4"),
        ({"ohem_nms": 0.0}, "loss.ohem-nms is 0.0; it must lie between 0 and 1"),
        ({"star_beta": -math.inf}, "loss.star-beta is -inf; give a finite number"),
    ],
)
def test_what_is_wrong_with_a_loss(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LossConfig(**values)
    assert str(caught.value) == message


def test_losses_at_the_limits_are_valid() -> None:
    LossConfig(classification="focal", gamma=0.0)
    LossConfig(classification="focal_star", gamma=1e-3, star_beta=-5.0)
    LossConfig(classification="ohem_1_3", ohem_batch=4, ohem_nms=1.0)


@pytest.mark.parametrize("key", ["classification", "box", "normalizer"])
def test_an_unknown_loss_lists_those_there_are(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is 'median'; choose from ") as caught:
        Config.from_dict({"loss": {key: "median"}})
    (field,) = (f for f in dataclasses.fields(LossConfig) if f.name == key)
    assert str(field.default) in str(caught.value)


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("train", "clip", math.inf),
        ("train", "weight_decay", math.inf),
        ("model", "norm_eps", math.inf),
        ("anchors", "sizes", (math.inf, 1.0, 1.0, 1.0, 1.0)),
        ("data", "scale", (1.0, math.inf)),
        ("loss", "gamma", math.nan),
    ],
)
def test_what_a_file_could_not_hold_is_refused_at_once(group: str, name: str, value: object) -> None:
    kinds = {f.name: type(getattr(Config(), f.name)) for f in dataclasses.fields(Config)}
    with pytest.raises(ConfigError, match=rf"^{group}\.{name.replace('_', '-')} is .*finite number"):
        kinds[group](**{name: value})


def test_the_pyramid_has_the_strides_it_has() -> None:
    with pytest.raises(ConfigError, match=r"anchors\.strides is \(16, .*the network's are \(8, 16, 32, 64, 128\)"):
        Config(anchors=AnchorSpec(strides=(16, 16, 32, 64, 128)))
    with pytest.raises(ConfigError, match=r"anchors\.strides"):
        Config(anchors=AnchorSpec(sizes=(32.0, 64.0), strides=(8, 16)))


def test_a_setting_accepts_its_former_values() -> None:
    """Recipes and weights of earlier versions hold ``verify: true`` and ``verify: false``."""
    for former, now in ((True, "auto"), (False, "never")):
        config = Config.from_dict({"data": {"verify": former}})
        assert config.data.verify == now
    assert Config.from_dict({"data": {"verify": "always"}}).data.verify == "always"
    with pytest.raises(ConfigError, match="auto, always, never"):
        Config.from_dict({"data": {"verify": "perhaps"}})
    with pytest.raises(ConfigError):
        Config.from_dict({"model": {"backbone": True}})


def test_a_setting_is_found_by_its_former_name() -> None:
    """Recipes and checkpoints of earlier versions have it."""
    assert Config.from_dict({"train": {"pictures_every": 3}}).train.images_every == 3
    assert "pictures_every" not in Config().to_dict()["train"]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: TrainConfig(epochs=1.5), "train.epochs"),  # type: ignore[arg-type]
        (lambda: TrainConfig(batch=True), "train.batch"),
        (lambda: DataConfig(size=640.5), "data.size"),  # type: ignore[arg-type]
        (lambda: DataConfig(workers=2.5), "data.workers"),  # type: ignore[arg-type]
    ],
)
def test_counts_that_are_no_whole_numbers_are_refused(make: Callable[[], object], name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is .*; give a whole number"):
        make()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"assign": {"method": "atss", "foreground": 0.4}}, "assign.foreground has no effect with assign.method atss"),
        ({"assign": {"method": "atss", "background": 0.3}}, "assign.background has no effect with assign.method atss"),
        ({"assign": {"method": "atss", "force_best": True}}, "assign.force-best has no effect with assign.method atss"),
        ({"assign": {"candidates": 5}}, "assign.candidates has no effect with assign.method iou; it is for"),
        ({"train": {"optimizer": "adamw", "bias_decay": False}}, "train.bias-decay has no effect with train.optimizer"),
        ({"train": {"sync_norm": True}}, "train.sync-norm has no effect with model.norm frozen"),
    ],
)
def test_a_setting_without_effect_is_named(values: dict[str, dict[str, object]], expected: str) -> None:
    [sentence] = without_effect(Config.from_dict(values))
    assert sentence.startswith(expected)


def test_settings_of_the_chosen_methods_are_not_named() -> None:
    for config in (Config(), load_recipe("modern"), load_recipe("paper")):
        assert not list(without_effect(config))
    chosen = {"assign": {"method": "atss", "candidates": 5}, "train": {"bias_decay": False}}
    assert not list(without_effect(Config.from_dict(chosen)))
