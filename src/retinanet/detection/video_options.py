"""Settings of detection in videos. Imports no PyAV."""

from __future__ import annotations

from dataclasses import dataclass, field

from retinanet.detection.tile_plan import Tiling
from retinanet.errors import ConfigError

# Frames per second of a sequence of images, unless another rate is given.
FRAME_RATE = 25.0


@dataclass(frozen=True)
class ConnectionLimits:
    """Time limits of streams.

    Attributes:
        open_seconds: longest time until a stream answers.
        read_seconds: longest time without data, after which a connection counts as dropped.
        attempts: number of attempts to connect again after a connection dropped.
        first_delay: seconds before the first of these attempts; each further delay is twice as long.
    """

    open_seconds: float = 10.0
    read_seconds: float = 10.0
    attempts: int = 5
    first_delay: float = 0.5


@dataclass(frozen=True)
class VideoOptions:
    """How objects in videos are detected.

    Attributes:
        score: lowest score reported; with ``track``, lowest score of a detection that starts a track.
        max_detections: largest number of detections per frame; unset: the number that the weights store.
        tiling: how frames are divided into tiles; unset: each frame is scaled as a whole.
        batch: frames, or tiles of a frame, that go through the network together.
        track: give objects ids that stay the same from frame to frame.
        draw: write a video with the boxes drawn.
        frame_rate: frames per second of image sequences.
        limits: time limits of streams.

    Raises:
        ConfigError: a value is out of range.
    """

    score: float = 0.3
    max_detections: int | None = None
    tiling: Tiling | None = None
    batch: int = 8
    track: bool = False
    draw: bool = True
    frame_rate: float = FRAME_RATE
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)

    def __post_init__(self) -> None:
        if not 0 <= self.score < 1 or self.batch < 1:
            raise ConfigError(f"score is {self.score} and batch {self.batch}; give 0 ≤ score < 1 and batch ≥ 1")
        if self.track and self.score == 0:
            raise ConfigError("score is 0; tracking needs a score above 0, at which tracks start")
        if not 0 < self.frame_rate <= 1000:
            raise ConfigError(f"--frame-rate is {self.frame_rate}; give frames per second, above 0 and at most 1000")
