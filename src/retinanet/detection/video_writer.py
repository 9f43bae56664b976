"""Write a video with the time stamps, the frame rate and the audio of its source. Needs PyAV."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace

from retinanet.detection.video_connection import Audio
from retinanet.detection.video_reader import Frame, SequenceReader, VideoReader
from retinanet.errors import MissingPackageError
from retinanet.files import not_written

Pixels = npt.NDArray[np.uint8]

# Containers by preference; the first that can hold all audio streams of the source is used. Only MP4 and MOV keep time
# stamps exactly; Matroska rounds them to milliseconds.
SUFFIXES = (".mp4", ".mov", ".mkv")

_ENCODERS = ("libx264", "libopenh264")

# Without B-frames, time stamps of packets are those of the frames, so no player has to correct them.
_ENCODER_OPTIONS = {"preset": "veryfast", "crf": "20", "bf": "0"}

# Number of BT.709 in the standard, which players assume for video that states no color space.
_BT709 = 1


class VideoWriter:
    """Writes frames to a temporary file beside ``path``, which :meth:`finish` renames.

    Args:
        path: the file without its suffix.
        reader: the source of the frames.
        first: the first frame; all frames get its size.

    Attributes:
        path: the file.
        resized: number of frames that were scaled, because they had another size than the first.
        lost_audio: number of packets of audio that were left out, because they were damaged or overlapped.

    Raises:
        RetinaNetError: the file cannot be written.
    """

    def __init__(self, path: Path, reader: VideoReader | SequenceReader, first: Frame) -> None:
        suffix = suffix_for(reader.audio)
        self.path = path.with_name(path.name + suffix)
        self.resized = self.lost_audio = 0
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
        self._size = first.image.shape[:2]
        self._time_base = reader.time_base
        self._durations: dict[int, int] = {}
        with self._explained():
            # Absolute, because FFmpeg takes the part of a relative path before a colon for a protocol.
            self._container = av.open(str(self._temporary.absolute()), "w")
        self._video = self._video_stream(reader)
        self._audio = [self._container.add_stream_from_template(each) for each in reader.audio]

    def write(self, frame: Frame, image: Pixels) -> None:
        """Write ``image`` ``(H, W, 3)``, uint8 RGB, with the time stamp of ``frame``, and the audio before it.

        Raises:
            RetinaNetError: the file cannot be written, for example because the disk is full.
        """
        if image.shape[:2] != self._size:
            self.resized += 1
        converted = av.VideoFrame.from_ndarray(_even(image), format="rgb24")
        converted = converted.reformat(
            self._video.width,
            self._video.height,
            "yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        converted.pts, converted.time_base = frame.pts, self._time_base
        self._durations[frame.pts] = frame.duration
        self.write_audio(frame.audio)
        with self._explained():
            self._mux(self._video.encode(converted))

    def write_audio(self, packets: Sequence[Audio]) -> None:
        """Copy compressed audio. Packets that the container refuses, such as those out of order, are left out."""
        for stream, packet in packets:
            packet.stream = self._audio[stream]
            with self._explained():
                try:
                    self._container.mux(packet)
                except av.error.ArgumentError:
                    self.lost_audio += 1

    def notes(self) -> list[str]:
        """Return sentences about frames and audio that were changed."""
        notes = [f"frames scaled to the size of the first: {self.resized}"] if self.resized else []
        notes += (
            [f"packets of audio left out, because they are damaged or overlap: {self.lost_audio}"]
            if self.lost_audio
            else []
        )
        return [f"{self.path}: {note}" for note in notes]

    def finish(self) -> None:
        """Complete the file, flush it to disk and rename it.

        Raises:
            RetinaNetError: the file cannot be written.
        """
        with self._explained():
            self._mux(self._video.encode(None))
            self._container.close()
            with self._temporary.open("rb") as file:
                os.fsync(file.fileno())
            self._temporary.replace(self.path)

    def discard(self) -> None:
        """Remove the unfinished file."""
        with contextlib.suppress(OSError):
            self._container.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn errors of the file into errors for the user."""
        try:
            yield
        except (OSError, av.error.FFmpegError) as error:
            raise not_written(self.path, OSError(error.errno, error.strerror)) from error

    def _mux(self, packets: Sequence[av.Packet[Any]]) -> None:
        for packet in packets:
            duration = self._durations.pop(packet.pts or 0, 0)
            if duration:
                packet.duration = duration
            self._container.mux(packet)

    def _video_stream(self, reader: VideoReader | SequenceReader) -> Any:
        stream: Any = self._container.add_stream(_encoder(), rate=reader.rate, options=_ENCODER_OPTIONS)
        height, width = self._size
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = stream.codec_context
        stream.time_base = context.time_base = self._time_base
        context.sample_aspect_ratio = reader.aspect
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = ColorRange.MPEG
        return stream


def suffix_for(audio: Sequence[Any]) -> str:
    """Choose the container by the codecs of the audio."""
    codecs = {stream.codec_context.name for stream in audio}
    for suffix in SUFFIXES[:-1]:
        if codecs <= _codecs_of(suffix):
            return suffix
    return SUFFIXES[-1]


def _codecs_of(suffix: str) -> set[str]:
    with av.open(os.devnull, "w", format=suffix[1:]) as container:
        return set(container.supported_codecs)


def _encoder() -> str:
    """Return the best H.264 encoder of the installed PyAV."""
    for name in _ENCODERS:
        if name in av.codecs_available:
            return name
    raise MissingPackageError(f"this build of PyAV has no H.264 encoder ({' or '.join(_ENCODERS)}); install its wheel")


def _even(image: Pixels) -> Pixels:
    """Repeat the last row and column of images with odd sides, which H.264 cannot store."""
    height, width = image.shape[:2]
    if not (height % 2 or width % 2):
        return np.ascontiguousarray(image)
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


class FramesFile:
    """A JSON Lines file that is written line by line, so that it holds all frames so far at any time.

    Raises:
        RetinaNetError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise not_written(path, error) from error

    def write(self, line: str) -> None:
        """Append a line."""
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise not_written(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError as error:
            raise not_written(self.path, error) from error
