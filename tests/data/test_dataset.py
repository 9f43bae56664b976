from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder, FileList
from retinanet.errors import DataError
from retinanet.read_options import ReadOptions

Box = tuple[float, float, float, float]


def build(*boxes: Box, size: tuple[int, int] = (100, 50), area: float | None = None) -> Dataset:
    as_written = ReadOptions(box_form="format", box_frame="format")  # signs have their own tests
    builder = DatasetBuilder("toy", Path("/data"), ("cat", "dog"), options=as_written)
    builder.add_image("a.jpg", *size)
    for i, box in enumerate(boxes):
        builder.add_box(box, 0, f"file:{i}", area=area)
    return builder.build()


def many(images: int, classes: tuple[str, ...] = ("cat", "dog")) -> Dataset:
    """Image ``i`` has ``i % 3`` boxes that start at ``x = i``."""
    builder = DatasetBuilder("toy", Path("/data"), classes)
    for i in range(images):
        builder.add_image(f"{i}.jpg", 1000, 50)
        for k in range(i % 3):
            builder.add_box((i, 0, i + 1 + k, 10), k % len(classes), f"{i}")
    return builder.build()


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((math.nan, 0, 1, 1), "not a number"),
        ((0, 0, math.inf, 1), "not a number"),
        ((5, 5, 5, 9), "zero-area"),
        ((5, 5, 9, 5), "zero-area"),
        ((9, 5, 5, 9), "wrong order"),
        ((5, 9, 9, 5), "wrong order"),
        ((100, 0, 110, 10), "outside the 100×50 image"),
        ((-20, 0, -10, 10), "outside"),
        ((1e-50, 0, 2e-50, 10), "zero-area"),
        ((50, 0, 50 + 1e-9, 10), "zero-area"),
    ],
)
def test_boxes_nothing_can_be_learnt_from_are_dropped(box: Box, kind: str) -> None:
    data = build((1, 1, 2, 2), box)
    assert data.boxes.tolist() == [[1, 1, 2, 2]]
    (problem,) = data.problems
    assert kind in problem.message
    assert problem.where == "file:1"
    assert str(problem).startswith("file:1: ")
    assert problem.action == "dropped"


def test_boxes_over_the_border_are_clipped() -> None:
    data = build((-5, -5, 120, 60), (90, 40, 100.005, 50))
    assert data.boxes.tolist() == [[0, 0, 100, 50], [90, 40, 100, 50]]
    assert [p.action for p in data.problems] == ["clipped"]  # float noise is clipped without a word


@pytest.mark.parametrize(("area", "kept"), [(None, 100), (60, 60), (0, 100), (-1, 100), (math.nan, 100), (1e300, 100)])
def test_area(area: float | None, kept: float) -> None:
    assert build((0, 0, 10, 10), area=area).areas.tolist() == [kept]


def test_area_of_a_clipped_box_shrinks_with_it() -> None:
    assert build((-10, 0, 10, 10)).areas.tolist() == [100]
    assert build((-10, 0, 10, 10), area=80).areas.tolist() == [40]  # of a mask, smaller than the box


coordinate = st.floats(width=32) | st.floats(-20, 120, width=32) | st.integers(-20, 120)


@given(
    st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), max_size=8),
    st.integers(1, 120),
    st.integers(1, 120),
)
def test_kept_boxes_lie_inside_and_none_is_lost_unseen(boxes: list[Box], width: int, height: int) -> None:
    data = build(*boxes, size=(width, height))
    assert len(data.boxes) + sum(p.action == "dropped" for p in data.problems) == len(boxes)
    assert (data.boxes >= 0).all()
    assert (data.boxes <= np.array([width, height, width, height])).all()
    assert (data.boxes[:, 2:] > data.boxes[:, :2]).all()
    assert len(data.labels) == len(data.ignore) == len(data.areas) == len(data.boxes) == data.offsets[-1]
    assert np.isfinite(data.areas).all()
    assert (data.areas > 0).all()


