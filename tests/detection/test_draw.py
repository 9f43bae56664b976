from __future__ import annotations

import numpy as np

from retinanet.detection.draw import closeup


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
