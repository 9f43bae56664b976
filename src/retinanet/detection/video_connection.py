"""An open video file, stream or webcam: decoded frames and compressed audio, and errors survived. Needs PyAV."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
import av.error

from retinanet.detection.video_options import ConnectionLimits
from retinanet.detection.video_sources import VideoSource
from retinanet.errors import DataError

# Errors of a file in a row after which reading ends: the rest is most likely damaged, too.
_ERRORS_IN_A_ROW = 20

# Flag of a video stream with a single image, such as the cover of an album.
_COVER = "attached_pic"


class Audio(NamedTuple):
    """A packet of compressed audio, and the position of its stream among the audio streams.

    A packet must not be asked for its stream, because it may outlive the connection.
    """

    stream: int
    packet: av.Packet[Any]


class Connection:
    """An open source. Iterate over it once, then close it.

    Attributes:
        video: PyAV's video stream.
        audio: descriptions of the audio streams, which stay valid after the source is closed.
        time_base: unit of the time stamps in seconds.
        rate: usual number of frames per second.
        end: the end of the video in seconds that the header states, or None.
        is_file: the source has a size or a duration: a file, also behind a URL, and not a camera.
        ended: the source ended as it should, without an error.

    Raises:
        DataError: the source cannot be opened, or holds no video that can be decoded.
    """

    def __init__(self, source: VideoSource, limits: ConnectionLimits) -> None:
        self.source = source
        self._undecoded = self._corrupt_packets = self._corrupt_frames = 0
        self.ended = False
        self.container = _open(source, limits)
        try:
            self.video = _video_stream(self.container, source)
        except DataError:
            self.container.close()
            raise
        self.video.thread_type = "AUTO"
        self._audio = [each for each in self.container.streams.audio if each.codec_context is not None]
        # A stream of a closed file must not be used any more, but the writer may need it later.
        self._copies = av.open(os.devnull, "w", format="matroska")
        self.audio = tuple(self._copies.add_stream_from_template(each) for each in self._audio)
        self.time_base: Fraction = self.video.time_base or Fraction(1, 90_000)
        self.end = self._stated_end()
        self.is_file = bool(self.container.duration) or self.container.size > 0
        self.rate = _plausible(self.video.guessed_rate) or _plausible(self.video.average_rate) or Fraction(25)

    @property
    def broken(self) -> int:
        """Number of frames that could not be decoded, or only with errors."""
        return self._undecoded + max(self._corrupt_packets, self._corrupt_frames)

    def __iter__(self) -> Iterator[Any]:
        """Yield decoded frames (``av.VideoFrame``) and :class:`Audio` until the source ends or drops."""
        audio = {each.index: position for position, each in enumerate(self._audio)}
        for packet in self._packets():
            if packet.stream.type == "audio":
                if packet.dts is not None:  # the last packet of a stream is empty
                    yield Audio(audio[packet.stream_index], packet)
                continue
            self._corrupt_packets += packet.is_corrupt
            try:
                frames = packet.decode()
            except av.error.EOFError:
                continue
            except av.error.FFmpegError:
                self._undecoded += 1
                continue
            yield from self._counted(frames)
        with contextlib.suppress(av.error.FFmpegError):  # after an error, the decoder still holds frames
            yield from self._counted(self.video.decode(None))

    def close(self) -> None:
        """Close the source."""
        self.container.close()

    def _stated_end(self) -> float | None:
        if self.video.duration:
            return float(((self.video.start_time or 0) + self.video.duration) * self.time_base)
        if self.container.duration:  # in Matroska and FLV, it counts from 0, and not from the start
            return float(self.container.duration / av.time_base)
        return None

    def _packets(self) -> Iterator[Any]:
        packets, errors = self.container.demux(self.video, *self._audio), 0
        while errors < _ERRORS_IN_A_ROW:
            try:
                packet = next(packets)
            except StopIteration:
                self.ended = True
                return
            except (av.error.FFmpegError, OSError):
                if self.source.network or self.source.device:
                    return
                errors += 1
                packets = self.container.demux(self.video, *self._audio)
                continue
            errors = 0
            yield packet

    def _counted(self, frames: list[Any]) -> list[Any]:
        self._corrupt_frames += sum(frame.is_corrupt for frame in frames)
        return frames


def _open(source: VideoSource, limits: ConnectionLimits) -> Any:
    options: dict[str, str] = {}
    if source.network:
        microseconds = str(int(limits.read_seconds * 1e6))
        rtsp = source.address.lower().startswith("rtsp")
        options = {"rtsp_transport": "tcp", "timeout": microseconds} if rtsp else {"rw_timeout": microseconds}
    elif source.is_file:
        options = {"protocol_whitelist": "file,crypto,data"}  # a playlist must not reach into the network
    timeout = (limits.open_seconds, limits.read_seconds) if source.network else None
    start = time.monotonic()
    try:
        return av.open(source.address, format=source.device, options=options, timeout=timeout)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if source.network and time.monotonic() - start >= 0.9 * min(limits.open_seconds, limits.read_seconds):
            reason = f"did not answer within {limits.open_seconds:g} s; check the address and the network"
        else:
            reason = _reason(error, source)
        raise DataError(f"{source.text}: {reason}") from error


def _video_stream(container: Any, source: VideoSource) -> Any:
    streams = [each for each in container.streams.video if _COVER not in str(each.disposition)]
    if not streams:
        raise DataError(f"{source.text}: has no video stream; give a video")
    if getattr(streams[0], "codec_context", None) is None:
        raise DataError(f"{source.text}: its video codec is unknown; convert the video, for example to H.264")
    return streams[0]


def _reason(error: Exception, source: VideoSource) -> str:
    """What is wrong with a source that cannot be opened, and what to do."""
    if isinstance(error, av.error.InvalidDataError) and not source.network:
        return "is no video, or its header is damaged; give a video that other programs can play"
    text = str(getattr(error, "strerror", None) or error).strip()
    advice = "check the address, the network and the password" if source.network else "check the file"
    return f"cannot be opened ({text}); {advice}"


def _plausible(rate: Fraction | None) -> Fraction | None:
    return rate if rate is not None and 0 < rate <= 1000 else None
