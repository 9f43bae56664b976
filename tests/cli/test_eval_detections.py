"""``retinanet eval --detections``: files of detections that this or another program wrote."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval_runs import CPU, Eval, annotate_with, pycocotools_numbers, read, write_peer_detections
from retinanet.cli import main
from retinanet.evaluation.coco_ap import SUMMARY


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinanet.evaluation.compare.RESAMPLES", 50)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Eval:
    return Eval(capsys)


@pytest.fixture(scope="session")
def peer_file(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_peer_detections(parts, tmp_path_factory.mktemp("peer") / "torchvision.json")


@pytest.fixture
def own_parts(parts: Path, peer_file: Path, tmp_path: Path) -> Path:
    """A copy of the sample dataset, annotated with some of the detections, without info and licenses."""
    folder = Path(shutil.copytree(parts, tmp_path / "own parts"))
    annotate_with(folder, peer_file)
    return folder


def test_torchvision_file_has_pycocotools_numbers(run: Eval, own_parts: Path, peer_file: Path, tmp_path: Path) -> None:
    said = run("--detections", peer_file, own_parts, "--out", tmp_path / "out")
    assert len(read(peer_file)) > 300
    metrics = read(tmp_path / "out" / "metrics.json")
    assert list(metrics) == [*SUMMARY, "per_class", "voc", "limits", "diagnosis"]
    assert [metrics[name] for name in SUMMARY] == pytest.approx(
        pycocotools_numbers(own_parts / "instances_val.json", peer_file), abs=1e-9
    )
    assert 0.02 < metrics["AP"] < metrics["AP50"] < 0.98
    assert 0.02 < metrics["voc"]["mAP"] < 0.98
    assert f"Pascal VOC: mAP {metrics['voc']['mAP']:.3f}, by 11 points {metrics['voc']['mAP11']:.3f}" in said
    assert f"{peer_file} on own parts [val]" in (tmp_path / "out" / "report.html").read_text()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["metrics.json", "report.html"]
    assert said.strip().splitlines()[-1].startswith("next: retinanet train ")


def test_results_go_beside_the_file(run: Eval, own_parts: Path, peer_file: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(peer_file, tmp_path / "found.json"))
    run("--detections", file, own_parts)
    assert (tmp_path / "eval" / "report.html").is_file()
    run("--detections", file, "--detections", peer_file, own_parts, "--out", tmp_path / "both")
    run("--detections", peer_file, own_parts, "--detections", file)
    assert (tmp_path / "compare" / "compare.html").is_file()
    assert read(tmp_path / "both" / "compare.json")["b"] == str(peer_file)


def test_detections_of_a_voc_dataset_by_name(run: Eval, own_parts: Path, peer_file: Path, tmp_path: Path) -> None:
    """A dataset without ids: images are given by stem, classes by name."""
    assert main(["data", "convert", str(own_parts), str(tmp_path / "voc"), "--to", "voc"]) == 0
    content = read(own_parts / "instances_val.json")
    stems = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    rows = [
        {**row, "image_id": stems[row["image_id"]], "category_name": names[row["category_id"]], "category_id": 99}
        for row in read(peer_file)
    ]
    (tmp_path / "named.json").write_text(json.dumps(rows))
    run("--detections", tmp_path / "named.json", tmp_path / "voc", "--out", tmp_path / "a")
    run("--detections", peer_file, own_parts, "--out", tmp_path / "b")
    by_name, by_id = (read(tmp_path / side / "metrics.json") for side in "ab")
    for name in ("AP", "AP50", "AP75", "AR100"):  # areas, and with them the sizes, are not held by VOC
        assert by_name[name] == pytest.approx(by_id[name], abs=1e-9)
    assert by_name["voc"]["mAP11"] == pytest.approx(by_id["voc"]["mAP11"], abs=1e-9)


def test_what_detect_wrote_can_be_evaluated(run: Eval, weights: Path, parts: Path, tmp_path: Path) -> None:
    """Its ids count the given images; images are matched by name."""
    images = [parts / "images" / image["file_name"] for image in read(parts / "instances_val.json")["images"]]
    words = ["detect", weights, *reversed(images), "--out", tmp_path / "d", "--score", "0.05", *CPU]
    assert main(list(map(str, words))) == 0
    said = run("--detections", tmp_path / "d" / "detections.json", parts, "--out", tmp_path / "file")
    assert "left out" not in said
    run(weights, parts, "--out", tmp_path / "model", *CPU)
    ours, theirs = (read(tmp_path / side / "metrics.json") for side in ("file", "model"))
    assert ours["AP50"] == pytest.approx(theirs["AP50"], abs=0.02)  # boxes and scores are rounded there


def test_no_detection_at_all(run: Eval, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("[]")
    said = run("--detections", tmp_path / "none.json", parts)
    assert "note: " in said
    assert "holds no detection" in said
    metrics = read(tmp_path / "eval" / "metrics.json")
    assert metrics["AP"] == metrics["voc"]["mAP"] == 0
    assert (tmp_path / "eval" / "report.html").is_file()


def test_crowds_alone(run: Eval, own_parts: Path, peer_file: Path, tmp_path: Path) -> None:
    content = read(own_parts / "instances_val.json")
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    (own_parts / "instances_val.json").write_text(json.dumps(content))
    said = run("--detections", peer_file, own_parts, "--out", tmp_path / "out")
    assert "Pascal VOC" not in said
    metrics = read(tmp_path / "out" / "metrics.json")
    assert [metrics[name] for name in SUMMARY] == [-1] * 12
    assert metrics["voc"] == {"mAP11": -1, "mAP": -1, "per_class": {}}
    said = run("--detections", peer_file, "--detections", peer_file, own_parts, "--out", tmp_path / "both")
    assert "There are no objects, so nothing can be measured." in said
    assert read(tmp_path / "both" / "compare.json")["AP"]["delta"] is None


def test_bad_files_take_one_line_and_leave_nothing(run: Eval, parts: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    for content, said in (
        ("", "the file is empty"),
        ("no", "not valid JSON"),
        (json.dumps(read(parts / "instances_val.json")), "has no 'score'; give a file of detections"),
        (
            '[{"image_id": 12345, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]',
            "1 of 1 detections are of images",
        ),
        ('[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": NaN}]', "detection 1 has score nan"),
    ):
        file.write_text(content)
        assert said in run.fails("--detections", file, parts)
        assert said in run.fails("--detections", file, "--detections", file, parts, "--out", tmp_path / "eval")
    assert not (tmp_path / "eval").exists()
    assert "no such file" in run.fails("--detections", tmp_path / "none.json", parts)


def test_page_without_the_images_that_cannot_be_shown(
    run: Eval, own_parts: Path, peer_file: Path, tmp_path: Path
) -> None:
    """Detections can be evaluated without the image files."""
    names = [image["file_name"] for image in read(own_parts / "instances_val.json")["images"]]
    whole = run("--detections", peer_file, own_parts, "--out", tmp_path / "whole")
    assert "cannot be shown" not in whole
    (own_parts / "images" / names[0]).unlink()
    with Image.open(own_parts / "images" / names[1]) as image:
        small = image.resize((48, 48))
    small.save(own_parts / "images" / names[1])
    text = run("--detections", peer_file, own_parts, "--out", tmp_path / "part").replace("\n", " ")
    assert "note: 2 images cannot be shown on the page; the first: " in text
    assert read(tmp_path / "whole" / "metrics.json") == read(tmp_path / "part" / "metrics.json")
    page = (tmp_path / "part" / "report.html").read_text(encoding="utf-8")
    assert "2 images cannot be shown" in page
    assert names[2] in page
    shown = re.findall(r"<figcaption>([^<]*)", page)
    assert not any(name in caption for name in names[:2] for caption in shown)


def test_real_data_has_pycocotools_numbers(run: Eval, shared_data: Path, tmp_path: Path) -> None:
    """Crowds, mask areas and coordinates with decimals: two imprecise detections of every object of a COCO dataset."""
    data = shared_data / "coco_person"
    rng = np.random.default_rng(0)
    rows = []
    for annotation in read(data / "instances_val.json")["annotations"]:
        x, y, width, height = annotation["bbox"]
        for score in rng.uniform(size=2):
            moved = [x + rng.normal(0, 0.08) * width, y, width * rng.uniform(0.8, 1.2), height]
            row = {"image_id": annotation["image_id"], "category_id": annotation["category_id"], "bbox": moved}
            rows.append({**row, "score": float(score)})
    (tmp_path / "found.json").write_text(json.dumps(rows))
    run("--detections", tmp_path / "found.json", data)
    metrics = read(tmp_path / "eval" / "metrics.json")
    expected = pycocotools_numbers(data / "instances_val.json", tmp_path / "found.json")
    assert [metrics[name] for name in SUMMARY] == pytest.approx(expected, abs=5e-4)  # clipped, and float32
