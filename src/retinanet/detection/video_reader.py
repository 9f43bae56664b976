"""Read frames with their time stamps from video files, streams, webcams and image sequences. Needs PyAV."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from retinanet.data.deep_pixels import PixelRange
from retinanet.data.images import image_size, read_image
from retinanet.detection.video_connection import Audio, Connection
from retinanet.detection.video_options import ConnectionLimits
from retinanet.detection.video_sources import VideoSource
from retinanet.errors import DataError

# A time stamp that goes back by more than this number of frames begins a new count. By fewer, frames are out of order.
_DISORDER = 4

# Packets of audio that wait at most for the frames beside them.
_AUDIO_WAITING = 1000

# A video that ends this many seconds before the end that its header states is reported as truncated.
_TRUNCATED = 0.5


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
        number: position in the video, from 0. Frames that were dropped are counted, too.
        image: uint8 RGB ``(H, W, 3)``, upright.
        pts: time stamp in units of the reader's ``time_base``; larger than that of the frame before.
        duration: duration in the same units; 0 if it is not known.
        time: time stamp in seconds.
        audio: compressed audio that was read since the last frame.
    """

    number: int
    image: npt.NDArray[np.uint8]
    pts: int
    duration: int
    time: float
    audio: tuple[Audio, ...] = ()


class Timeline:
    """Turns the time stamps of a source into time stamps that increase, also over dropped connections, and where the
    source counts anew, as at the joint of two files.

    Args:
        time_base: unit of the time stamps in seconds.
        step: usual distance of two frames in this unit.
        from_zero: let the first frame be at 0. Otherwise the time stamps of the source are kept.
    """

    def __init__(self, time_base: Fraction, step: int, from_zero: bool) -> None:
        self.time_base, self.step = time_base, max(1, step)
        self.last: int | None = None
        self.last_raw = 0
        self._wall = 0.0
        # What is added to the time stamps of the source: a number for each time that it counted anew.
        self._shifts = [] if from_zero else [0]
        # Of each audio stream: the position of its shift, and its last time stamp.
        self._audio: dict[int, tuple[int, int]] = {}

    def pts(self, raw: int | None) -> int:
        """Return the time stamp of the next frame. ``raw`` is the one of the source, or None if it has none."""
        if raw is None:
            raw = 0 if self.last is None else self.last_raw + self.step
        if not self._shifts:  # the first frame, or the first one after a dropped connection
            gap = int((time.monotonic() - self._wall) / self.time_base)
            self._shifts.append(-raw if self.last is None else self.last + max(self.step, gap) - raw)
        elif self.last is not None and raw < self.last_raw - _DISORDER * self.step:
            self._shifts.append(self.last + self.step - raw)
        self.last_raw, self._wall = raw, time.monotonic()
        pts = raw + self._shifts[-1]
        self.last = pts if self.last is None else max(pts, self.last + 1)
        return self.last

    @property
    def shifted(self) -> bool:
        """Whether time stamps differ from those of the source."""
        return any(self._shifts)

    def restart(self) -> None:
        """Let the next frame follow the last one after the time that passes until then."""
        self._shifts.clear()
        self._audio.clear()

    def place(self, audio: Audio) -> bool:
        """Shift the time stamps of compressed audio like those of the frames beside it.

        Audio and frames count anew at the same time, but are not read at the same time. So a packet gets the first
        shift with which it follows the packet before.

        Returns:
            False: it follows with none of the shifts so far, and its time stamps are unchanged.
        """
        packet = audio.packet
        assert packet.time_base is not None
        assert packet.dts is not None
        position, last = self._audio.get(audio.stream, (0, None))
        for k, shift in enumerate(self._shifts[position:], position):
            by = int(shift * self.time_base / packet.time_base)
            if last is None or packet.dts + by > last:
                packet.dts += by
                packet.pts = None if packet.pts is None else packet.pts + by
                self._audio[audio.stream] = k, packet.dts
                return True
        return False


