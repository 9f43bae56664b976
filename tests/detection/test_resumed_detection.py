"""A run of ``retinanet detect`` that is killed and resumed gives the files of an uninterrupted run."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from killed_detection import run, without_sync
from retinanet.detection.run import detect
from retinanet.detection.tile_plan import TileOptions
from retinanet.detection.write import OutputFormat
from retinanet.errors import CheckpointError, DataError, RetinaNetError
from stub_detector import StubDetector


def write_images(folder: Path, count: int) -> Path:
    """Small images of two sizes; a few cannot be read, and two share a name."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number % 7}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = 20 if rng.random() < 0.3 else 40
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
        if number % 50 == 10:
            path.write_bytes(b"no image")
    shutil.copy(folder / "0" / "000.png", folder / "0" / "000.bmp.png")
    Image.new("RGB", (20, 20)).save(folder / "0" / "000.bmp")
    return folder


def contents(out: Path) -> dict[str, bytes]:
    """The content of all files below ``out``."""
    paths = [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def _environment() -> dict[str, str]:
    """The environment of a script that imports the helpers of the tests."""
    folders = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": os.pathsep.join(filter(None, folders))}


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", without_sync)


def test_killed_and_resumed_run_gives_the_same_files(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 250)
    run(folder, tmp_path / "whole", resume=False)
    script = Path(__file__).with_name("killed_detection.py")
    command = [sys.executable, str(script), str(folder), str(tmp_path / "killed"), "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert [name for name in whole if whole[name] != killed[name]] == []
    assert len(whole["failed.txt"].splitlines()) == 5
    assert "0/000-2.jpg" in whole  # two images share the name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """30 images, all readable but one."""
    return write_images(tmp_path / "images", 30)


def test_finished_run_goes_on_with_new_images(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = detect(StubDetector(), folder, out)
    assert (first.images, first.failed, first.resumed) == (31, 1, 0)
    again = StubDetector()
    same = detect(again, folder, out, resume=True)
    assert (same.images, same.failed, same.resumed, same.counts) == (31, 1, 32, first.counts)
    assert again.batches == []
    assert same.speed == ""
    Image.new("RGB", (20, 20), (3, 3, 3)).save(folder / "0" / "000.jpg")
    more = detect(again, folder, out, resume=True)
    assert (more.images, more.resumed) == (32, 32)
    assert len(again.batches) == 1  # with the earlier images that would share its batch
    assert (out / "0" / "000-3.jpg").exists()


def test_record_may_lie_in_the_folder_of_the_images(folder: Path) -> None:
    first = detect(StubDetector(), folder, folder / "out")
    again = detect(StubDetector(), folder, folder / "out", resume=True)
    assert again.images == again.resumed - 1 == first.images


def test_failing_output_half_way_tells_how_to_go_on(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "3").write_text("in the place of a folder")
    with pytest.raises(RetinaNetError, match=r"cannot be written \(.*\); choose another folder; then go on with"):
        detect(StubDetector(), folder, out)
    (out / "3").unlink()
    resumed = detect(StubDetector(), folder, out, resume=True)
    detect(StubDetector(), folder, tmp_path / "whole")
    assert resumed.resumed > 10
    assert contents(out) == contents(tmp_path / "whole")


def test_ctrl_c_tells_how_to_go_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(StubDetector):
        def detect_scaled(self, *args: object, **more: object) -> list[object]:  # type: ignore[override]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="stopped; the results so far are in"):
        detect(Stopped(), folder, tmp_path / "out")


def test_other_weights_or_settings_are_refused(folder: Path, tmp_path: Path) -> None:
    class Other(StubDetector):
        def fingerprint(self) -> str:
            return "other"

    out = tmp_path / "out"
    detect(StubDetector(), folder, out)
    before = contents(out)
    with pytest.raises(CheckpointError, match=r"has weights .* \(now other\)"):
        detect(Other(), folder, out, resume=True)
    with pytest.raises(CheckpointError, match=r"has score 0.3 \(now 0.5\)"):
        detect(StubDetector(), folder, out, resume=True, score=0.5)
    assert contents(out) == before
    detect(StubDetector(), folder, out, resume=True, formats="csv")


def test_missing_images_of_a_list_are_told_at_the_end(folder: Path, tmp_path: Path) -> None:
    (folder / "list.txt").write_text("0/000.png\nnowhere.png\n0/007.png\n0/000.png\n")
    result = detect(StubDetector(), f"@{folder / 'list.txt'}", tmp_path / "out")
    assert (result.images, result.failed) == (2, 1)
    assert "list.txt:2" in result.failures[0]
    assert (tmp_path / "out" / "failed.txt").read_text() == result.failures[0] + "\n"


def test_urls_are_refused_unless_they_are_allowed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="URLs are read only if they are allowed"):
        detect(StubDetector(), "https://example.org/x.jpg", tmp_path / "out")


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("a.jpg\n", []),
        ("c/b.png\na.jpg\n", ["c"]),
        ("a.png\na.jpg\n", []),
        ("a.png\n", ["b.png"]),
        ("", ["a.jpg", "b.png"]),
    ],
)
def test_piped_paths_never_overwrite_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, others: list[str]
) -> None:
    (tmp_path / "c").mkdir()
    for name in ("a.jpg", "a.png", "b.png", "c/b.png"):
        Image.new("RGB", (20, 20), (1, 2, 3)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    before = (tmp_path / "a.jpg").read_bytes()
    piped(monkeypatch, text)
    with pytest.raises(DataError, match=r"the drawn a\.jpg would replace .*; choose another --out$"):
        detect(StubDetector(), ["-", *others], ".")
    assert (tmp_path / "a.jpg").read_bytes() == before


def test_piped_paths_may_be_detected_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(path) for path in sorted(folder.rglob("*.png"))]
    for names in (paths[:3], paths[3:6], paths[:3]):
        piped(monkeypatch, "\n".join(names))
        assert detect(StubDetector(), "-", tmp_path / "out").images == 3
    piped(monkeypatch, "\n".join(paths[:6]))
    assert detect(StubDetector(), "-", tmp_path / "out", resume=True).resumed == 3


