"""Which images make up a batch: rare classes and background, several processes, and resuming."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinanet.config import DataConfig
from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.data.sampling import TrainingOrder, sampling_factors


def dataset(contents: list[list[int]], upright: int = 0) -> Dataset:
    """Images with boxes of the given classes; the first ``upright`` are higher than wide."""
    from pathlib import Path

    builder = DatasetBuilder("set", Path("."), ("common", "rare"))
    for i, classes in enumerate(contents):
        builder.add_image(f"{i}.jpg", *((40, 60) if i < upright else (60, 40)))
        for label in classes:
            builder.add_box((1, 1, 20, 20), abs(label), f"{i}", ignore=label < 0)
    return builder.build()


def test_by_default_every_image_once() -> None:
    data = dataset([[0], [], [0, 1]])
    assert sampling_factors(data, DataConfig()).tolist() == [1, 1, 1]


def test_repeat_factors_by_hand() -> None:
    data = dataset([[0]] * 96 + [[0, 1]] * 4)  # the rare class is in 4 % of the images
    factors = sampling_factors(data, DataConfig(repeat_rare=0.16))
    assert factors[:96].tolist() == [1.0] * 96  # the common class is in all of them
    assert factors[96:] == pytest.approx([2.0] * 4)  # √(0.16 / 0.04)


def test_ignore_regions_are_no_examples_of_their_class() -> None:
    data = dataset([[0]] * 9 + [[-1]])
    assert sampling_factors(data, DataConfig(repeat_rare=0.5)).tolist() == [1.0] * 10


@pytest.mark.parametrize(("share", "empty", "expected"), [(0.2, 30, 10), (0.0, 30, 0), (0.5, 30, 30), (0.9, 5, 5)])
def test_background_is_at_most_the_share_asked_for(share: float, empty: int, expected: int) -> None:
    data = dataset([[0]] * 40 + [[]] * empty)
    factors = sampling_factors(data, DataConfig(background=share))
    order = TrainingOrder(data, 8, 200, 0, factors=factors)
    shown: Counter[int] = Counter()
    for epoch in range(200):
        images = [i for batch in order.batches(epoch) for i in batch]
        assert len(images) == order.images_per_epoch == 40 + expected
        assert set(range(40)) <= set(images)  # every image with objects, in every epoch
        shown.update(i for i in images if i >= 40)
    if 0 < expected < empty:  # every empty one has its turns
        turns = np.array([shown[i] for i in range(40, 40 + empty)])
        assert turns.min() > 0.5 * 200 * expected / empty


@given(
    st.lists(st.floats(0.05, 5), min_size=1, max_size=30), st.integers(0, 5), st.integers(1, 7), st.integers(0, 1 << 30)
)
@settings(max_examples=100, deadline=None)
def test_each_image_as_often_as_its_factor_says(wanted: list[float], upright: int, batch: int, seed: int) -> None:
    data = dataset([[0]] * len(wanted), upright)
    factors = np.array(wanted)
    order = TrainingOrder(data, batch, 60, seed, factors=factors)
    groups = [np.arange(len(wanted)) < upright, np.arange(len(wanted)) >= upright]
    exact = np.zeros(len(wanted))  # what is left of the factors when an epoch holds a whole number of images
    for group in groups:
        if group.any():
            exact[group] = factors[group] * max(1, round(factors[group].sum())) / factors[group].sum()
    total = np.zeros(len(wanted))
    for epoch in range(60):
        batches = order.batches(epoch)
        assert len(batches) == order.steps_per_epoch
        assert all(1 <= len(b) <= batch for b in batches)
        counts = np.bincount([i for b in batches for i in b], minlength=len(wanted))
        assert counts.sum() == order.images_per_epoch
        assert (counts >= np.floor(exact - 1e-6)).all()
        assert (counts <= np.ceil(exact + 1e-6)).all()
        total += counts
    assert np.abs(total / 60 - exact).max() < 0.35  # a fraction's mean over 60 draws


@given(st.integers(1, 40), st.integers(1, 9), st.integers(2, 5), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_processes_share_every_batch(images: int, batch: int, count: int, start: int) -> None:
    data = dataset([[0]] * images, upright=images // 3)
    alone = TrainingOrder(data, batch, 3, 5, min(start, 2))
    shares = [list(TrainingOrder(data, batch, 3, 5, min(start, 2), rank=r, world_size=count)) for r in range(count)]
    assert list(alone.lengths()) == list(map(len, alone))
    for step, whole in enumerate(alone):
        parts = [share[step] for share in shares]
        assert sorted(key for part in parts for key in part) == sorted(whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_no_background_at_all_where_a_whole_orientation_is_background() -> None:
    data = dataset([[], [], [], [0], [0, 1]], upright=3)
    order = TrainingOrder(data, 2, 3, 0, factors=sampling_factors(data, DataConfig(background=0.0)))
    assert order.images_per_epoch == 2
    assert sorted(i for batch in order.batches(0) for i in batch) == [3, 4]


def test_images_before_a_step() -> None:
    data = dataset([[0]] * 11, upright=4)
    order = TrainingOrder(data, 3, 4, 1)
    lengths = list(order.lengths())
    assert [order.images_before(step) for step in range(len(lengths) + 1)] == [
        sum(lengths[:i]) for i in range(len(lengths) + 1)
    ]
