"""Recipes: those of the package, YAML files, and how a run's settings are made from them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from retinanet.config import AnchorSpec, Config, DataConfig, LossConfig, ModelConfig, TrainConfig
from retinanet.errors import ConfigError
from retinanet.recipes import RECIPES, as_yaml, load_recipe, resolve


def test_the_paper_recipe_is_the_default() -> None:
    paper = load_recipe("paper")
    assert paper.model.backbone == "resnet50.tv_in1k"  # the default names no particular ImageNet weights
    assert dataclasses.replace(paper, model=dataclasses.replace(paper.model, backbone="resnet50")) == Config()


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


def test_importing_the_settings_loads_no_torch() -> None:
    code = "import sys; from retinanet.recipes import load_recipe; load_recipe('paper'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_recipe_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.yaml").write_text("recipe: modern\n")

    def denied(*arguments: object, **settings: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(ConfigError, match=r"own\.yaml: cannot be read, permission denied"):
        load_recipe(str(tmp_path / "own.yaml"))


def test_a_run_starts_from_the_modern_recipe() -> None:
    assert resolve() == load_recipe("modern")
    assert resolve("paper") == load_recipe("paper")


def test_single_settings_replace_those_of_the_recipe() -> None:
    config = resolve("paper", {"train.epochs": 3, "data.max-size": 900, "anchors.ratios": [1, 2]})
    paper = load_recipe("paper")
    assert config == dataclasses.replace(
        paper,
        train=dataclasses.replace(paper.train, epochs=3),
        data=dataclasses.replace(paper.data, max_size=900),
        anchors=dataclasses.replace(paper.anchors, ratios=(1.0, 2.0)),
    )


def test_a_resumed_run_keeps_its_settings() -> None:
    stored = Config(train=TrainConfig(lr=0.3, epochs=7))
    assert resolve(stored=stored) == stored
    assert resolve("modern", stored=stored) == load_recipe("modern")  # the caller refuses the difference
    assert resolve(None, {"train.epochs": 8}, stored).train == TrainConfig(lr=0.3, epochs=8)


def test_a_learning_rate_that_was_found_is_not_searched_again() -> None:
    stored = Config(train=TrainConfig(lr=0.3))
    again = Config(train=TrainConfig(find_lr=True))
    assert resolve(again, stored=stored) == stored
    assert resolve(again) == again


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 3}, "'epochs' is not a setting; write GROUP.NAME as in the flags, such as 'train.epochs'"),
        ({"train.epoch": 3}, "settings: train: unknown key 'epoch'; did you mean 'epochs'?"),
        ({"trian.epochs": 3}, "settings: unknown key 'trian'; did you mean 'train'?"),
        ({"train.epochs": 0}, "train.epochs is 0; it must be at least 1"),
    ],
)
def test_mistakes_in_single_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(settings=settings)
    assert str(caught.value) == message


def test_written_settings_are_a_recipe(tmp_path: Path) -> None:
    config = resolve("paper", {"data.scale": (0.5, 2.0), "train.track": ["wandb"]})
    assert load(tmp_path, as_yaml(config)) == config
