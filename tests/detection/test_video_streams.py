"""Streams: connections that drop, servers that do not answer, and cameras that are faster than the network."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest

from clips import KnowingDetector, drawn, one_box, read_clip, write_clip
from retinanet.detection.stages import ReadAhead
from retinanet.detection.video import VideoRun, detect_videos
from retinanet.detection.video_options import ConnectionLimits, VideoOptions
from retinanet.errors import DataError
from stream_servers import RtspServer, SilentServer, StreamServer, transport_stream

LIMITS = ConnectionLimits(open_seconds=2, read_seconds=2, attempts=2, first_delay=0.05)


def detect(url: str, out: Path, **options: Any) -> VideoRun:
    detector = KnowingDetector([one_box()])
    [run], _ = detect_videos(detector, [url], out, VideoOptions(limits=LIMITS, **options))
    return run


@pytest.fixture(scope="module")
def live() -> tuple[bytes, bytes]:
    """Two connections to a camera: frames 0 to 59, cut in the middle of a frame, and frames 100 to 129."""
    whole = transport_stream([drawn(k) for k in range(60)])
    return whole[: len(whole) // 2 // 188 * 188], transport_stream([drawn(k) for k in range(100, 130)], first=100)


@pytest.mark.parametrize(
    ("server", "url"), [(StreamServer, "http://127.0.0.1:{}/live.ts"), (RtspServer, "rtsp://127.0.0.1:{}/live")]
)
def test_a_dropped_connection_is_opened_again(
    live: tuple[bytes, bytes], server: type[StreamServer], url: str, tmp_path: Path
) -> None:
    with server(live) as running:
        run = detect(url.format(running.port), tmp_path, track=True)
    assert running.connections == 2
    notes = " ".join(run.notes)
    assert "dropped and was opened again: 1" in notes
    assert "2 attempts to connect again gave no new frame" in notes
    clip = read_clip(tmp_path / "live.mp4")
    assert run.frames == len(clip.numbers)
    assert clip.numbers[:20] == list(range(20))
    assert {*range(102, 127)} <= {*clip.numbers}
    assert clip.times == sorted(set(clip.times))
    assert float(clip.times[-1]) < 10
    assert run.objects == {"car": 1}


def test_a_file_behind_a_url_ends(tmp_path: Path) -> None:
    data = transport_stream([drawn(k) for k in range(60)])
    for headers in ("", f"Content-Length: {len(data)}\r\n"):
        with StreamServer([data, data, data], headers) as server:
            run = detect(f"http://127.0.0.1:{server.port}/film.ts", tmp_path)
        assert run.frames == 60
        assert read_clip(tmp_path / "film.mp4").numbers == list(range(60))


def test_a_file_behind_a_url_goes_on_where_the_connection_dropped(tmp_path: Path) -> None:
    data = transport_stream([drawn(k) for k in range(60)])
    with StreamServer([data[: len(data) // 2], data], f"Content-Length: {len(data)}\r\n") as server:
        run = detect(f"http://127.0.0.1:{server.port}/film.ts", tmp_path)
    assert run.frames == 60
    clip = read_clip(tmp_path / "film.mp4")
    assert clip.numbers == list(range(60))
    assert float(clip.times[-1]) == pytest.approx(59 / 30)


@pytest.mark.parametrize("format", ["mpegts", "h264"])  # raw H.264 has no time stamps
def test_a_file_that_always_drops_at_the_same_place_ends(tmp_path: Path, format: str) -> None:
    file = io.BytesIO()
    write_clip(file, [drawn(k) for k in range(60)], format=format)
    data = file.getvalue()
    with StreamServer([data[: len(data) // 2]] * 20, f"Content-Length: {len(data)}\r\n") as server:
        run = detect(f"http://127.0.0.1:{server.port}/film.ts", tmp_path)
    assert server.connections == 3  # the first one, and two attempts
    assert "2 attempts to connect again gave no new frame" in " ".join(run.notes)
    numbers = read_clip(tmp_path / "film.mp4").numbers
    assert len(numbers) == run.frames
    assert numbers[:20] == list(range(20))


def test_audio_of_a_file_goes_on_where_the_connection_dropped(tmp_path: Path) -> None:
    file = io.BytesIO()
    write_clip(file, [drawn(k) for k in range(60)], format="matroska", audio="aac")
    data = file.getvalue()
    (tmp_path / "film.mkv").write_bytes(data)
    with StreamServer([data[: len(data) * 9 // 10], data], f"Content-Length: {len(data)}\r\n") as server:
        run = detect(f"http://127.0.0.1:{server.port}/film.mkv", tmp_path)
    assert run.frames == 60
    assert not any("audio" in note for note in run.notes)
    before, after = read_clip(tmp_path / "film.mkv"), read_clip(tmp_path / "film.mp4")
    assert b"".join(data for _, data in after.audio) == b"".join(data for _, data in before.audio)


@pytest.mark.parametrize("url", ["http://127.0.0.1:{}/live.ts", "rtsp://127.0.0.1:{}/live"])
def test_a_server_that_does_not_answer_ends_within_the_limit(url: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with SilentServer() as server, pytest.raises(DataError, match="did not answer within 2 s"):
        detect(url.format(server.port), tmp_path)
    assert time.monotonic() - start < 8


def test_an_unreachable_server_is_an_error_of_one_line(tmp_path: Path) -> None:
    with StreamServer([]) as server:
        port = server.port
    with pytest.raises(DataError, match="check the address") as error:
        detect(f"rtsp://127.0.0.1:{port}/live", tmp_path)
    assert "\n" not in str(error.value)


def test_frames_of_a_fast_camera_are_dropped_and_counted() -> None:
    with ReadAhead(range(1000), 4, latest=True) as ahead:
        time.sleep(0.2)
        taken = ahead.take(8)
    assert taken == [996, 997, 998, 999]
    assert ahead.dropped == 996


def test_frames_of_a_file_wait() -> None:
    with ReadAhead(iter(range(100)), 4) as ahead:
        time.sleep(0.05)
        taken = []
        while some := ahead.take(3):
            taken += some
    assert taken == list(range(100))
    assert ahead.dropped == 0


def test_an_error_of_the_reader_follows_its_items() -> None:
    def failing() -> Any:
        yield 1
        raise DataError("damaged")

    with ReadAhead(failing(), 4) as ahead:
        assert ahead.take(4) == [1]
        with pytest.raises(DataError, match="damaged"):
            ahead.take(4)
