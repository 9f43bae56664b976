from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import retinanet
from retinanet.detection.detector import Detector
from retinanet.detection.sources import ImageFile, detect_in_files, files_left_out, find_images
from retinanet.errors import DataError


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """b.png, a.jpg, trip/a.jpg, and files that are not images."""
    folder = tmp_path / "album"
    (folder / "trip").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "trip/a.jpg", ".thumbnail.jpg"):
        Image.new("RGB", (20, 10)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def names(sources: list[ImageFile]) -> list[str]:
    return [source.name.as_posix() for source in sources]


def test_file(album: Path) -> None:
    assert find_images([str(album / "b.png")]) == [ImageFile(album / "b.png", Path("b.png"))]


def test_folder_with_all_below_it_sorted(album: Path) -> None:
    assert names(find_images([str(album)])) == ["a.jpg", "b.png", "trip/a.jpg"]


def test_pattern(album: Path) -> None:
    assert names(find_images([str(album / "*")])) == ["a.jpg", "b.png"]
    assert names(find_images([str(album / "**" / "*.jpg")])) == ["a.jpg", "a.jpg"]
    assert names(find_images([str(album / "[b].png")])) == ["b.png"]


def test_file_whose_name_looks_like_a_pattern(album: Path) -> None:
    (album / "a.jpg").rename(album / "a[1].jpg")
    assert names(find_images([str(album / "a[1].jpg")])) == ["a[1].jpg"]


def test_several_sources_keep_their_order_without_repetition(album: Path) -> None:
    found = find_images([str(album / "b.png"), str(album), str(album / "*.png")])
    assert names(found) == ["b.png", "a.jpg", "trip/a.jpg"]


def test_suffixes_in_capitals(album: Path) -> None:
    (album / "a.jpg").rename(album / "A.JPG")
    assert "A.JPG" in names(find_images([str(album)]))


def test_loop_of_links_ends(album: Path) -> None:
    os.symlink(album, album / "trip" / "again")
    assert len(find_images([str(album)])) == 3


def test_images_behind_a_link_are_found(album: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (album / "b.png").rename(tmp_path / "disk" / "b.png")
    os.symlink(tmp_path / "disk", album / "linked")
    assert names(find_images([str(album)])) == ["a.jpg", "linked/b.png", "trip/a.jpg"]


def test_files_that_are_not_read_are_counted(album: Path) -> None:
    for name in ("1.mp4", "2.MP4", "3.dng"):
        (album / name).write_bytes(b"")
    assert [sentence.split(": ")[1:] for sentence in files_left_out([str(album)])] == [
        ["2 MP4 files left out", "videos; extract their frames, for example with ffmpeg -i FILE frames/%06d.jpg"],
        ["1 DNG file left out", "convert them to JPEG or PNG"],
    ]
    assert len(find_images([str(album)])) == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [("missing.jpg", "no such file or folder"), ("missing/*.jpg", "matches no image"), ("empty", "contains no image")],
)
def test_sources_without_images(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message) as failure:
        find_images([str(tmp_path / source)])
    assert source in str(failure.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "a source is empty"),
        (" ", "a source is empty"),
        ("https://example.org/x.jpg", "x.jpg: URLs are not supported; download"),
        ("RTSP://camera", "URLs are not supported"),
    ],
)
def test_what_is_no_path_is_refused(album: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str) -> None:
    monkeypatch.chdir(album)  # which holds images
    with pytest.raises(DataError, match=message):
        find_images([source])


def test_detections_come_in_order_and_bad_files_are_told(weights: Path, parts: Path, tmp_path: Path) -> None:
    detector: Detector = retinanet.load(weights, precision="fp32", device="cpu")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    good = find_images([str(parts / "images")])
    sources = [*good[:2], ImageFile(broken, Path("broken.jpg")), *good[2:7]]
    results = list(detect_in_files(detector, sources, score=0.3, batch=2))
    assert [result.file for result in results] == sources
    for result in results:
        if result.file.path == broken:
            assert result.image is None
            assert result.found is None
            assert result.error is not None
            assert "broken.jpg" in result.error
            continue
        assert result.error is None
        assert result.image is not None
        assert result.found is not None
        alone = detector(result.file.path, score=0.3)
        np.testing.assert_allclose(result.found.boxes, np.asarray(alone.xyxy, dtype=np.float32), atol=1e-3)
