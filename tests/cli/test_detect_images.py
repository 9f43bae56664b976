"""``retinanet detect``: sources, formats, thresholds, and images that cannot be read."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import struct
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from commands import Command


def test_detect_in_a_file(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    photo = tmp_path / "wide.png"
    with Image.open(parts / "images" / "000000.jpg") as image:
        image.resize((150, 70)).save(photo)
    said = run("detect", weights, photo, "--out", tmp_path / "out")
    assert said.code == 0
    assert said.out.startswith("1 image: ")
    written = {path.name for path in (tmp_path / "out").glob("[!.]*")}
    assert written == {"detections.csv", "detections.json", "detections.jsonl", "wide.jpg"}
    with Image.open(tmp_path / "out" / "wide.jpg") as drawn:
        assert drawn.size == (150, 70)
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": str(photo), "width": 150, "height": 70}]
    assert all(0.3 <= a["score"] <= 1 for a in content["annotations"])
    with (tmp_path / "out" / "detections.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(content["annotations"]) > 0


def test_detect_in_folder_pattern_and_several(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    images = parts / "images"
    for sources, count in (
        ([images], 12),
        ([images / "00000[0-4].jpg"], 5),
        ([images / "000003.jpg", images / "000001.jpg", images / "00000[12].jpg"], 3),
    ):
        out = tmp_path / str(count)
        said = run("detect", weights, *sources, "--out", out, "--format", "csv")
        assert said.code == 0
        assert said.out.startswith(f"{count} images: ")
        assert len(list(out.glob("*.jpg"))) == count


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("coco", "detections.json"),
        ("csv", "detections.csv"),
        ("yolo", "labels/000000.txt"),
        ("voc", "annotations/000000.xml"),
        ("jsonl", "detections.jsonl"),
    ],
)
def test_detect_formats(run: Command, weights: Path, parts: Path, tmp_path: Path, name: str, file: str) -> None:
    photo = parts / "images" / "000000.jpg"
    assert run("detect", weights, photo, "--out", tmp_path, "--format", name, "--no-draw").code == 0
    found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("[!.]*") if p.is_file()}
    assert found == {file, "detections.jsonl"} | ({"classes.txt", "labels.csv"} if name == "yolo" else set())
    assert (tmp_path / file).stat().st_size > 20


def test_detect_score(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    counts = []
    for score in (0.1, 0.3, 0.6):
        run("detect", weights, parts / "images", "--out", tmp_path, "--score", score, "--format", "coco", "--no-draw")
        scores = [a["score"] for a in json.loads((tmp_path / "detections.json").read_text())["annotations"]]
        assert min(scores) >= score
        counts.append(len(scores))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] > 0


def test_detect_in_a_file_whose_name_is_no_text(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    photo = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    try:
        shutil.copy(parts / "images" / "000000.jpg", photo)
    except OSError:
        pytest.skip("this file system has text names only")
    assert run("detect", weights, photo, "--out", tmp_path / "out").code == 0
    assert json.loads((tmp_path / "out" / "detections.json").read_text())["images"][0]["file_name"] == str(photo)
    photo.write_bytes(b"not an image")
    assert "caf\\udce9.jpg" in run.fails("detect", weights, photo, "--out", tmp_path / "out")


def test_detect_in_one_pixel(run: Command, weights: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    assert run("detect", weights, tmp_path / "dot.png", "--out", tmp_path / "out").code == 0
    with Image.open(tmp_path / "out" / "dot.jpg") as drawn:
        assert drawn.size == (1, 1)


def test_detect_refuses_giants_and_goes_on(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    giant = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "giant.png").write_bytes(giant)
    photo = parts / "images" / "000000.jpg"
    line = run.fails("detect", weights, tmp_path / "giant.png", photo, "--out", tmp_path / "out")
    assert "giant.png" in line
    assert "1 of 2" in line
    assert (tmp_path / "out" / "000000.jpg").is_file()
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())["images"]) == 1


def test_detect_beside_its_sources_is_refused(run: Command, weights: Path, own_parts: Path) -> None:
    assert "would replace an input image" in run.fails(
        "detect", weights, own_parts / "images", "--out", own_parts / "images"
    )


def test_sources_are_checked_before_the_detector_is_loaded(run: Command, tmp_path: Path) -> None:
    for source in ("nowhere.jpg", "nowhere.mp4"):
        assert f"{source}: no such file" in run.fails("detect", tmp_path / "no.safetensors", tmp_path / source)


def test_wrong_sources(run: Command, weights: Path, tmp_path: Path) -> None:
    assert "nowhere.jpg: no such file" in run.fails("detect", weights, tmp_path / "nowhere.jpg")
    assert "matches no image" in run.fails("detect", weights, tmp_path / "*.jpg")
    (tmp_path / "empty").mkdir()
    assert "contains no image" in run.fails("detect", weights, tmp_path / "empty")
    assert "name images" in run.fails("detect", weights, "--out", tmp_path / "out", code=2)


@pytest.mark.parametrize("score", ["-0.1", "1", "7"])
def test_score_out_of_range(run: Command, weights: Path, score: str) -> None:
    assert "--score" in run.fails("detect", weights, "x.jpg", f"--score={score}", code=2)


@pytest.mark.parametrize("flag", ["--threads", "--streams"])
def test_threads_and_streams_are_settings_of_exported_files(
    run: Command, weights: Path, parts: Path, flag: str
) -> None:
    photo = parts / "images" / "000000.jpg"
    assert "settings of exported files (.onnx, .xml)" in run.fails("detect", weights, photo, flag, "2", code=2)


def test_detect_in_a_list_and_piped_paths(
    run: Command, weights: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.txt").write_text(f"{parts}/images/000000.jpg\n{parts}/images/000001.jpg\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{parts}/images/000002.jpg".encode())))
    said = run("detect", weights, "-", "--list", tmp_path / "list.txt", "--out", tmp_path / "out", "--no-draw")
    assert said.code == 0, said
    assert said.out.startswith("3 images: ")
    assert "; the network waited" in said.out


def test_detect_in_a_zip_archive(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "parts"), "zip", parts, "images")
    assert run("detect", weights, archive, "--out", tmp_path / "out").out.startswith("12 images: ")
    assert (tmp_path / "out" / "images" / "000000.jpg").is_file()


def test_detect_resumes(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "holds no record of an earlier run" in run.fails(
        "detect", weights, parts / "images", "--out", out, "--resume"
    )
    whole = run("detect", weights, parts / "images", "--out", out)
    results = {path.name: path.read_bytes() for path in out.glob("[!.]*")}
    record = out / "detections.jsonl"
    record.write_bytes(record.read_bytes()[:-1500])
    said = run("detect", weights, parts / "images", "--out", out, "--resume")
    assert said.code == 0, said
    assert "of them recorded before" in said.out
    assert whole.out.splitlines()[-1] == said.out.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in out.glob("[!.]*")} == results
    assert "has score 0.3 (now 0.5)" in run.fails(
        "detect", weights, parts / "images", "--out", out, "--resume", "--score", "0.5"
    )