@pytest.mark.parametrize(
    ("formats", "name"),
    [
        ("yolo", "labels/a.txt"),
        ("yolo", "labels/train/a.txt"),
        ("yolo", "classes.txt"),
        ("voc", "annotations/a.xml"),
        ("coco", "detections.json"),
        ("csv", "detections.csv"),
        ("jsonl", "detections.jsonl"),
        ("csv", "failed.txt"),
    ],
)
def test_files_that_no_run_has_written_are_not_replaced(folder: Path, formats: OutputFormat, name: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("ground truth")
    for _ in range(2):
        with pytest.raises(DataError, match=rf"{name.split('/')[0]} is a .* that no run of .* choose another --out$"):
            detect(StubDetector(), folder / "0", folder, formats=formats, draw=False)
    assert path.read_text() == "ground truth"
    assert not (folder / ".lock").exists()


def test_results_of_earlier_runs_are_replaced(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    every: tuple[OutputFormat, ...] = ("yolo", "voc", "csv")
    for formats in (every, ("coco",), every):
        detect(StubDetector(), folder, out, formats=formats)
    detect(StubDetector(), folder, out, formats=(*every, "coco"), resume=True)
    (out / ".detections.written.json").unlink()  # an output folder of an older version
    detect(StubDetector(), folder, out, formats=every)


def test_ground_truth_beside_an_earlier_run_is_not_replaced(folder: Path) -> None:
    detect(StubDetector(), folder / "0", folder, draw=False)
    (folder / "labels").mkdir()
    (folder / "labels" / "000.txt").write_text("ground truth")
    for note in (folder / ".detections.written.json", folder / "gone"):
        with pytest.raises(DataError, match="labels is a folder with files that no run"):
            detect(StubDetector(), folder / "0", folder, formats="yolo", draw=False)
        note.unlink(missing_ok=True)


def test_tiles_that_are_too_large_are_noted(folder: Path, tmp_path: Path) -> None:
    large = detect(StubDetector(), folder, tmp_path / "large", tile=2000).notes
    assert "no image is larger than a tile (40×40 pixels at most)" in large[1]
    assert "at scale 1, the largest image (40×40 pixels) has a side of 0.64 pixels in the network's input" in large[2]
    resumed = detect(StubDetector(), folder, tmp_path / "large", tile=2000, resume=True)
    assert resumed.notes == large
    [only] = detect(StubDetector(), folder, tmp_path / "out", tile=TileOptions(64, 0, (1.0,))).notes[:1]
    assert only.startswith("tiles of 64 pixels")
    gone = tmp_path / "gone.txt"
    gone.write_text("gone.jpg\n")
    assert len(detect(StubDetector(), f"@{gone}", tmp_path / "none", tile=2000).notes) == 1
