from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from retinanet.config import DataConfig
from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.data.image_sizes import padded_size
from retinanet.data.loader import (
    Batch,
    Timed,
    evaluation_loader,
    load_sample,
    training_loader,
    worker_count,
)
from retinanet.data.sample import Sample
from retinanet.data.sampling import TrainingOrder
from retinanet.errors import DataError


def unread(upright: int, lying: int) -> Dataset:
    """A dataset of which no file exists; every third image is upright as long as there are any."""
    builder = DatasetBuilder("toy", Path("/data"), ("cat",))
    kinds = np.random.default_rng(0).permutation([True] * upright + [False] * lying)
    for i, is_upright in enumerate(kinds.tolist()):
        builder.add_image(f"{i}.jpg", *((50, 100) if is_upright else (100, 50 + 50 * (i % 2))))
    return builder.build()


@pytest.fixture
def folder(tmp_path: Path) -> Dataset:
    """Nine readable images of several sizes, each grey in its own shade, with i objects and an ignore region."""
    builder = DatasetBuilder("toy", tmp_path, ("cat", "dog"))
    for i in range(9):
        width, height = [(80, 50), (50, 80), (160, 100)][i % 3]
        pixels = np.full((height, width, 3), 20 * i, dtype=np.uint8)
        pixels[5:20, 5:25] = 255
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        builder.add_image(f"{i}.png", width, height, image_id=100 + i)
        for k in range(i % 4):
            builder.add_box((5 + k, 5, 25, 20), k % 2, "")
        if i % 2:
            builder.add_box((30, 5, 45, 20), 0, "", ignore=True)
    return builder.build()


cases = st.tuples(st.integers(0, 20), st.integers(0, 20)).filter(lambda v: sum(v) > 0)


@given(counts=cases, batch=st.integers(1, 9), epochs=st.integers(1, 3), seed=st.integers(0, 5))
def test_every_epoch_visits_every_image_once(counts: tuple[int, int], batch: int, epochs: int, seed: int) -> None:
    dataset = unread(*counts)
    order = TrainingOrder(dataset, batch, epochs, seed)
    batches = list(order)
    assert len(batches) == len(order) == epochs * order.steps_per_epoch
    for epoch in range(epochs):
        steps = batches[epoch * order.steps_per_epoch : (epoch + 1) * order.steps_per_epoch]
        assert [{(e, n) for e, n, _ in step} for step in steps] == [{(epoch, n)} for n in range(order.steps_per_epoch)]
        assert Counter(i for step in steps for _, _, i in step) == Counter(range(len(dataset)))
    for step in batches:
        assert 1 <= len(step) <= batch
        assert len({bool(dataset.sizes[i, 1] > dataset.sizes[i, 0]) for _, _, i in step}) == 1  # no mixed orientations


@given(counts=cases, batch=st.integers(1, 9), share=st.floats(0, 1), seed=st.integers(0, 5))
def test_resuming_yields_the_rest(counts: tuple[int, int], batch: int, share: float, seed: int) -> None:
    dataset = unread(*counts)
    whole = list(TrainingOrder(dataset, batch, 3, seed))
    start = int(share * len(whole))
    rest = TrainingOrder(dataset, batch, 3, seed, start)
    assert list(rest) == whole[start:]
    assert len(rest) == len(whole) - start


def test_epochs_and_seeds_shuffle_differently() -> None:
    dataset = unread(20, 20)
    order = TrainingOrder(dataset, 4, 2, seed=0)
    assert order.batches(0) == TrainingOrder(dataset, 4, 2, seed=0).batches(0)
    assert order.batches(0) != order.batches(1)
    assert order.batches(0) != TrainingOrder(dataset, 4, 2, seed=1).batches(0)
    assert [i for step in order.batches(0) for i in step] != list(range(40))
    # the orientations take turns rather than come one after the other
    sides = dataset.sizes
    upright = [bool(sides[step[0], 1] > sides[step[0], 0]) for step in order.batches(0)]
    assert sum(a != b for a, b in pairwise(upright)) > 1


VARIED = DataConfig(size=64, crop=0.5, color=0.3, scale=(0.7, 1.3))


def batches_of(dataset: Dataset, workers: int, start: int = 0) -> list[Batch]:
    config = DataConfig(**{**VARIED.__dict__, "workers": workers})
    order = TrainingOrder(dataset, 2, 2, seed=3, start=start)
    return cast("list[Batch]", list(training_loader(dataset, order, config, seed=3)))


