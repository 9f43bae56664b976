"""``retinanet detect`` with videos: files, exit codes and messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clips import drawn, read_clip, write_clip
from commands import Command
from retinanet.data.images import read_image


@pytest.fixture
def clip(parts: Path, tmp_path: Path) -> Path:
    """Ten frames with images of the sample dataset, of 96 × 96 pixels."""
    images = sorted((parts / "images").glob("*.jpg"))[:10]
    write_clip(tmp_path / "clip.mp4", [read_image(path) for path in images])
    return tmp_path / "clip.mp4"


def test_detect_and_track_in_a_video(run: Command, weights: Path, clip: Path, tmp_path: Path) -> None:
    said = run("detect", weights, clip, "--out", tmp_path / "out", "--track")
    assert said.code == 0, said
    first, second, *_, last = said.out.splitlines()
    assert first.startswith(f"{clip}: 10 frames, ")
    assert "decode" in first
    assert "network" in first
    assert second.startswith("10 frames: ")
    assert last == f"wrote clip.jsonl, clip.mp4 in {tmp_path / 'out'}"
    assert len(read_clip(tmp_path / "out" / "clip.mp4").times) == 10


@pytest.mark.parametrize("tiles", [(), ("--tile", "64", "--overlap", "12", "--tile-scales", "1", "0.5")])
def test_frames_have_the_detections_of_images(
    run: Command, weights: Path, parts: Path, tmp_path: Path, tiles: tuple[str, ...]
) -> None:
    """Lossless images of a folder give the same detections as a video and as images."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for k, path in enumerate(sorted((parts / "images").glob("*.jpg"))[:5]):
        Image.fromarray(read_image(path)).save(folder / f"{k}.png")
    said = run("detect", weights, folder, "--video", "--out", tmp_path / "v", "--no-draw", *tiles)
    assert said.code == 0
    assert ("tiles of 64 pixels" in said.out) == bool(tiles)
    assert run("detect", weights, folder, "--out", tmp_path / "i", "--no-draw", "--format", "coco", *tiles).code == 0
    content = json.loads((tmp_path / "i" / "detections.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "v" / "frames.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    for number, line in enumerate(lines):
        expected = [each for each in content["annotations"] if each["image_id"] == number + 1]
        assert len(expected) == len(line["detections"])
        for mine, other in zip(line["detections"], expected, strict=True):
            x, y, width, height = other["bbox"]
            np.testing.assert_allclose(mine["box"], [x, y, x + width, y + height], atol=0.02)
            assert mine["label"] + 1 == other["category_id"]


def test_wrong_uses_are_refused(run: Command, weights: Path, clip: Path, parts: Path, tmp_path: Path) -> None:
    photo, out = parts / "images" / "000000.jpg", tmp_path / "out"
    assert "--track follows objects through a video" in run.fails("detect", weights, photo, "--track", code=2)
    assert "one command for each kind" in run.fails("detect", weights, photo, clip, code=2)
    for name in ("csv", "coco", "yolo"):
        assert "--format is for images" in run.fails("detect", weights, clip, "--format", name, code=2)
    folder = parts / "images"
    assert "--frame-rate is 0" in run.fails("detect", weights, folder, "--video", "--frame-rate", "0", code=2)
    assert "add --video, or leave it out" in run.fails("detect", weights, photo, "--frame-rate", "5", code=2)
    assert "videos have their own" in run.fails("detect", weights, clip, "--frame-rate", "5", code=2)
    for flags in (("--resume",), ("--max-pixels", "9"), ("--ray",)):
        assert f"{flags[0]}" in (said := run.fails("detect", weights, clip, *flags, code=2))
        assert "are for images; leave them out for videos" in said
    assert "--overlap is 70, but tiles are 64" in run.fails(
        "detect", weights, clip, "--tile", "64", "--overlap", "70", "--out", out, code=2
    )
    assert not out.exists()
    assert "--web.megabytes and" in run.fails("detect", weights, clip, "--web.seconds", "5", code=2)
    assert "these weights store no threshold" in run.fails("detect", weights, clip, "--score", "auto", code=2)
    assert "no such file" in run.fails("detect", weights, tmp_path / "no.mp4", "--out", out)
    assert "webcam:97" in run.fails("detect", weights, "webcam:97", "--out", out)
    for url in ("http://[abc/x.jpg", "http://[abc/x.mp4", "rtsp://[abc/x"):
        assert "is no valid URL (Invalid IPv6 URL)" in run.fails("detect", weights, url, "--out", out)
    assert "matches no image" in run.fails("detect", weights, tmp_path / "f_%03d.png", "--out", out)


@pytest.mark.parametrize(("module", "name"), [("av", "PyAV"), ("scipy.optimize", "SciPy")])
def test_a_missing_package_is_named_with_its_extra(
    run: Command, weights: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    settings = ("retinanet.detection.web_limits",)  # their classes would not equal those of the command line
    for loaded in [each for each in sys.modules if each.startswith("retinanet.detection.") and each not in settings]:
        monkeypatch.setattr(loaded, sys.modules[loaded])  # the package gets its module back at the end
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    line = run.fails("detect", weights, clip, "--track", "--out", tmp_path / "out")
    assert f"needs {name}; install it with: pip install 'retinanet[video]'" in line


# The command with a detector that starts at once.
PROGRAM = """
import sys
from clips import KnowingDetector, one_box
from retinanet import cli
from retinanet.detection import loading

loading.load = lambda *given, **settings: KnowingDetector([one_box()])
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
def test_a_signal_leaves_a_playable_file(tmp_path: Path, number: signal.Signals, again: bool) -> None:
    write_clip(tmp_path / "long.mp4", [drawn(k % 1000, (96, 160)) for k in range(2000)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".long.99999.mp4").touch()  # of a run that was killed
    (tmp_path / "out" / ".other.99999.mp4").touch()
    words = ["detect", "any.safetensors", str(tmp_path / "long.mp4"), "--out", str(tmp_path / "out")]
    started = start(words)
    lines = tmp_path / "out" / "long.jsonl"
    limit = time.monotonic() + 120
    while time.monotonic() < limit and not (lines.exists() and lines.stat().st_size > 2000):
        time.sleep(0.05)
    os.kill(started.pid, number)
    while again and (tmp_path / "out" / f".long.{started.pid}.mp4").exists():  # until the file is complete
        os.kill(started.pid, number)
        time.sleep(0.01)
    _, said = started.communicate(timeout=120)
    assert started.returncode == 130, said
    assert said.startswith("stopped after ")
    assert len(said.strip().splitlines()) == 1
    assert "resume" not in said
    count = len(lines.read_text().splitlines())
    assert 0 < count < 2000
    assert len(read_clip(tmp_path / "out" / "long.mp4").times) == count
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [".other.99999.mp4", "long.jsonl", "long.mp4"]


def test_sigterm_ends_a_run_on_images_with_its_record_complete(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for k in range(400):
        Image.fromarray(drawn(k, (96, 160))).save(tmp_path / "photos" / f"{k:03}.png")
    words = ["detect", "any.safetensors", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    started = start(words)
    record = tmp_path / "out" / "detections.jsonl"
    limit = time.monotonic() + 120
    while time.monotonic() < limit and not (record.exists() and record.stat().st_size > 1000):
        time.sleep(0.01)
    os.kill(started.pid, signal.SIGTERM)
    _, said = started.communicate(timeout=120)
    assert started.returncode == 130, said
    assert said.startswith("stopped; the results so far are in ")
    entries = [json.loads(line) for line in record.read_text().splitlines()]
    assert 0 < len(entries) < 400
    assert start([*words, "--resume"]).wait(120) == 0
    assert len(record.read_text().splitlines()) == 400


def start(words: list[str]) -> subprocess.Popen[str]:
    """Start the command with a detector that starts at once."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
