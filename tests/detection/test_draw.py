from __future__ import annotations

import numpy as np
import numpy.typing as npt

from retinanet.detection.draw import closeup, draw, draw_boxes, line_width
from retinanet.detections import Detections


def test_a_closeup_shows_the_boxes_with_what_is_around_them() -> None:
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    image[40:60, 100:140] = (0, 0, 255)
    shown = closeup(image, [(100, 40, 140, 60)], ["red"], longest=160)
    # 20 pixels, half of the longer side, around it: 81 × 61 pixels, scaled to 160 × 120
    assert shown.shape == (120, 160, 3)
    factor = 160 / 81
    inside = shown[round(30 * factor), round(40 * factor)]
    assert inside.tolist() == [0, 0, 255]
    red = (shown == (255, 0, 0)).all(axis=2)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert abs(columns[0] - 20 * factor) <= 1
    assert abs(columns[-1] - 60 * factor) <= 2
    assert abs(rows[0] - 20 * factor) <= 1
    assert abs(rows[-1] - 40 * factor) <= 2


def test_a_closeup_of_boxes_beside_the_image_is_the_whole_image() -> None:
    image = np.zeros((50, 100, 3), dtype=np.uint8)
    assert closeup(image, [(500, 500, 540, 520)], ["red"], longest=50).shape == (25, 50, 3)
    assert closeup(image, [(10, 10, 20, 20)], ["red"], longest=200, closely=False).shape == (100, 200, 3)


def crowd(count: int, side: int, box: int) -> Detections:
    """Boxes of ``box`` pixels in a square grid that fills an image of ``side`` pixels."""
    across = int(np.ceil(count**0.5))
    corner = (np.stack(np.divmod(np.arange(count), across), axis=1) + 0.5) * side / across - box / 2
    boxes = np.concatenate([corner, corner + box], axis=1).astype(np.float32)
    return Detections.of_one_image(boxes, np.full(count, 0.9, np.float32), np.zeros(count, np.int64))


def drawn_fraction(count: int, side: int, box: int) -> float:
    image = np.zeros((side, side, 3), np.uint8)
    shown = draw(image, crowd(count, side, box), ["washer"])
    return float((shown != image).any(axis=2).mean())


def test_lines_are_thin_and_labels_are_left_out_where_they_would_cover_everything() -> None:
    assert drawn_fraction(1600, 1600, 20) < 0.2  # lines of three pixels cover 15%
    few = drawn_fraction(4, 1600, 20)
    assert few > 3 * 4 * (20**2 - 16**2) / 1600**2  # with labels


def test_lines_of_many_boxes_that_overlap_are_one_pixel_wide() -> None:
    boxes = np.tile(np.array([[100.0, 100, 140, 140]]), (500, 1))
    assert line_width(2.2, boxes[:1], 640 * 640) == 2
    assert line_width(2.2, boxes, 640 * 640) == 1


def test_ground_truth_of_small_objects_has_thin_lines() -> None:
    image = np.zeros((1500, 1500, 3), np.uint8)
    shown = draw_boxes(image, crowd(900, 1500, 12).boxes)
    assert (shown > 0).any(axis=2).sum() <= 900 * (14**2 - 10**2)
    assert (draw_boxes(image, [(100, 100, 900, 900)]) > 0).any(axis=2).sum() > 5 * 4 * 800


def labels_of(image_side: int, boxes: list[list[float]]) -> npt.NDArray[np.bool_]:
    """Where labels are drawn: the pixels that differ from a drawing of the same boxes with lines only."""
    image = np.zeros((image_side, image_side, 3), np.uint8)
    count = len(boxes)
    array = np.array(boxes, dtype=np.float32)
    found = Detections.of_one_image(array, np.full(count, 0.9, np.float32), np.zeros(count, np.int64))
    shown = (draw(image, found, ["cell"]) == (86, 180, 233)).all(axis=2)
    lines = draw_boxes(image, array, "#56B4E9", line_width(image_side / 300, array, image_side**2)).any(axis=2)
    labels: npt.NDArray[np.bool_] = shown & ~lines
    return labels


def test_labels_are_above_their_box_and_inside_the_image() -> None:
    rows, columns = np.nonzero(labels_of(400, [[100, 100, 200, 200]]))
    assert rows.min() > 80
    assert rows.max() < 100
    assert 100 <= columns.min() < columns.max() < 200
    for box in ([0.0, 0, 399, 399], [380.0, 380, 400, 400], [390.0, 0, 400, 400]):
        assert labels_of(400, [box]).sum() > 100


def test_labels_of_equal_boxes_do_not_cover_each_other() -> None:
    one = labels_of(400, [[100, 100, 200, 200]]).sum()
    assert labels_of(400, [[100, 100, 200, 200]] * 3).sum() > 2.5 * one


def test_each_class_has_its_color() -> None:
    image = np.zeros((400, 400, 3), np.uint8)
    boxes = np.array([[10, 50, 90, 150], [210, 250, 290, 350]], dtype=np.float32)
    shown = draw(image, Detections.of_one_image(boxes, np.ones(2, np.float32), np.array([0, 11])), ["cell"] * 12)
    assert shown[149, 50].tolist() == [0x56, 0xB4, 0xE9]
    assert shown[349, 250].tolist() == [0xE6, 0x9F, 0x00]
