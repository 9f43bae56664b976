"""The learning rate that is found: on curves whose answer is known, and in a training."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from retinanet import cli
from retinanet.data.synthetic import write_sample
from retinanet.recipes import load_recipe
from retinanet.training.find_lr import draw, smoothed, steepest
from retinanet.zoo.weights import read_info

RATES = [1e-5 * 10 ** (4 * i / 99) for i in range(100)]


def fall(rate: float, steepest_at: float) -> float:
    """A loss that falls from 2 to 1 around a rate, and explodes at thirty times that."""
    return 1 + 1 / (1 + (rate / steepest_at) ** 2) + (rate / (30 * steepest_at)) ** 3


@pytest.mark.parametrize("at", [1e-4, 1e-3, 5e-3])
def test_the_steepest_fall_is_found(at: float) -> None:
    losses = [fall(rate, at) for rate in RATES]
    found = steepest(RATES, losses)
    assert found is not None
    assert at / 2 < found < at * 2


def test_noise_changes_little() -> None:
    noise = [0.1 * math.sin(37 * i) for i in range(100)]
    found = steepest(RATES, [fall(rate, 1e-3) + e for rate, e in zip(RATES, noise, strict=True)])
    assert found is not None
    assert 3e-4 < found < 6e-3


def test_a_loss_that_only_rises_has_none() -> None:
    assert steepest(RATES, [1 + i / 100 for i in range(100)]) is None
    assert steepest([], []) is None


def test_smoothing_has_no_bias_at_the_start() -> None:
    assert smoothed([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])


def test_the_curve_is_an_image(tmp_path: Path) -> None:
    draw(RATES, [fall(rate, 1e-3) for rate in RATES], 1e-3, tmp_path / "lr.png")
    assert Image.open(tmp_path / "lr.png").width > 300


def test_a_training_uses_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sample(tmp_path / "parts", images=12, seed=1, size=96)
    small = "--model.channels 32 --model.subnet-depth 1 --data.size 64 --data.workers 0 --train.epochs 1"
    command = ["train", str(tmp_path / "parts"), "--out", str(tmp_path / "run"), *small.split(), "--train.find-lr"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("learning rate:")]
    saved = read_info(tmp_path / "run" / "last.safetensors").config.train
    assert f"learning rate: {saved.lr:.2g} for 16 images" in line
    recipe = load_recipe("modern").train
    assert recipe.lr / 100 <= saved.lr <= recipe.lr * 30
    assert saved == replace(recipe, lr=saved.lr, epochs=1)
    assert (tmp_path / "run" / "learning_rate.png").exists()
    # going on keeps what was found and does not look again
    assert cli.main([*command, "--resume"]) == 0
    assert "learning rate:" not in capsys.readouterr().out
    assert cli.main([*command, "--recipe", "modern", "--resume"]) == 0
