"""The Kalman filter of boxes, compared with the textbook's matrices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from retinanet.detection.motion import Motion

Floats = npt.NDArray[np.float64]


class Textbook:
    """A Kalman filter of one box with 8 × 8 matrices and the noise of DeepSORT."""

    def __init__(self, box: Floats) -> None:
        measured = self.measured(box)
        h = measured[3]
        self.x = np.concatenate([measured, np.zeros(4)])
        deviations = [h / 10, h / 10, 1e-2, h / 10, h / 16, h / 16, 1e-5, h / 16]
        self.P = np.diag(np.square(deviations))

    @staticmethod
    def measured(box: Floats) -> Floats:
        x1, y1, x2, y2 = box
        return np.array([(x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / (y2 - y1), y2 - y1])

    def predict(self, dt: float, unseen: bool = False) -> None:
        h = self.x[3]
        if unseen:
            self.x[7] = 0
        F = np.eye(8) + dt * np.eye(8, k=4)
        deviations = [h / 20, h / 20, 1e-2, h / 20, h / 160, h / 160, 1e-5, h / 160]
        self.x, self.P = F @ self.x, F @ self.P @ F.T + dt * np.diag(np.square(deviations))

    def update(self, box: Floats) -> None:
        h = self.x[3]
        H = np.eye(4, 8)
        R = np.diag(np.square([h / 20, h / 20, 1e-1, h / 20]))
        K = self.P @ H.T @ np.linalg.inv(H @ self.P @ H.T + R)
        self.x = self.x + K @ (self.measured(box) - H @ self.x)
        self.P = (np.eye(8) - K @ H) @ self.P

    @property
    def box(self) -> Floats:
        x, y, a, h = self.x[:4]
        return np.array([x - a * h / 2, y - h / 2, x + a * h / 2, y + h / 2])


@pytest.mark.parametrize("seed", range(5))
def test_it_equals_the_textbook(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 100, (3, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 50, (3, 2))], axis=1)
    motion, books = Motion.start(boxes), [Textbook(box) for box in boxes]
    for _ in range(20):
        dt, unseen = float(rng.uniform(0.3, 3)), rng.uniform(size=3) < 0.3
        motion = motion.predicted(dt, unseen)
        boxes = boxes + rng.normal(1, 0.5, boxes.shape)
        for book, flag in zip(books, unseen, strict=True):
            book.predict(dt, bool(flag))
        np.testing.assert_allclose(motion.boxes, [book.box for book in books], rtol=1e-9)
        motion = motion.corrected(boxes)
        for book, box in zip(books, boxes, strict=True):
            book.update(box)
        np.testing.assert_allclose(motion.boxes, [book.box for book in books], rtol=1e-9)
        np.testing.assert_allclose(motion.velocity, [book.x[4:] for book in books], rtol=1e-7, atol=1e-12)
        variances = [np.diag(book.P) for book in books]
        np.testing.assert_allclose(np.hstack([motion.position_variance, motion.velocity_variance]), variances)


def test_the_velocity_is_learnt_also_with_unequal_steps() -> None:
    """A box that moves by 3 pixels a frame is predicted to within a tenth of a pixel, after any time."""
    rng = np.random.default_rng(0)
    box, time = np.array([[10.0, 20.0, 40.0, 60.0]]), 0.0
    motion = Motion.start(box)
    for step in rng.uniform(0.5, 2, 40):
        time += step
        motion = motion.predicted(step, np.zeros(1, dtype=np.bool_)).corrected(box + 3 * time)
    ahead = motion.predicted(4, np.ones(1, dtype=np.bool_))
    np.testing.assert_allclose(ahead.boxes, box + 3 * (time + 4), atol=0.1)


def test_boxes_without_area_stay_finite() -> None:
    motion = Motion.start(np.array([[5.0, 5.0, 5.0, 5.0]]))
    for _ in range(10):
        motion = motion.predicted(1, np.zeros(1, dtype=np.bool_)).corrected(np.array([[5.0, 5.0, 5.0, 5.0]]))
    assert np.isfinite(motion.boxes).all()
    assert (motion.boxes[:, 2:] > motion.boxes[:, :2]).all()