def same(a: Batch, b: Batch) -> bool:
    columns = [(getattr(a, key), getattr(b, key)) for key in ("images", "boxes", "labels", "ignore")]
    pairs = [pair for column in columns for pair in zip(*column, strict=True)]
    return a.indices == b.indices and all(torch.equal(x, y) for x, y in pairs)


def test_workers_change_nothing(folder: Dataset) -> None:
    alone, shared = batches_of(folder, 0), batches_of(folder, 2)
    assert len(alone) == len(shared) == 10
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))


def test_resuming_changes_nothing(folder: Dataset) -> None:
    whole, rest = batches_of(folder, 0), batches_of(folder, 0, start=7)
    assert all(same(a, b) for a, b in zip(whole[7:], rest, strict=True))


def test_an_image_is_varied_anew_in_every_epoch(folder: Dataset) -> None:
    views: dict[int, list[torch.Tensor]] = {}
    for batch in batches_of(folder, 0):
        for index, image in zip(batch.indices, batch.images, strict=True):
            views.setdefault(index, []).append(image)
    assert {len(v) for v in views.values()} == {2}
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in views.values())


def test_a_batch_has_one_random_scale(folder: Dataset) -> None:
    """Whose range is data.scale, seen in the shorter sides; without a range, all have data.size."""
    order, fixed = TrainingOrder(folder, 3, 20, seed=3), DataConfig(size=64, crop=0.0, workers=0)
    varied = replace(fixed, scale=(0.7, 1.3))
    sides = [{min(i.shape[1:]) for i in b.images} for b in training_loader(folder, order, varied, seed=3)]
    assert all(len(each) == 1 for each in sides)
    drawn = np.array([side for each in sides for side in each]) / 64
    assert drawn.min() >= 0.69
    assert drawn.max() <= 1.31
    counts, _ = np.histogram(drawn, bins=3, range=(0.69, 1.31))
    assert counts.min() > len(drawn) / 6  # each third of the range has about a third
    assert {min(i.shape[1:]) for b in training_loader(folder, order, fixed, seed=3) for i in b.images} == {64}


def test_the_loader_leaves_the_global_generators_alone(folder: Dataset) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches_of(folder, 0)
    assert torch.equal(torch.rand(3), expected)


def test_a_loaded_sample_is_the_file_and_its_boxes(folder: Dataset) -> None:
    sample = load_sample(folder, 5)
    assert sample.image.dtype == torch.uint8
    assert tuple(sample.image.shape) == (3, 100, 160)
    assert sample.image[:, 50, 50].tolist() == [100] * 3
    assert (sample.image_id, sample.index, sample.size) == (105, 5, (160, 100))
    assert sample.boxes.tolist() == [[5, 5, 25, 20]]
    assert sample.labels.tolist() == [0]
    assert sample.labels.dtype == torch.int64
    assert sample.ignore.tolist() == [[30, 5, 45, 20]]
    assert load_sample(folder, 4).boxes.shape == (0, 4)


def test_a_missing_file_is_named(folder: Dataset) -> None:
    folder.path(2).unlink()
    with pytest.raises(DataError, match=r"2\.png"):
        load_sample(folder, 2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_evaluation_covers_each_image_once(folder: Dataset, workers: int, batch: int) -> None:
    loader = evaluation_loader(folder, DataConfig(size=40, crop=1.0, flip=1.0, color=0.5, workers=workers), batch)
    groups = cast("list[list[Sample]]", list(loader))
    assert sorted(sample.index for group in groups for sample in group) == list(range(9))
    for group in groups:
        assert len(group) <= batch
        assert len({padded_size([tuple(sample.image.shape[-2:])]) for sample in group}) == 1
        for sample in group:
            assert min(sample.image.shape[-2:]) == 40
            assert sample.image[0, -5, -5] == 20 * sample.index  # not cropped, not recoloured
            assert sample.image[0, 6, 6] == 255  # not flipped


def test_worker_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_count(DataConfig(workers=0)) == 0
    assert worker_count(DataConfig(workers=5)) == 5
    for cores, limit in ((1, 1), (2, 1), (64, 8)):
        available: Any = set(range(cores))
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, available=available: available, raising=False)
        assert 0 < worker_count(DataConfig()) <= limit


def test_time_spent_waiting_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def slow() -> Iterator[Batch]:
        nonlocal now
        for _ in range(3):
            now += 2
            yield Batch([], [], [], [], [])

    batches = Timed(slow())
    for _ in batches:
        now += 50  # does not count
    assert batches.seconds == 6
