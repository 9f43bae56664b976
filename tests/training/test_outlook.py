"""What a training says before it starts, and when it knows how long it takes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.recipes import load_recipe
from retinanet.training.outlook import Clock, duration, outlook


def cats_and_dogs(cats: int, dogs: int, dropped: int = 0) -> Dataset:
    """An image for each object, and boxes without area that are dropped."""
    builder = DatasetBuilder("pets", Path("/data"), ("cat", "dog"))
    for number in range(cats + dogs):
        builder.add_image(f"{number}.png", 100, 100)
        left, top = 7 * number % 40, 11 * number % 40
        builder.add_box((left, top, left + 50 + number % 10, top + 50 + number % 7), int(number >= cats), "")
        if number < dropped:
            builder.add_box((20, 20, 20, 40), 0, f"line {number}")
    return builder.build()


def test_a_sound_dataset_takes_three_sentences() -> None:
    config = load_recipe("paper")
    said = outlook(cats_and_dogs(20, 1200), cats_and_dogs(3, 4), replace(config, train=replace(config.train, epochs=1)))
    assert said == (
        "This training uses 1,220 images in train and 7 images in val, with 1,227 boxes of 2 classes. No problem was "
        "found that would harm a training. It trains resnet50.tv_in1k at 800 px for 1 epoch with 16 images per step, "
        "and keeps the weights with the best AP on val."
    )


def test_the_most_serious_problems_come_first_with_effect_and_remedy() -> None:
    said = outlook(cats_and_dogs(20, 2, dropped=5), cats_and_dogs(3, 4), load_recipe("paper"))
    assert "Found 6 warnings, the most serious first. Degenerate box (5 ×): the box is dropped; correct the" in said
    assert "Class with fewer than 10 boxes in train (1 ×): too few examples to learn the class; annotate more" in said
    assert said.index("Degenerate") < said.index("Class with fewer")
    assert "\n" not in said


def test_the_time_left_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock, said = Clock(), []
    for step in range(1, 101):
        now += 3
        if line := clock.estimate(step, 10_000):
            said.append((step, line))
    assert said == [(11, "about 8 h 19 min left: 9,989 steps of 3 s, and the evaluations")]


def test_short_trainings_say_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = Clock()
    for step in range(1, 31):
        now += 3
        assert clock.estimate(step, 30) is None


def test_durations() -> None:
    assert [duration(seconds) for seconds in (150, 3600, 12_345)] == ["2 min", "1 h 0 min", "3 h 26 min"]
