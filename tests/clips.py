"""Generated videos whose frames carry their number, and a detector that knows the objects of each frame."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt

from retinanet.config import Config
from retinanet.detection.detector import Detector, Pixels
from retinanet.detections import Detections
from retinanet.model_info import ModelInfo
from tracks import Scene

Image = npt.NDArray[np.uint8]

CLASSES = ("car", "person")
TIME_BASE = Fraction(1, 90_000)

# The number of a frame is drawn as bits: blocks of this many pixels along the top, white for 1.
BLOCK, BITS = 16, 10
_COLORS = np.array([[200, 60, 40], [40, 90, 200]], dtype=np.uint8)


def drawn(number: int, size: tuple[int, int] = (240, 320), boxes: Sequence[Sequence[float]] = ()) -> Image:
    """A gray frame with its number and filled boxes."""
    image = np.full((*size, 3), 120, dtype=np.uint8)
    for k, (x1, y1, x2, y2) in enumerate(np.round(np.reshape(boxes, (-1, 4))).astype(int).tolist()):
        image[max(0, y1) : y2, max(0, x1) : x2] = _COLORS[k % 2]
    for bit in range(BITS):
        image[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (number >> bit & 1)
    return image


def number_of(image: Pixels) -> int:
    """Read the number of a frame; 0 if it is too small to hold one."""
    middle = BLOCK // 2
    if image.shape[1] < BITS * BLOCK:
        return 0
    return sum(1 << bit for bit in range(BITS) if image[middle, bit * BLOCK + middle].mean() > 127)


def drawn_scene(truth: Scene, size: tuple[int, int] = (480, 480)) -> list[Image]:
    return [drawn(number, size, boxes.tolist()) for number, boxes in enumerate(truth.boxes)]


class KnowingDetector(Detector):
    """Reads the number of a frame and returns the detections of this frame. It counts the images of each call."""

    def __init__(self, found: Sequence[Detections]) -> None:
        super().__init__(ModelInfo(CLASSES, Config(), (0.0,) * 3, (1.0,) * 3))
        self.found = found
        self.batches: list[int] = []

    def scaled_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def resize(self, image: Image, shape: tuple[int, int]) -> Pixels:
        return image

    def detect_scaled(
        self, images: Sequence[Pixels], score: float | None = None, max_detections: int | None = None
    ) -> list[Detections]:
        self.batches.append(len(images))
        results = [self.found[number_of(image) % len(self.found)] for image in images]
        return [each.take(each.scores >= (score or 0.0)) for each in results]


def one_box(score: float = 0.9, box: Sequence[float] = (50.0, 60.0, 90.0, 100.0)) -> Detections:
    return Detections.of_one_image(
        np.array([box], dtype=np.float32), np.array([score], dtype=np.float32), np.zeros(1, dtype=np.int64)
    )


def write_clip(
    path: Path | Any,
    images: Sequence[Image],
    pts: Sequence[int] | None = None,
    *,
    rate: int = 30,
    rotation: int = 0,
    audio: str = "",
    codec: str = "libx264",
    format: str | None = None,
    key_every: int = 12,
) -> None:
    """Write frames at time stamps in 1/90,000 s; ``audio`` is the codec of two seconds of a tone."""
    pts = [k * 90_000 // rate for k in range(len(images))] if pts is None else pts
    options = {"movflags": "faststart"} if str(path).endswith((".mp4", ".mov")) else {}
    with av.open(path if not isinstance(path, Path) else str(path), "w", format=format, options=options) as container:
        video: Any = container.add_stream(codec, rate=rate, options={"bf": "0", "g": str(key_every), "crf": "12"})
        video.height, video.width = images[0].shape[:2]
        video.pix_fmt = "yuv420p"
        video.time_base = video.codec_context.time_base = TIME_BASE if codec == "libx264" else Fraction(1, rate)
        if rotation:
            video.set_display_rotation(rotation)
        sound: Any = container.add_stream(audio, rate=44_100, layout="mono") if audio else None
        for image, at in zip(images, pts, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = int(at * TIME_BASE / video.codec_context.time_base)
            frame.time_base = video.codec_context.time_base
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio:
            _write_tone(container, sound)


def _write_tone(container: Any, stream: Any) -> None:
    tone = (8000 * np.sin(np.arange(88_200) * 0.06)).astype(np.int16)[None]
    frame = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
    frame.sample_rate, frame.pts = 44_100, 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


class Clip(NamedTuple):
    """Facts about a video file; times are in seconds."""

    times: list[Fraction]
    numbers: list[int]
    duration: Fraction
    rate: Fraction
    size: tuple[int, int]
    audio: list[tuple[Fraction, bytes]]


def read_clip(path: Path) -> Clip:
    """Read a video with PyAV alone."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        frames = list(container.decode(video))
        times = [(frame.pts or 0) * (frame.time_base or Fraction(0)) for frame in frames]
        images = [frame.to_ndarray(format="rgb24") for frame in frames]
        duration = Fraction(video.duration or 0) * (video.time_base or 0)
        rate, size = video.average_rate or Fraction(0), (images[0].shape[0], images[0].shape[1])
    with av.open(str(path)) as container:
        packets = container.demux(container.streams.audio) if container.streams.audio else []
        audio = [(p.pts * (p.time_base or Fraction(0)), bytes(p)) for p in packets if p.pts is not None]
    return Clip(times, [number_of(image) for image in images], duration, rate, size, audio)
