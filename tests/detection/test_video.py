"""Detection in video files: time stamps, frame rate, audio, tracks and damage."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import supervision
from PIL import Image

import retinanet
from clips import KnowingDetector, drawn, drawn_scene, number_of, one_box, read_clip, write_clip
from retinanet.detection.video import VideoRun, VideoStopped, detect_videos
from retinanet.detection.video_options import VideoOptions
from retinanet.detections import Detections
from retinanet.errors import ConfigError, DataError, RetinaNetError
from tracks import idf1, imperfect, scene


def detect(source: Path | str, out: Path, detector: KnowingDetector | None = None, **options: Any) -> VideoRun:
    detector = detector or KnowingDetector([one_box()])
    [run], errors = detect_videos(detector, [str(source)], out, VideoOptions(**options))
    assert not errors
    return run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


UNEVEN = [0, 3003, 5000, 9009, 21_000, 21_700, 40_000, 90_000]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("uneven", [False, True], ids=["constant", "variable"])
def test_frames_time_stamps_and_duration_stay(tmp_path: Path, suffix: str, uneven: bool) -> None:
    pts = UNEVEN if uneven else None
    clip = tmp_path / f"clip{suffix}"
    write_clip(clip, [drawn(k) for k in range(8)], pts)
    run = detect(clip, tmp_path / "out")
    before, after = read_clip(clip), read_clip(tmp_path / "out" / "clip.mp4")
    assert after.times == before.times
    assert after.numbers == before.numbers == list(range(8))
    assert after.size == before.size
    if suffix != ".mkv":  # Matroska states no duration of the video itself
        assert after.duration == before.duration
        assert after.rate == before.rate
    assert (run.frames, run.written, run.notes) == (8, ["clip.jsonl", "clip.mp4"], [])
    times = [line["time"] for line in lines(tmp_path / "out" / "clip.jsonl")]
    np.testing.assert_allclose(times, [float(each) for each in before.times], atol=1e-6)


@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "pcm_s16le"])
def test_audio_is_copied(tmp_path: Path, codec: str) -> None:
    clip = tmp_path / "clip.mkv"
    write_clip(clip, [drawn(k) for k in range(60)], audio=codec)
    detect(clip, tmp_path / "out")
    before, after = read_clip(clip), read_clip(tmp_path / "out" / "clip.mp4")
    assert b"".join(data for _, data in after.audio) == b"".join(data for _, data in before.audio) != b""
    assert float(abs(after.audio[0][0] - before.audio[0][0])) < 0.002  # Matroska rounds to milliseconds
    if codec != "pcm_s16le":  # MP4 divides PCM into packets of its own
        assert float(abs(after.audio[-1][0] - before.audio[-1][0])) < 0.03


def test_video_starts_where_its_source_starts(tmp_path: Path) -> None:
    write_clip(tmp_path / "late.ts", [drawn(k) for k in range(10)], [45_000 + 3000 * k for k in range(10)])
    detect(tmp_path / "late.ts", tmp_path / "out")
    before, after = read_clip(tmp_path / "late.ts"), read_clip(tmp_path / "out" / "late.mp4")
    assert after.times == before.times
    assert before.times[0] >= Fraction(1, 2)


@pytest.mark.parametrize("uneven", [False, True], ids=["constant", "variable"])
def test_time_stamps_that_count_anew_continue(tmp_path: Path, uneven: bool) -> None:
    """Joined MPEG-TS files: each part keeps the distances of its frames, and its audio follows that of the last."""
    parts = [tmp_path / f"part{k}.ts" for k in range(3)]
    for k, part in enumerate(parts):
        pts = [3000 * n + 500 * (n % 3) for n in range(60)] if uneven else None
        write_clip(part, [drawn(100 * k + n) for n in range(60)], pts, audio="aac")
    (tmp_path / "joined.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    detect(tmp_path / "joined.ts", tmp_path / "out")
    clips, joined = [read_clip(part) for part in parts], read_clip(tmp_path / "out" / "joined.mp4")
    assert joined.numbers == [number for clip in clips for number in clip.numbers]
    for k, clip in enumerate(clips):
        times = joined.times[60 * k : 60 * k + 60]
        assert [each - times[0] for each in times] == [each - clip.times[0] for each in clip.times]
        if k:
            assert 0 < times[0] - joined.times[60 * k - 1] <= Fraction(1, 30)
    # The audio of a part is a little longer than its frames, so a packet or two of the next part have no place.
    assert len(joined.audio) >= sum(len(clip.audio) for clip in clips) - 4
    starts = np.array([float(at) for at, _ in joined.audio])
    assert np.diff(starts).max() < 0.06


def test_a_relative_path_may_hold_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "2024-01-01T10:00:00.mkv", [drawn(k) for k in range(5)])
    run = detect("2024-01-01T10:00:00.mkv", Path())
    assert run.written == ["2024-01-01T10:00:00.jsonl", "2024-01-01T10:00:00.mp4"]
    assert read_clip(tmp_path / "2024-01-01T10:00:00.mp4").numbers == list(range(5))


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mp4", ".ts", ".flv"])
def test_a_video_that_does_not_start_at_zero_is_not_truncated(tmp_path: Path, suffix: str) -> None:
    pts, codec = [450_000 + 3000 * k for k in range(30)], "libvpx" if suffix == ".webm" else "libx264"
    write_clip(tmp_path / f"late{suffix}", [drawn(k) for k in range(30)], pts, codec=codec)
    assert detect(tmp_path / f"late{suffix}", tmp_path / "out").notes == []


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_late_video_that_is_cut_is_truncated(tmp_path: Path, suffix: str) -> None:
    pts = [450_000 + 3000 * k for k in range(90)]
    write_clip(tmp_path / f"late{suffix}", [drawn(k) for k in range(90)], pts)
    data = (tmp_path / f"late{suffix}").read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(data[: len(data) * 2 // 3])
    assert "its header states 8.0 s; it is truncated" in detect(tmp_path / f"cut{suffix}", tmp_path / "out").notes[-1]


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotated_video_is_upright(tmp_path: Path, rotation: int) -> None:
    upright = np.zeros((96, 64, 3), dtype=np.uint8)
    upright[:32, :32] = (250, 30, 30)
    stored = np.rot90(upright, -rotation // 90 % 4)  # the display turns it back, counterclockwise
    write_clip(tmp_path / "turned.mp4", [stored] * 3, rotation=rotation)
    [first, *_] = retinanet.frames(KnowingDetector([Detections.empty()]), tmp_path / "turned.mp4")
    assert first.image.shape == upright.shape
    assert np.abs(first.image.astype(int) - upright).mean() < 8
    detect(tmp_path / "turned.mp4", tmp_path / "out", KnowingDetector([Detections.empty()]))
    assert read_clip(tmp_path / "out" / "turned.mp4").size == (96, 64)


def test_odd_sides_are_padded_and_colors_stay(tmp_path: Path) -> None:
    image = np.full((97, 65, 3), (200, 60, 40), dtype=np.uint8)
    (tmp_path / "odd").mkdir()
    for k in range(3):
        Image.fromarray(image).save(tmp_path / "odd" / f"{k}.png")
    detect(f"{tmp_path}/odd/%d.png", tmp_path / "out", KnowingDetector([Detections.empty()]))
    with av.open(str(tmp_path / "out" / "odd.mp4")) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert frame.shape == (98, 66, 3)
    assert np.abs(frame.astype(int) - (200, 60, 40)).max() <= 6


def test_tracks_of_a_clip(tmp_path: Path) -> None:
    """From file to file: crossing and vanishing objects, a variable frame rate, and the same ids in two runs."""
    truth = scene(0, variable=True)
    write_clip(tmp_path / "clip.mp4", drawn_scene(truth), [round(90_000 * at) for at in truth.times])
    found = imperfect(truth, 0)
    run = detect(tmp_path / "clip.mp4", tmp_path / "out", KnowingDetector(found), track=True)
    again = detect(tmp_path / "clip.mp4", tmp_path / "again", KnowingDetector(found), track=True, batch=3)
    text = (tmp_path / "out" / "clip.jsonl").read_bytes()
    assert text == (tmp_path / "again" / "clip.jsonl").read_bytes()
    frames = lines(tmp_path / "out" / "clip.jsonl")
    boxes = [np.reshape([each["box"] for each in frame["detections"]], (-1, 4)) for frame in frames]
    ids = [np.array([each["track"] for each in frame["detections"]], dtype=np.int64) for frame in frames]
    assert idf1(truth, boxes, ids) > 0.9
    assert run.objects == again.objects
    assert sum(run.objects.values()) == len({k for each in ids for k in each.tolist()})


def test_without_tracking_the_detections_are_those_of_the_images(tmp_path: Path) -> None:
    detector = KnowingDetector([one_box(0.9), one_box(0.2), Detections.empty()])
    write_clip(tmp_path / "clip.mp4", [drawn(k) for k in range(9)])
    run = detect(tmp_path / "clip.mp4", tmp_path / "out", detector, batch=4, draw=False)
    assert run.counts == {"car": 3}
    assert run.written == ["clip.jsonl"]
    assert sum(detector.batches) == 9
    assert [len(line["detections"]) for line in lines(tmp_path / "out" / "clip.jsonl")] == [1, 0, 0] * 3


@pytest.mark.parametrize(("scores", "said"), [((0.9, 0.1), False), ((0.9, 0.8), True)])
def test_a_limit_is_told_if_it_may_cost_detections_of_the_score(
    tmp_path: Path, scores: tuple[float, float], said: bool
) -> None:
    found = Detections.concatenate([one_box(score) for score in scores])
    detector = KnowingDetector([replace(found, limited=np.zeros(1, dtype=np.int64))])
    write_clip(tmp_path / "clip.mp4", [drawn(k) for k in range(3)])
    notes = detect(tmp_path / "clip.mp4", tmp_path / "out", detector, track=True, score=0.3).notes
    assert any("3 of 3 images reached a limit" in note and "score ≥ 0.3" in note for note in notes) is said


def test_frames_for_programs(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", [drawn(k) for k in range(20)])
    seen = list(retinanet.frames(KnowingDetector([one_box()]), tmp_path / "clip.mp4", track=True))
    assert [frame.number for frame in seen] == [number_of(frame.image) for frame in seen] == list(range(20))
    assert all(isinstance(frame.found, supervision.Detections) for frame in seen)
    assert [frame.found.tracker_id.tolist() for frame in seen if frame.found.tracker_id is not None] == [[1]] * 20


def test_a_program_may_stop_early(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", [drawn(k) for k in range(60)])
    before = threading.active_count()
    for frame in retinanet.frames(KnowingDetector([one_box()]), tmp_path / "clip.mp4"):
        if frame.number == 3:
            break
    time.sleep(0.5)
    assert threading.active_count() <= before


def test_sequences_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "shots"
    folder.mkdir()
    for k in (1, 2, 9, 10, 11):
        Image.fromarray(drawn(k)).save(folder / f"frame_{k}.png")
    (folder / "frame_11.png").write_bytes(b"broken")
    (folder / "other.txt").write_text("no frame")
    for source in (f"{folder}/frame_%d.png", str(folder)):
        run = detect(source, tmp_path / "out", frame_rate=10)
        assert run.frames == 4
        assert any("broken frames: 1" in note for note in run.notes)
    clip = read_clip(tmp_path / "out" / "shots.mp4")
    assert clip.numbers == [1, 2, 9, 10]  # in the order of numbers, not of letters
    assert clip.times == [Fraction(k, 10) for k in range(4)]


@pytest.mark.parametrize("broken", [0, 1, 3])
def test_a_broken_image_of_a_sequence_is_survived_in_any_position(tmp_path: Path, broken: int) -> None:
    folder = tmp_path / "shots"
    folder.mkdir()
    for k in range(4):
        Image.fromarray(drawn(k)).save(folder / f"{k}.png")
    (folder / f"{broken}.png").write_bytes(b"broken")
    run = detect(folder, tmp_path / "out")
    assert run.frames == 3
    assert any(f"{broken}.png" in note for note in run.notes)
    assert read_clip(tmp_path / "out" / "shots.mp4").numbers == [k for k in range(4) if k != broken]


def test_a_truncated_clip_gives_the_frames_that_are_there(tmp_path: Path) -> None:
    write_clip(tmp_path / "whole.mp4", [drawn(k) for k in range(90)])
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    run = detect(tmp_path / "cut.mp4", tmp_path / "out")
    assert 20 < run.frames < 90
    assert "truncated" in run.notes[-1]
    numbers = read_clip(tmp_path / "out" / "cut.mp4").numbers
    assert numbers == list(range(len(numbers)))


def test_damage_in_the_middle_is_counted_and_survived(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.ts", [drawn(k) for k in range(90)], key_every=5)
    data = bytearray((tmp_path / "clip.ts").read_bytes())
    third = len(data) // 3
    data[third : third + 3000] = bytes(k * 7 % 256 for k in range(3000))
    (tmp_path / "damaged.ts").write_bytes(data)
    run = detect(tmp_path / "damaged.ts", tmp_path / "out")
    assert any("broken frames" in note for note in run.notes)
    assert read_clip(tmp_path / "out" / "damaged.mp4").numbers[-10:] == list(range(80, 90))


def test_a_clip_that_changes_its_size_keeps_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for k, size in enumerate([(240, 320), (240, 320), (480, 640)]):
        Image.fromarray(drawn(k, size)).save(folder / f"{k}.png")
    run = detect(folder, tmp_path / "out")
    assert any("frames scaled to the size of the first: 1" in note for note in run.notes)
    assert read_clip(tmp_path / "out" / "mixed.mp4").size == (240, 320)


class Interrupting(KnowingDetector):
    """Simulates Ctrl-C in the tenth batch."""

    def detect_scaled(self, images: Any, score: float | None = None, limit: int | None = None) -> list[Detections]:
        if len(self.batches) == 10:
            raise KeyboardInterrupt
        return super().detect_scaled(images, score, limit)


def test_a_stopped_run_leaves_a_playable_file(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", [drawn(k) for k in range(90)], audio="aac")
    with pytest.raises(VideoStopped, match=r"stopped after 20 frames, which are in clip\.jsonl and clip\.mp4"):
        detect(tmp_path / "clip.mp4", tmp_path / "out", Interrupting([one_box()]), batch=2)
    assert read_clip(tmp_path / "out" / "clip.mp4").numbers == list(range(20))
    assert len(lines(tmp_path / "out" / "clip.jsonl")) == 20
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["clip.jsonl", "clip.mp4"]


def no_codec(folder: Path) -> Path:
    write_clip(folder / "codec.mp4", [drawn(0)])
    (folder / "codec.mp4").write_bytes((folder / "codec.mp4").read_bytes().replace(b"avc1", b"zzzz"))
    return folder / "codec.mp4"


def no_video(folder: Path) -> Path:
    (folder / "text.mp4").write_text("no video" * 100)
    return folder / "text.mp4"


def empty(folder: Path) -> Path:
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4"


def sound(folder: Path) -> Path:
    with av.open(str(folder / "sound.mkv"), "w") as container:
        stream = container.add_stream("aac", rate=44_100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4410), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 44_100
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return folder / "sound.mkv"


def no_frames(folder: Path) -> Path:
    write_clip(folder / "none.mkv", [drawn(k) for k in range(30)])
    data = (folder / "none.mkv").read_bytes()
    (folder / "none.mkv").write_bytes(data[:750])  # the header only
    return folder / "none.mkv"


def broken_images(folder: Path) -> Path:
    (folder / "images").mkdir()
    for k in range(3):
        (folder / "images" / f"{k}.png").write_bytes(b"broken")
    return folder / "images"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.mp4")
    return folder / "pipe.mp4"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_codec, "codec is unknown"),
        (no_video, "is no video"),
        (empty, "is no video"),
        (sound, "no video stream"),
        (no_frames, "no frame that can be decoded"),
        (broken_images, "none of its 3 images can be opened; first: .*0.png"),
        (pipe, "is a named pipe"),
        (lambda folder: folder / "missing.mp4", "no such file"),
    ],
    ids=["codec", "text", "empty", "sound", "no frames", "broken images", "pipe", "missing"],
)
def test_bad_videos_give_one_line(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        detect(make(tmp_path), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_bad_video_does_not_stop_the_others(tmp_path: Path) -> None:
    write_clip(tmp_path / "good.mp4", [drawn(k) for k in range(5)])
    sources = [str(no_video(tmp_path)), str(tmp_path / "good.mp4")]
    runs, errors = detect_videos(KnowingDetector([one_box()]), sources, tmp_path / "out", VideoOptions())
    assert [run.frames for run in runs] == [5]
    assert "text.mp4" in errors[0]


def test_the_record_of_an_image_run_is_never_replaced(tmp_path: Path) -> None:
    write_clip(tmp_path / "detections.mp4", [drawn(k) for k in range(5)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "detections.jsonl").write_text("record")
    run = detect(tmp_path / "detections.mp4", tmp_path / "out")
    assert run.written == ["detections-2.jsonl", "detections-2.mp4"]
    assert (tmp_path / "out" / "detections.jsonl").read_text() == "record"


def test_the_source_is_never_replaced(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", [drawn(k) for k in range(5)])
    before = (tmp_path / "clip.mp4").read_bytes()
    with pytest.raises(ConfigError, match="would replace a source"):
        detect(tmp_path / "clip.mp4", tmp_path)
    assert (tmp_path / "clip.mp4").read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["clip.mp4"]


def test_another_source_is_never_replaced(tmp_path: Path) -> None:
    clips = [tmp_path / "x" / "clip.mkv", tmp_path / "y" / "clip.mp4"]
    for clip in clips:
        clip.parent.mkdir()
        write_clip(clip, [drawn(k) for k in range(5)])
    before, detector = clips[1].read_bytes(), KnowingDetector([one_box()])
    with pytest.raises(ConfigError, match=r"y/clip\.mp4 would replace a source"):
        detect_videos(detector, [str(each) for each in clips], tmp_path / "y", VideoOptions())
    assert not detector.batches
    assert clips[1].read_bytes() == before
    assert [each.name for each in clips[1].parent.iterdir()] == ["clip.mp4"]


def test_a_source_with_another_suffix_may_lie_beside_the_output(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mkv", [drawn(k) for k in range(5)])
    assert detect(tmp_path / "clip.mkv", tmp_path).written == ["clip.jsonl", "clip.mp4"]


def test_a_folder_that_vanishes_half_way_is_an_error_of_one_line(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", [drawn(k) for k in range(60)])

    class Removing(KnowingDetector):
        def detect_scaled(self, images: Any, score: float | None = None, limit: int | None = None) -> list[Detections]:
            if len(self.batches) == 3:
                (tmp_path / "out").rename(tmp_path / "moved")
            return super().detect_scaled(images, score, limit)

    with pytest.raises(RetinaNetError, match="cannot be written"):
        detect(tmp_path / "clip.mp4", tmp_path / "out", Removing([one_box()]))


def test_a_full_disk_is_an_error_of_one_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    write_clip(tmp_path / "clip.mp4", [drawn(k) for k in range(60)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "clip.jsonl").symlink_to("/dev/full")
    with pytest.raises(RetinaNetError, match="free some space"):
        detect(tmp_path / "clip.mp4", tmp_path / "out")


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"score": 1.0}, {"batch": 0}, {"frame_rate": 0.0}, {"score": 0.0, "track": True}):
        with pytest.raises(ConfigError):
            VideoOptions(**wrong)
