"""The container for detections: selecting, joining and rescaling."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from retinanet.detections import Detections

FIRST = Detections.of_one_image(
    np.array([[0, 0, 10, 20], [5, 5, 8, 9]], dtype=np.float32), np.array([0.9, 0.4], np.float32), np.array([1, 0]), 3
)
SECOND = Detections.of_one_image(np.array([[1, 2, 3, 4]], np.float32), np.array([0.7], np.float32), np.array([2]), 1)


def test_joined_in_order_of_the_images_and_of_the_scores() -> None:
    every = Detections.concatenate([FIRST, SECOND, Detections.empty()])
    assert every.images.tolist() == [1, 3, 3]
    assert every.scores.tolist() == np.array([0.7, 0.9, 0.4], np.float32).tolist()
    assert len(every.of_image(2)) == 0
    for part, image in ((SECOND, 1), (FIRST, 3)):
        found = every.of_image(image)
        assert np.array_equal(found.boxes, part.boxes)
        assert np.array_equal(found.labels, part.labels)
    assert len(Detections.concatenate([])) == 0


def test_selected_by_mask_and_by_slice() -> None:
    assert FIRST.take(FIRST.scores > 0.5).labels.tolist() == [1]
    assert FIRST.take(slice(1, None)).boxes.tolist() == [[5, 5, 8, 9]]
    assert FIRST.take(slice(0)).boxes.shape == (0, 4)


def test_rescaled_by_height_and_width() -> None:
    found = FIRST.rescaled((100, 50), (200, 25))
    assert found.boxes.tolist() == [[0, 0, 5, 40], [2.5, 10, 4, 18]]
    assert found.boxes.dtype == np.float32
    assert np.array_equal(found.images, FIRST.images)


def test_it_needs_no_torch() -> None:
    code = "import sys, retinanet.detections; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
