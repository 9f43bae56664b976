from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

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
from retinanet.recipes import RECIPES, load_recipe


def test_the_paper_recipe_is_the_default() -> None:
    paper = load_recipe("paper")
    assert paper.model.backbone == "resnet50.tv_in1k"  # the default names no particular ImageNet weights
    assert dataclasses.replace(paper, model=dataclasses.replace(paper.model, backbone="resnet50")) == Config()


@pytest.mark.parametrize(("size", "longest"), [(800, 1333), (600, 1000), (400, 666)])
def test_longest_side(size: int, longest: int) -> None:
    assert DataConfig(size=size).longest == pytest.approx(longest, abs=1)
    assert DataConfig(size=size, max_size=2000).longest == 2000


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_bundled_recipes_load(name: str) -> None:
    config = load_recipe(name)
    values = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    for group, settings in values.items():
        for key, value in settings.items():
            loaded = getattr(getattr(config, group), key)
            assert loaded == (tuple(value) if isinstance(value, list) else value), f"{group}.{key}"


def test_the_modern_recipe_differs() -> None:
    modern = load_recipe("modern")
    assert modern != Config()
    kept = {name: getattr(modern.loss, name) for name in ("classification", "alpha", "box", "box_weight")}
    assert modern.loss == dataclasses.replace(LossConfig(), **kept)


def test_settings_round_trip() -> None:
    for config in (Config(), load_recipe("modern"), Config(anchors=AnchorSpec(sizes=(20.0, 40.0, 80.0, 160.0, 320.0)))):
        assert Config.from_dict(config.to_dict()) == config
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    hash(Config.from_dict(json.loads(json.dumps(Config().to_dict()))))  # lists became tuples: usable as a key


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(str(path))


def test_a_recipe_file_changes_what_it_names(tmp_path: Path) -> None:
    text = """
    train: {epochs: 3, lr: 1e-4, weight-decay: 0}
    data:
      scale: [0.5, 2]
      max-size: 900
    anchors: {sizes: [10, 20, 40.5, 80, 160], ratios: [1]}
    loss: {alpha: null}
    model: {channels: 64}
    """
    config = load(tmp_path, text)
    expected = Config(
        train=TrainConfig(epochs=3, lr=1e-4, weight_decay=0.0),
        data=DataConfig(scale=(0.5, 2.0), max_size=900),
        anchors=AnchorSpec(sizes=(10.0, 20.0, 40.5, 80.0, 160.0), ratios=(1.0,)),
        loss=LossConfig(alpha=None),
        model=ModelConfig(channels=64),
    )
    assert config == expected
    assert isinstance(config.train.lr, float)  # YAML reads 1e-4 as text
    assert isinstance(config.data.scale, tuple)
    assert isinstance(config.anchors.sizes[0], float)


def test_an_empty_recipe_file_is_the_default(tmp_path: Path) -> None:
    assert load(tmp_path, "# nothing\n") == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {epochs: 3}", "unknown key 'trian'; did you mean 'train'"),
        ("train: {epoch: 3}", "unknown key 'epoch'; did you mean 'epochs'"),
        ("data: {max_szie: 3}", "did you mean 'max_size'"),
        ("train: {qqqqqq: 3}", "unknown key 'qqqqqq'; known: epochs"),
        ("train: 3", "'train' is a group of settings, not 3"),
        ("train: {epochs: 3.5}", "epochs is 3.5; expected int"),
        ("train: {epochs: true}", "epochs is True; expected int"),
        ("train: {epochs: '3'}", "epochs is '3'; expected int"),
        ("train: {epochs: null}", "epochs is None; expected int"),
        ("train: {lr: fast}", "lr is 'fast'; expected float"),
        ("train: {lr: true}", "lr is True; expected float"),
        ("model: {backbone: 50}", "backbone is 50; expected str"),
        ("model: {pretrained: 1}", "pretrained is 1; expected bool"),
        ("model: {norm: thawed}", "norm is 'thawed'; choose from frozen, trained"),
        ("data: {scale: [1]}", "scale is"),
        ("data: {scale: 1.0}", "scale is 1.0"),
        ("anchors: {sizes: [1, big]}", "sizes is 'big'; expected float"),
        ("- train", "a recipe is a mapping"),
        ("train: {epochs: 3", "not a readable YAML file"),
        ("train: {epochs: 0}", "train.epochs is 0"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_file_may_start_from_another(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "base.yaml").write_text("recipe: modern\ntrain: {epochs: 7, lr: 0.5}\n")
    config = load(tmp_path, "train: {lr: 0.25}\nrecipe: below/base.yaml")
    modern = load_recipe("modern")
    assert config == dataclasses.replace(modern, train=dataclasses.replace(modern.train, epochs=7, lr=0.25))
    assert load(tmp_path, "recipe: paper") == load_recipe("paper")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: own.yaml", "starts from this one"),
        ("recipe: loop.yaml", "starts from this one"),
        ("recipe: missing.yaml", "no recipe 'missing.yaml'; there are modern, paper"),
        ("recipe: [modern]", "recipe is ['modern']; give the name"),
        ("recipe: null", "recipe is None; give the name"),
    ],
)
def test_what_a_recipe_cannot_start_from(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "loop.yaml").write_text("recipe: own.yaml")
    with pytest.raises(ConfigError, match=r"own\.yaml") as caught:
        load(tmp_path, text)
    assert message in str(caught.value)


def test_mistakes_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"own\.yaml"):
        load(tmp_path, "train: {epoch: 3}")


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("key", ["train.lr", "loss.gamma", "loss.box_weight"])
def test_numbers_must_be_finite(key: str, value: str) -> None:
    group, name = key.split(".")
    with pytest.raises(ConfigError):
        Config.from_dict({group: {name: value}})


def test_a_recipe_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match="not a readable YAML file"):
        load_recipe(str(path))


@pytest.mark.parametrize("text", ["train: {epochs: 2001-13-45}", "train: " + "[" * 5000])
def test_a_recipe_the_reader_stumbles_over(tmp_path: Path, text: str) -> None:
    """YAML takes the first for a date, of a month that does not exist; the second is nested too deeply."""
    with pytest.raises(ConfigError, match="not a readable YAML file") as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'fast'; there are .*modern.*paper"):
        load_recipe("fast")


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
        (lambda: TrainConfig(pictures_every=-1), "train.pictures-every"),
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
        ({"ohem_nms": 0.0}, "loss.ohem-nms is 0.0; it lies between 0 and 1"),
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


def test_importing_the_settings_loads_no_torch() -> None:
    code = "import sys; from retinanet.recipes import load_recipe; load_recipe('paper'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


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


def test_a_recipe_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.yaml").write_text("recipe: modern\n")

    def denied(*arguments: object, **settings: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(ConfigError, match=r"own\.yaml: not read, reading it is not permitted"):
        load_recipe(str(tmp_path / "own.yaml"))
