"""Readings of all boxes of a dataset together. Each test has both sides: a sign, and an ordinary dataset without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinanet.data.box_meaning import FRACTIONS, PIXELS, Form, Frame, Meaning
from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.errors import ConfigError, DataError
from retinanet.read_options import ReadOptions

Floats = npt.NDArray[np.float64]
SIZE = (320, 240)
COCO, VOC, YOLO = Meaning("xywh"), Meaning("xyxy"), Meaning("cxcywh", FRACTIONS)


def corners(images: int = 8, boxes: int = 3, seed: int = 0, size: tuple[int, int] = SIZE) -> Floats:
    """Whole corners of boxes spread over images, ``(images · boxes, 4)``."""
    rng = np.random.default_rng(seed)
    sides = rng.integers(10, 60, (images * boxes, 2))
    first = (rng.random((images * boxes, 2)) * (np.array(size) - sides)).round()
    return np.concatenate([first, first + sides], axis=1)


def numbers_as(form: Form, boxes: Floats) -> Floats:
    """The four numbers of boxes in another form."""
    return Meaning(form).numbers(boxes)


def read(
    numbers: Floats,
    declared: Meaning,
    options: ReadOptions | None = None,
    images: int = 8,
    size: tuple[int, int] = SIZE,
    tolerant: bool = False,
) -> Dataset:
    """Read the numbers as a reader of a format does that declares a meaning."""
    builder = DatasetBuilder("toy", Path("/nowhere"), ("cat",), None, tolerant, options or ReadOptions(), declared)
    given = declared.corners(numbers) * (np.array([*size, *size]) if declared.frame == FRACTIONS else 1)
    per_image = len(numbers) // images
    for i in range(images):
        builder.add_image(f"{i}.jpg", *size)
        for k, box in enumerate(given[i * per_image : (i + 1) * per_image].tolist()):
            builder.add_box(tuple(box), 0, f"{i}:{k}")
    return builder.build()


def codes(data: Dataset) -> list[str]:
    return [problem.code for problem in data.problems if problem.kind.sign]


@pytest.mark.parametrize("declared", [COCO, VOC, YOLO])
def test_ordinary_boxes_are_read_as_the_format_says(declared: Meaning) -> None:
    scale = np.array([*SIZE, *SIZE]) if declared.frame == FRACTIONS else 1
    for seed in range(20):
        boxes = corners(seed=seed)
        data = read(declared.numbers(boxes / scale), declared)
        np.testing.assert_allclose(data.boxes, boxes, atol=1e-3)
        assert codes(data) == []


FORM_CODES = {"xyxy": "boxes-as-corners", "xywh": "boxes-as-sides", "cxcywh": "boxes-as-centers"}


@pytest.mark.parametrize("declared", [COCO, VOC])
@pytest.mark.parametrize("actual", ["xyxy", "xywh", "cxcywh"])
def test_another_form_is_recognized(declared: Meaning, actual: Form) -> None:
    if actual == declared.form:
        return
    boxes = corners(images=8, boxes=5)
    data = read(numbers_as(actual, boxes), declared)
    assert codes(data) == [FORM_CODES[actual]]
    np.testing.assert_allclose(data.boxes, boxes, atol=1e-3)
    assert "--data.box-form format" in data.problems[0].message


@pytest.mark.parametrize("declared", [COCO, VOC])
def test_corners_with_y_first_are_recognized(declared: Meaning) -> None:
    boxes = corners(images=8, boxes=5)
    numbers = numbers_as("yxyx", boxes)
    data = read(numbers, declared)
    assert codes(data) == ["boxes-with-y-first"]
    np.testing.assert_allclose(data.boxes, boxes, atol=1e-3)
    asked = read(numbers, declared, ReadOptions(box_form="yxyx"))
    np.testing.assert_allclose(asked.boxes, boxes, atol=1e-3)


def test_in_square_images_x_comes_first() -> None:
    boxes = corners(images=8, boxes=5, size=(240, 240))
    data = read(numbers_as("xyxy", boxes), COCO, size=(240, 240))
    assert codes(data) == ["boxes-as-corners"]
    np.testing.assert_allclose(data.boxes, boxes, atol=1e-3)


@pytest.mark.parametrize("declared", [COCO, VOC])
def test_fractions_where_pixels_are_meant_are_recognized(declared: Meaning) -> None:
    boxes = corners()
    fractions = (boxes / np.array([*SIZE, *SIZE])).round(6)
    data = read(declared.numbers(fractions), declared)
    assert codes(data) == ["boxes-as-fractions"]
    np.testing.assert_allclose(data.boxes, boxes, atol=1e-2)
    both = read(numbers_as("cxcywh", fractions), declared)
    assert codes(both) == [FORM_CODES["cxcywh"], "boxes-as-fractions"]
    np.testing.assert_allclose(both.boxes, boxes, atol=1e-2)


@pytest.mark.parametrize("actual", ["cxcywh", "xyxy", "xywh"])
def test_pixels_where_fractions_are_meant_are_recognized(actual: Form) -> None:
    boxes = corners(images=8, boxes=5)
    data = read(numbers_as(actual, boxes), YOLO)
    assert codes(data)[-1] == "boxes-as-pixels"
    np.testing.assert_allclose(data.boxes, boxes, atol=1e-2)


@pytest.mark.parametrize("side", [100, 1000])
@pytest.mark.parametrize("declared", [COCO, YOLO])
def test_percent_and_thousandths_are_recognized(side: int, declared: Meaning) -> None:
    size = (2400, 2000)
    boxes = corners(size=size, images=8, boxes=12)
    numbers = declared.numbers(boxes / np.array([*size, *size]) * side)
    data = read(numbers, declared, size=size)
    assert codes(data) == ["boxes-as-parts"]
    np.testing.assert_allclose(data.boxes, boxes, rtol=1e-4, atol=1e-2)


def test_thousandths_of_smaller_images_reach_beyond_them() -> None:
    boxes = corners(images=8, boxes=12)
    data = read(COCO.numbers(boxes / np.array([*SIZE, *SIZE]) * 1000), COCO)
    assert codes(data) == ["boxes-as-parts"]
    np.testing.assert_allclose(data.boxes, boxes, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("declared", [COCO, VOC])
def test_boxes_of_larger_images_are_refused_with_the_flag(declared: Meaning, factor: int) -> None:
    numbers = declared.numbers(corners() * factor)
    with pytest.raises(DataError, match=f"reach far beyond their images.*--data.box-frame {factor}x"):
        read(numbers, declared)
    tolerant = read(numbers, declared, tolerant=True)
    assert "boxes-of-other-size" in codes(tolerant)
    for frame in (f"{factor}x", f"{factor * SIZE[0]}x{factor * SIZE[1]}"):
        data = read(numbers, declared, ReadOptions(box_frame=frame))
        np.testing.assert_allclose(data.boxes, corners(), atol=1e-3)


def test_boxes_of_smaller_images_get_a_warning() -> None:
    numbers = COCO.numbers(corners(images=12, boxes=3) / 2)
    data = read(numbers, COCO, images=12)
    assert codes(data) == ["boxes-in-corner"]
    assert "0.5x" in data.problems[0].message
    assert codes(read(numbers, COCO, ReadOptions(box_frame="pixels"), images=12)) == []
    np.testing.assert_allclose(
        read(numbers, COCO, ReadOptions(box_frame="0.5x"), images=12).boxes, corners(12), atol=1e-3
    )


def test_a_given_form_and_frame_are_used_without_a_search() -> None:
    boxes = corners()
    data = read(numbers_as("xyxy", boxes), COCO, ReadOptions(box_form="xyxy"))
    np.testing.assert_allclose(data.boxes, boxes)
    assert codes(data) == []
    kept = read(numbers_as("xyxy", boxes), COCO, ReadOptions(box_form="format", box_frame="format"))
    assert codes(kept) == []
    assert any(problem.code == "clipped-box" for problem in kept.problems)


def test_forms_that_fit_equally_are_refused_with_the_flag() -> None:
    boxes = corners(images=8, boxes=2, size=(150, 150)) + 80  # neither near an edge nor small: both readings fit
    with pytest.raises(DataError, match=r"--data\.box-form xywh.* or .*--data\.box-form cxcywh.*; choose one"):
        read(numbers_as("xywh", boxes), VOC)


def broken(kind: str) -> Callable[[Floats, np.random.Generator], Floats]:
    def swapped(boxes: Floats, rng: np.random.Generator) -> Floats:
        return boxes[:, [2, 3, 0, 1]]

    def outside(boxes: Floats, rng: np.random.Generator) -> Floats:
        return np.add(boxes, np.array([*SIZE, *SIZE], dtype=np.float64))

    def negative(boxes: Floats, rng: np.random.Generator) -> Floats:
        return np.negative(boxes)

    def huge(boxes: Floats, rng: np.random.Generator) -> Floats:
        return boxes * rng.integers(5, 1000)

    return {"swapped": swapped, "outside": outside, "negative": negative, "huge": huge}[kind]


@pytest.mark.parametrize("kind", ["swapped", "outside", "negative", "huge"])
@pytest.mark.parametrize("declared", [COCO, VOC, YOLO])
def test_single_errors_are_no_sign(declared: Meaning, kind: str) -> None:
    """Up to a fifth of the boxes may be wrong."""
    rng = np.random.default_rng(3)
    scale = np.array([*SIZE, *SIZE]) if declared.frame == FRACTIONS else 1
    for seed in range(10):
        boxes = corners(seed=seed)
        rows = rng.choice(len(boxes), len(boxes) // 5, replace=False)
        boxes[rows] = broken(kind)(boxes[rows], rng)
        assert codes(read(declared.numbers(boxes / scale), declared)) == []


@pytest.mark.parametrize("kind", ["swapped", "outside", "negative"])
def test_a_dataset_of_mostly_broken_boxes_is_refused_with_the_flag(kind: str) -> None:
    rng = np.random.default_rng(3)
    boxes = corners()
    boxes[:16] = broken(kind)(boxes[:16], rng)
    with pytest.raises(DataError, match=r"16 of 24 boxes|reach far beyond"):
        read(boxes, VOC)
    kept = read(boxes, VOC, ReadOptions(box_frame="format"))
    assert codes(kept) == []
    assert len(kept.boxes) == 8


def test_few_boxes_tell_nothing() -> None:
    boxes = corners(images=1, boxes=2)
    assert codes(read(numbers_as("xyxy", boxes), COCO, images=1)) == []


def test_boxes_of_whole_images_are_ordinary() -> None:
    boxes = np.tile(np.array([[0.0, 0, *SIZE]]), (24, 1))
    for declared in (COCO, VOC):
        assert codes(read(declared.numbers(boxes), declared)) == []


def test_small_objects_are_not_fractions() -> None:
    boxes = np.array([[x, 0, x + 1, 1] for x in (0.0, 0, 0, 0, 0, 0, 0, 0)])
    assert codes(read(VOC.numbers(boxes), VOC)) == []


def test_boxes_of_outlines_are_corners_in_every_format() -> None:
    builder = DatasetBuilder("toy", Path("/nowhere"), ("cat",), meaning=COCO)
    boxes = corners()
    for i in range(8):
        builder.add_image(f"{i}.jpg", *SIZE)
        for box in boxes[3 * i : 3 * i + 2].tolist():  # corners read as position and sides
            builder.add_box((box[0], box[1], box[0] + box[2], box[1] + box[3]), 0, "")
        builder.add_box(tuple(boxes[3 * i + 2].tolist()), 0, "", derived=True)
    data = builder.build()
    assert codes(data) == ["boxes-as-corners"]
    np.testing.assert_allclose(data.boxes, boxes)


def test_outlines_in_pixels_where_fractions_are_meant() -> None:
    builder = DatasetBuilder("toy", Path("/nowhere"), ("cat",), meaning=YOLO)
    boxes = corners()
    for i in range(8):
        builder.add_image(f"{i}.jpg", *SIZE)
        for x1, y1, x2, y2 in boxes[3 * i : 3 * i + 3].tolist():
            builder.add_box((x1 * SIZE[0], y1 * SIZE[1], x2 * SIZE[0], y2 * SIZE[1]), 0, "", derived=True)
    data = builder.build()
    assert codes(data) == ["boxes-as-pixels"]
    np.testing.assert_allclose(data.boxes, boxes, atol=1e-3)


@given(
    st.sampled_from(["xyxy", "xywh", "cxcywh"]),
    st.sampled_from([PIXELS, FRACTIONS, Frame((640.0, 480.0)), Frame(None, 2.0)]),
    st.lists(st.floats(0, 1000, width=32), min_size=4, max_size=4),
)
def test_numbers_are_the_inverse_of_corners(form: Form, frame: Frame, values: list[float]) -> None:
    meaning = Meaning(form, frame)
    numbers = np.array([values])
    np.testing.assert_allclose(meaning.numbers(meaning.corners(numbers)), numbers, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("frame", ["", "x", "0x", "640", "640x0", "-2x", "640x480x3", "big", "1e3x", "x2"])
def test_an_impossible_frame_is_refused(frame: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.box-frame is .*; use auto"):
        ReadOptions(box_frame=frame)


@pytest.mark.parametrize("frame", ["auto", "format", "pixels", "1x1", "640x480", "2x", "0.5x", "1.5x"])
def test_possible_frames_are_accepted(frame: str) -> None:
    assert ReadOptions(box_frame=frame).box_frame == frame