class VideoReader:
    """Reads frames by PyAV. Iterate over it once.

    A dropped connection is opened again, after delays that double, up to a number of attempts since the last new frame.

    Attributes:
        source: the source.
        pixels: number of pixels of a frame.
        time_base: unit of the time stamps in seconds.
        rate: usual number of frames per second.
        total: number of frames if it is known, else an estimate, or None for a stream.
        audio: the audio streams.
        aspect: width of a pixel of the upright image divided by its height; known after the first frame.
        reconnects: number of times that a dropped connection was opened again.
        notes: sentences about problems.

    Raises:
        DataError: the source cannot be opened, or holds no video that can be decoded.
    """

    def __init__(self, source: VideoSource, limits: ConnectionLimits | None = None) -> None:
        self.source, self._limits = source, limits or ConnectionLimits()
        self._connection = first = Connection(source, self._limits)
        self._closed = threading.Event()
        self.reconnects = self._broken_before = self._count = self._attempts = 0
        self._packets: Counter[int] = Counter()  # packets that were read of each audio stream
        self.notes: list[str] = []
        self.time_base, self.rate, self.audio = first.time_base, first.rate, first.audio
        self.pixels = first.video.codec_context.width * first.video.codec_context.height
        self.total = self._frames_expected()
        from_zero = source.network or source.device is not None
        self._timeline = Timeline(self.time_base, round(1 / (self.rate * self.time_base)), from_zero)
        self.aspect = Fraction(1)
        self._first_raw: int | None = None
        self._audio: list[Audio] = []

    @property
    def broken(self) -> int:
        """Number of frames that could not be decoded, or only with errors, on all connections."""
        return self._broken_before + self._connection.broken

    def __iter__(self) -> Iterator[Frame]:
        try:
            yield from self._frames()
            while self._opened_again():
                yield from self._frames()
            self._note_truncation()
        finally:
            self._connection.close()

    def close(self) -> None:
        """End reading, also while it waits to connect again. May be called from another thread."""
        self._closed.set()

    def trailing_audio(self) -> tuple[Audio, ...]:
        """Return the audio that was read since the last frame, also packets that fit nowhere."""
        placed = self._placed_audio()
        rest, self._audio = self._audio, []
        return (*placed, *rest)

    def _frames(self) -> Iterator[Frame]:
        # A file that is opened again repeats what was read before.
        repeated, packets = (self._count, self._packets.copy()) if self._connection.is_file else (0, Counter[int]())
        for item in self._connection:
            if self._closed.is_set():
                return
            if isinstance(item, Audio):
                if packets[item.stream]:
                    packets[item.stream] -= 1
                    continue
                self._packets[item.stream] += 1
                self._audio.append(item)
            elif repeated:
                repeated -= 1
            else:
                if self._first_raw is None:
                    self._first_raw = item.pts
                yield self._frame(item)

    def _frame(self, decoded: Any) -> Frame:
        turns = round(decoded.rotation / 90) % 4
        stored = self._connection.video.codec_context.sample_aspect_ratio or Fraction(1)
        self.aspect = 1 / stored if turns % 2 else stored
        pts = self._timeline.pts(decoded.pts)
        image = np.rot90(decoded.to_ndarray(format="rgb24"), turns)
        number, self._count, self._attempts = self._count, self._count + 1, 0
        seconds = float(pts * self.time_base)
        duration = decoded.duration or 0
        return Frame(number, np.ascontiguousarray(image), pts, duration, seconds, self._placed_audio())

    def _placed_audio(self) -> tuple[Audio, ...]:
        """Return the audio that was read, except packets from a new count of time stamps that no frame has reached."""
        placed, waiting = list[Audio](), list[Audio]()
        for each in self._audio:
            (placed if self._timeline.place(each) else waiting).append(each)
        self._audio = waiting[-_AUDIO_WAITING:]
        # If the time stamps are shifted to the first frame, audio from before it is left out.
        return tuple(each for each in placed if not self._timeline.shifted or (each.packet.dts or 0) >= 0)

    def _frames_expected(self) -> int | None:
        end = self._connection.end
        if self.source.realtime or (end is None and not self._connection.video.frames):
            return None
        return int(self._connection.video.frames) or max(1, round((end or 0) * float(self.rate)))

    def _opened_again(self) -> bool:
        """Connect again if the connection dropped. False: the video has ended."""
        old = self._connection
        if not (self.source.network or self.source.device) or self._closed.is_set():
            return False
        if old.ended and old.is_file and not self.source.realtime:
            return False
        old.close()
        while self._attempts < self._limits.attempts:
            if self._closed.wait(self._limits.first_delay * 2**self._attempts):
                return False
            self._attempts += 1
            try:
                new = Connection(self.source, self._limits)
            except DataError:
                continue
            return self._continues(old, new)
        self.notes.append(
            f"the connection dropped after {self._count} frames, and {self._limits.attempts} attempts to connect again "
            "gave no new frame"
        )
        return False

    def _continues(self, old: Connection, new: Connection) -> bool:
        """Use the new connection, unless it only repeats what was read."""
        self._broken_before += old.broken
        self._connection = new
        starts_anew = new.video.start_time is not None and new.video.start_time == self._first_raw
        goes_on = self.source.realtime or new.is_file or "jpeg" in new.container.format.name
        if starts_anew and not goes_on:
            self.notes.append(
                f"the source ended after {self._count} frames; it starts with the same time stamp when it is opened "
                "again, as a file does"
            )
            return False
        self.reconnects += 1
        if not new.is_file:
            self._timeline.restart()
            self._audio = []
        return True

    def _note_truncation(self) -> None:
        end, last = self._connection.end, self._timeline.last
        if end is None or last is None or self.source.realtime:
            return
        reached = float((last + 2 * self._timeline.step) * self.time_base)
        if self._timeline.last_raw == last and reached < end - _TRUNCATED:
            self.notes.append(f"ends at {reached:.1f} s, but its header states {end:.1f} s; it is truncated or damaged")


class SequenceReader:
    """Reads the images of a sequence at a constant frame rate. Attributes and methods are those of the video reader.

    Raises:
        DataError: no image can be read.
    """

    def __init__(self, source: VideoSource, rate: float, pixel_range: PixelRange | None = None) -> None:
        self.source, self._pixel_range = source, pixel_range
        self.rate = Fraction(rate).limit_denominator(1001)
        self.time_base = 1 / self.rate
        self.total: int | None = len(source.images)
        self.audio: tuple[Any, ...] = ()
        self.aspect = Fraction(1)
        self.broken = self.reconnects = 0
        self.notes: list[str] = []
        self.pixels = self._pixels_of_first()

    def __iter__(self) -> Iterator[Frame]:
        for number, path in enumerate(self.source.images):
            try:
                image = read_image(path, self._pixel_range)
            except DataError as error:
                self.broken += 1
                self.notes.append(str(error))
                continue
            yield Frame(number, image, number, 1, float(number * self.time_base))

    def _pixels_of_first(self) -> int:
        """Return the number of pixels of the first image that can be opened."""
        errors = []
        for path in self.source.images:
            try:
                width, height = image_size(path)
            except DataError as error:
                errors.append(str(error))
                continue
            return width * height
        raise DataError(f"{self.source.text}: none of its {len(errors)} images can be opened; first: {errors[0]}")

    def close(self) -> None:
        """Do nothing: reading ends with the iteration."""

    def trailing_audio(self) -> tuple[Audio, ...]:
        """Return no audio."""
        return ()