def test_arrays() -> None:
    data = many(4)
    assert len(data) == 4
    assert list(data) == [0, 1, 2, 3]
    assert data.image_ids.tolist() == [1, 2, 3, 4]
    assert data.offsets.tolist() == [0, 0, 1, 3, 3]
    assert data.path(2) == Path("/data/2.jpg")
    assert data.rows(2) == slice(1, 3)
    assert data.category_ids == (1, 2)
    assert data.class_counts() == {"cat": 2, "dog": 1}
    types = [
        a.dtype for a in (data.image_ids, data.sizes, data.offsets, data.boxes, data.labels, data.ignore, data.areas)
    ]
    assert types == [np.int64, np.int32, np.int64, np.float32, np.int32, np.bool_, np.float32]


def test_builder_refuses() -> None:
    with pytest.raises(DataError, match="no images"):
        DatasetBuilder("toy", Path(), ("a",)).build()
    builder = DatasetBuilder("toy", Path(), ("a",))
    builder.add_image("a", 1, 1, image_id=5)
    builder.add_image("b", 1, 1, image_id=5)
    with pytest.raises(DataError, match="image id 5 is used by two"):
        builder.build()


def test_no_box_at_all() -> None:
    data = build()
    assert data.boxes.shape == (0, 4)
    assert data.class_counts() == {"cat": 0, "dog": 0}
    assert len(data.subset([0]).boxes) == 0
    assert len(data.subset([])) == 0


def test_subset() -> None:
    part = many(9).subset([8, 1, 3], name="part")
    assert part.name == "part"
    assert list(part.files) == ["8.jpg", "1.jpg", "3.jpg"]
    assert part.image_ids.tolist() == [9, 2, 4]
    assert part.offsets.tolist() == [0, 2, 3, 3]
    assert part.boxes[:, 0].tolist() == [8, 8, 1]
    assert part.labels.tolist() == [0, 1, 0]


@given(st.integers(2, 60), st.floats(0, 1), st.integers(0, 5))
def test_split_divides_without_loss_and_again_the_same(images: int, fraction: float, seed: int) -> None:
    data = many(images)
    first, second = data.split(fraction, seed)
    assert len(first) >= 1
    assert len(second) >= 1
    assert abs(len(second) - fraction * images) <= 1
    assert sorted([*first.files, *second.files]) == sorted(data.files)
    assert len(first.boxes) + len(second.boxes) == len(data.boxes)
    assert list(data.split(fraction, seed)[1].files) == list(second.files)


def test_split_needs_two_images() -> None:
    with pytest.raises(DataError, match="cannot be divided"):
        many(1).split(0.5, 0)


def test_with_classes() -> None:
    data = many(3)
    assert data.with_classes(("cat", "dog")) is data
    mapped = data.with_classes(("bird", "dog", "cat"))
    assert mapped.classes == ("bird", "dog", "cat")
    assert mapped.category_ids == (3, 2, 1)
    assert mapped.labels.tolist() == [2, 2, 1]
    assert mapped.class_counts() == {"bird": 0, "dog": 1, "cat": 2}
    with pytest.raises(DataError, match="class 'dog' is not one of the model's 1 classes"):
        data.with_classes(("cat",))


def test_with_classes_forgives_what_only_ignore_regions_carry() -> None:
    builder = DatasetBuilder("toy", Path(), ("cat", "dog"))
    builder.add_image("a", 10, 10)
    builder.add_box((0, 0, 5, 5), 1, "x", ignore=True)
    assert builder.build().with_classes(("cat",)).labels.tolist() == [NO_CLASS]
    builder = DatasetBuilder("toy", Path(), ())
    builder.add_image("a", 10, 10)
    builder.add_box((0, 0, 5, 5), 0, "x", ignore=True)
    assert builder.build().with_classes(("cat", "dog")).labels.tolist() == [NO_CLASS]


def test_file_list() -> None:
    names = ["a.jpg", "", "ümläut/猫.png", "bad\udcff.jpg"]
    files = FileList(names)
    assert len(files) == 4
    assert list(files) == names
    assert "a.jpg" in files
    for index in (-1, 4):
        with pytest.raises(IndexError):
            files[index]
    assert list(FileList([])) == []


