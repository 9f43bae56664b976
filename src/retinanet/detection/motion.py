"""A Kalman filter with constant velocity for many boxes at once, as SORT and ByteTrack use it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Standard deviations, as fractions of the box height: of a measured position, and of the change of the velocity in one
# frame. They are the values of DeepSORT, which ByteTrack uses. The aspect ratio has constants instead.
_POSITION, _VELOCITY = 1 / 20, 1 / 160
_ASPECT, _ASPECT_VELOCITY, _ASPECT_MEASURED = 1e-2, 1e-5, 1e-1

# Heights and aspect ratios stay above this number, so that a box never turns inside out.
_LEAST = 1e-3


@dataclass(frozen=True)
class Motion:
    """The state of T boxes: center x, center y, aspect ratio (width / height) and height, and their velocities.

    Noise is independent in the four coordinates, so the 8 × 8 covariance of the state consists of four 2 × 2 blocks,
    one of each coordinate and its velocity.

    Attributes:
        position: float64 ``(T, 4)``.
        velocity: float64 ``(T, 4)``, change of ``position`` per frame.
        position_variance: float64 ``(T, 4)``.
        covariance: float64 ``(T, 4)``, of each coordinate with its velocity.
        velocity_variance: float64 ``(T, 4)``.
    """

    position: Floats
    velocity: Floats
    position_variance: Floats
    covariance: Floats
    velocity_variance: Floats

    @classmethod
    def start(cls, boxes: Floats) -> Self:
        """Return boxes ``(T, 4)`` ``xyxy`` that were seen once: their velocity is 0 and very uncertain."""
        position = to_position(boxes)
        zeros = np.zeros_like(position)
        at = _scales(position, 2 * _POSITION, _ASPECT)
        speed = _scales(position, 10 * _VELOCITY, _ASPECT_VELOCITY)
        return cls(position, zeros, at**2, zeros, speed**2)

    @property
    def boxes(self) -> Floats:
        """``xyxy`` boxes ``(T, 4)``."""
        height = np.maximum(self.position[:, 3], _LEAST)
        half = np.stack([np.maximum(self.position[:, 2], _LEAST) * height, height], axis=1) / 2
        return np.concatenate([self.position[:, :2] - half, self.position[:, :2] + half], axis=1)

    def __len__(self) -> int:
        return len(self.position)

    def take(self, rows: Ints | Bools) -> Self:
        """Select boxes by position or mask."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    def joined(self, other: Self) -> Self:
        """Append the boxes of ``other``."""
        own = (field.name for field in fields(self))
        return type(self)(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in own))

    def predicted(self, frames: float, unseen: Bools) -> Self:
        """Return the state after a time.

        Args:
            frames: the time, in frames; above 0.
            unseen: ``(T,)``, boxes that were not seen in the last frame. Their height stays constant, because a box
                that leaves the image or is hidden seems to shrink just before that.
        """
        velocity = self.velocity.copy()
        velocity[unseen, 3] = 0
        noise = _scales(self.position, _POSITION, _ASPECT) ** 2 * frames
        speed_noise = _scales(self.position, _VELOCITY, _ASPECT_VELOCITY) ** 2 * frames
        spread = 2 * frames * self.covariance + frames**2 * self.velocity_variance
        return type(self)(
            self.position + frames * velocity,
            velocity,
            self.position_variance + spread + noise,
            self.covariance + frames * self.velocity_variance,
            self.velocity_variance + speed_noise,
        )

    def corrected(self, boxes: Floats) -> Self:
        """Return the state after each box was seen at its place in ``boxes`` ``(T, 4)`` ``xyxy``."""
        measured_variance = _scales(self.position, _POSITION, _ASPECT_MEASURED) ** 2
        total = self.position_variance + measured_variance
        gain, velocity_gain = self.position_variance / total, self.covariance / total
        surprise = to_position(boxes) - self.position
        return type(self)(
            self.position + gain * surprise,
            self.velocity + velocity_gain * surprise,
            self.position_variance * (1 - gain),
            self.covariance * (1 - gain),
            self.velocity_variance - velocity_gain * self.covariance,
        )


def to_position(boxes: Floats) -> Floats:
    """Convert ``xyxy`` boxes ``(T, 4)`` to center x, center y, aspect ratio and height."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], _LEAST)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.concatenate([center, sides[:, :1] / sides[:, 1:], sides[:, 1:]], axis=1)


def _scales(position: Floats, of_height: float, of_aspect: float) -> Floats:
    """Standard deviation of each coordinate ``(T, 4)``: a fraction of the height, and a constant for the aspect."""
    scales = np.repeat(of_height * np.maximum(position[:, 3:], _LEAST), 4, axis=1)
    scales[:, 2] = of_aspect
    return scales
