"""Recognize videos, streams, webcams and image sequences among the sources of ``retinanet detect``. Imports no PyAV."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from retinanet.data.image_suffixes import is_image
from retinanet.detection.record import RECORD
from retinanet.detection.video_options import FRAME_RATE
from retinanet.errors import ConfigError, DataError
from retinanet.files import special_file

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts"}
    | {".webm", ".wmv"}
)
_STREAM_SUFFIXES = VIDEO_SUFFIXES | {".m3u8", ".mjpg", ".mjpeg", ".mpd"}
_STREAM_SCHEMES = frozenset({"rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "udp"})
_WEB_SCHEMES = frozenset({"http", "https"})

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_WEBCAM = re.compile(r"webcam:(\d+)|/dev/video(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"%(0\d+)?d")


@dataclass(frozen=True)
class VideoSource:
    """A source of frames.

    Attributes:
        text: the source as the user gave it.
        name: name for its output files, without a suffix.
        address: what PyAV opens: an absolute path, a URL or the name of a device.
        device: name of FFmpeg's input device of a webcam, else None.
        network: the source is a URL.
        realtime: the source does not wait: frames that are not taken in time are lost (webcams, RTSP, but not HTTP).
        images: the files of an image sequence, else empty.
    """

    text: str
    name: str
    address: str
    device: str | None = None
    network: bool = False
    realtime: bool = False
    images: tuple[Path, ...] = ()

    @property
    def is_file(self) -> bool:
        """Whether the source is a single file."""
        return not (self.network or self.device or self.images)


def is_video(source: str) -> bool:
    """Return whether a source is a video by its suffix or scheme, a webcam, or a pattern such as ``frame_%06d.png``.

    Raises:
        DataError: the source is an invalid URL.
    """
    if _WEBCAM.fullmatch(source):
        return True
    if _URL.match(source):
        parts = _url_parts(source)
        if parts.scheme.lower() in _WEB_SCHEMES:
            return Path(parts.path).suffix.lower() in _STREAM_SUFFIXES
        return parts.scheme.lower() in _STREAM_SCHEMES
    return Path(source).suffix.lower() in VIDEO_SUFFIXES or _is_pattern(source)


def video_source(source: str) -> VideoSource:
    """Describe a source of frames. A folder is the sequence of its images.

    Raises:
        DataError: there is no such file, folder or image, or the URL is invalid or of an unknown kind.
    """
    if found := _WEBCAM.fullmatch(source):
        return _webcam(source, int(found[1] or found[2]))
    if _URL.match(source):
        return _stream(source)
    path = Path(source)
    if path.is_dir():
        images = [each for each in path.iterdir() if is_image(each.name) and not each.name.startswith(".")]
        return _sequence(source, path.resolve().name, images)
    if _is_pattern(source):
        before, after = (re.escape(part) for part in _split_at_number(path.name))
        name = re.compile(f"{before}\\d+{after}")
        images = [each for each in path.parent.glob("*") if name.fullmatch(each.name)]
        return _sequence(source, _NUMBER.sub("", path.stem).strip("_-. ") or path.resolve().parent.name, images)
    if special := special_file(path):
        raise DataError(f"{source}: is {special}; give a video file, a stream, or webcam:0")
    if not path.exists():
        raise DataError(f"{source}: no such file; give a video file, a stream (rtsp://…), or webcam:0")
    # FFmpeg takes the part of a relative path before a colon for a protocol.
    return VideoSource(source, path.stem, str(path.absolute()))


def unique_names(sources: Sequence[VideoSource]) -> list[str]:
    """Return a name for the output files of each source. Equal names get numbers, and so does that of the record."""
    names: list[str] = []
    for source in sources:
        name, number = source.name, 1
        while name in (Path(RECORD).stem, *names):
            number += 1
            name = f"{source.name}-{number}"
        names.append(name)
    return names


def _webcam(text: str, number: int) -> VideoSource:
    device, address = {
        "darwin": ("avfoundation", str(number)),
        "win32": ("vfwcap", str(number)),
    }.get(sys.platform, ("v4l2", f"/dev/video{number}"))
    if device == "v4l2" and not Path(address).exists():
        present = ", ".join(sorted(f"webcam:{each.name[5:]}" for each in Path("/dev").glob("video*")))
        raise DataError(f"{text}: there is no {address}; {f'there are {present}' if present else 'connect a camera'}")
    return VideoSource(text, f"webcam-{number}", address, device=device, realtime=True)


def _url_parts(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError as error:
        raise DataError(f"{text}: is no valid URL ({error}); check the address") from error


def _stream(text: str) -> VideoSource:
    parts = _url_parts(text)
    scheme = parts.scheme.lower()
    if scheme not in _STREAM_SCHEMES | _WEB_SCHEMES:
        known = ", ".join(sorted(_STREAM_SCHEMES | _WEB_SCHEMES))
        raise DataError(f"{text}: {scheme}:// is not supported; give one of {known}")
    words = Path(parts.path).stem or parts.hostname or scheme
    name = re.sub(r"[^\w.-]+", "-", words).strip("-.") or scheme
    return VideoSource(text, name, text, network=True, realtime=scheme in _STREAM_SCHEMES)


def _sequence(text: str, name: str, images: Sequence[Path]) -> VideoSource:
    if not images:
        raise DataError(f"{text}: matches no image; give a folder of images or a pattern such as frame_%06d.png")
    return VideoSource(text, name, text, images=tuple(sorted(images, key=_natural)))


def _is_pattern(source: str) -> bool:
    return _NUMBER.search(Path(source).name) is not None and not Path(source).exists()


def _split_at_number(name: str) -> tuple[str, str]:
    found = _NUMBER.search(name)
    assert found is not None
    return name[: found.start()], name[found.end() :]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key by which ``frame_9`` comes before ``frame_10``."""
    return [(int(digits or 0), text) for text, digits in re.findall(r"(\D*)(\d*)", path.name)]


def rate_of_sequences(sources: Iterable[VideoSource], given: float | None) -> float:
    """Return the frames per second of the image sequences among ``sources``.

    Raises:
        ConfigError: a rate is given, but no source is a sequence of images.
    """
    if given is None:
        return FRAME_RATE
    if not any(source.images for source in sources):
        raise ConfigError("--frame-rate is for sequences of frames; videos have their own, leave it out")
    return given