@given(st.lists(st.text()))
def test_file_list_gives_back_what_it_was_given(names: list[str]) -> None:
    storable = [name for name in names if name.isascii() or not any(0xD800 <= ord(c) < 0xE000 for c in name)]
    assert list(FileList(storable)) == storable


# Crowds


@st.composite
def crowded(draw: st.DrawFn) -> Dataset:
    """Images of 0–4 boxes, each with its own place; some are ignore regions, some of those of no class."""
    builder = DatasetBuilder("toy", Path("/data"), ("cat", "dog"))
    kinds = st.lists(st.sampled_from(["cat", "dog", "cat crowd", "dog crowd", "region"]), max_size=4)
    count = 0
    for image, boxes in enumerate(draw(st.lists(kinds, min_size=1, max_size=6))):
        builder.add_image(f"{image}.jpg", 1000, 1000, image_id=10 * image)
        for kind in boxes:
            label = NO_CLASS if kind == "region" else ("cat", "dog").index(kind.split()[0])
            box = (image, count, image + 10, count + 10)
            builder.add_box(box, label, "", ignore=" " in kind or kind == "region", area=50 + count)
            count += 1
    return builder.build()


def rows_of(data: Dataset) -> list[list[tuple[list[float], int, bool, float]]]:
    """All that is known of each box, image by image."""
    assert len(data.offsets) == len(data) + 1
    assert data.offsets[0] == 0
    assert data.offsets[-1] == len(data.boxes) == len(data.labels) == len(data.ignore) == len(data.areas)
    assert (np.diff(data.offsets) >= 0).all()
    columns = data.boxes.tolist(), data.labels.tolist(), data.ignore.tolist(), data.areas.tolist()
    return [list(zip(*(column[data.rows(i)] for column in columns), strict=True)) for i in data]


@given(crowded())
def test_crowds_may_be_kept_dropped_or_made_objects(data: Dataset) -> None:
    before = rows_of(data)
    assert rows_of(data.with_crowds("ignore")) == before
    dropped = data.with_crowds("drop")
    assert rows_of(dropped) == [[row for row in rows if not row[2]] for rows in before]
    assert not dropped.ignore.any()
    objects = data.with_crowds("object")
    expected = [[(box, label, label == NO_CLASS, area) for box, label, _, area in rows] for rows in before]
    assert rows_of(objects) == expected
    assert (objects.labels[~objects.ignore] != NO_CLASS).all()
    assert sum(objects.class_counts().values()) == int((data.labels != NO_CLASS).sum())
    assert rows_of(data) == before  # which is left as it is
    for changed in (dropped, objects):
        types = [a.dtype for a in (changed.offsets, changed.boxes, changed.labels, changed.ignore, changed.areas)]
        assert types == [np.int64, np.float32, np.int32, np.bool_, np.float32]
        assert (changed.classes, changed.category_ids) == (data.classes, data.category_ids)
        assert changed.image_ids.tolist() == data.image_ids.tolist()
        assert list(changed.files) == list(data.files)
        again = changed.subset(list(changed)[::-1])
        assert rows_of(again) == rows_of(changed)[::-1]


def test_crowds_by_hand() -> None:
    builder = DatasetBuilder("toy", Path(), ("cat", "dog"))
    builder.add_image("a", 100, 100)
    builder.add_box((0, 0, 10, 10), 0, "", ignore=True)
    builder.add_box((1, 0, 10, 10), 1, "")
    builder.add_image("b", 100, 100)
    builder.add_box((2, 0, 10, 10), NO_CLASS, "", ignore=True)
    builder.add_image("c", 100, 100)
    builder.add_box((3, 0, 10, 10), 1, "", ignore=True)
    builder.add_box((4, 0, 10, 10), 0, "")
    data = builder.build()
    assert data.with_crowds("drop").boxes[:, 0].tolist() == [1, 4]
    assert data.with_crowds("drop").offsets.tolist() == [0, 1, 1, 2]
    assert data.with_crowds("object").ignore.tolist() == [False, False, True, False, False]
    assert data.with_crowds("object").class_counts() == {"cat": 2, "dog": 2}
    assert data.class_counts() == {"cat": 1, "dog": 1}
