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


def test_the_best_of_each_image_stay_in_their_order_and_the_others_are_told() -> None:
    images, scores = np.array([0, 0, 0, 2, 2, 5]), np.array([0.3, 0.9, 0.3, 0.5, 0.6, 0.1])
    every = Detections(images, np.zeros((6, 4)), scores, np.arange(6))
    assert every.best(None) is every
    two = every.best(2)
    assert two.labels.tolist() == [0, 1, 3, 4, 5]  # of equal scores, the first stays
    assert two.limited.tolist() == [0]
    assert every.best(1).limited.tolist() == [0, 2]
    assert every.best(10**9).limited.tolist() == []
    assert len(Detections.empty().best(1)) == 0


def test_images_at_a_limit_are_joined_moved_and_selected() -> None:
    one = Detections(np.array([0]), np.zeros((1, 4)), np.array([0.5]), np.array([0]), np.array([0]))
    every = Detections.concatenate([one.moved(4), SECOND, one.moved(2)])
    assert every.images.tolist() == [1, 2, 4]
    assert every.limited.tolist() == [2, 4]
    assert every.of_image(4).limited.tolist() == [4]
    assert every.of_image(1).limited.tolist() == []
    assert every.take(slice(0)).rescaled((1, 1), (2, 2)).limited.tolist() == [2, 4]


def test_it_needs_no_torch() -> None:
    code = "import sys, retinanet.detections; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
