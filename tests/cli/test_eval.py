"""``retinanet eval`` with one detector: metrics, classes and splits."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import retinanet
from commands import Command, next_command
from retinanet import cli
from retinanet.data.formats.open_dataset import read_split
from retinanet.data.synthetic import CLASSES
from retinanet.training.distributed import Processes
from retinanet.training.validation import validate
from retinanet.zoo import weights as zoo

SUMMARY = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


@pytest.fixture(scope="session")
def evaluated(weights: Path, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("evaluated") / "eval"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        words = ["eval", weights, parts, "--out", out, "--precision", "fp32", "--device", "cpu"]
        assert cli.main(list(map(str, words))) == 0
    return out, said.getvalue()


def test_eval_writes_metrics_and_report(evaluated: tuple[Path, str], weights: Path) -> None:
    out, said = evaluated
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics) == [*SUMMARY, "per_class", "voc", "limits", "diagnosis"]
    assert all(isinstance(metrics[name], float) for name in SUMMARY)
    assert set(metrics["per_class"]) == set(CLASSES)
    diagnosis = metrics["diagnosis"]
    assert diagnosis["AP"] == pytest.approx(metrics["AP"], abs=1e-6)
    page = (out / "report.html").read_text()
    assert 'src="http' not in page
    assert 'href="http' not in page
    words = next_command(said)
    assert words[:2] == ["detect", str(weights)]
    assert Path(words[2]).is_file()


def annotate_with_its_own_detections(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    """Make most of what the detector finds, a little smaller, the truth: the numbers of an untrained one are zeros."""
    assert run("eval", weights, parts, "--out", tmp_path / "first", "--precision", "fp32", "--device", "cpu").code == 0
    file = parts / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"] = []
    for number, found in enumerate(json.loads((tmp_path / "first" / "detections.json").read_text())):
        x, y, width, height = found["bbox"]
        if number % 3 == 0 or min(width, height) < 4:
            continue
        cut = (number % 7) / 21.3 * width
        box = [x + cut, y, width - cut, height * (1 - (number % 5) / 17.9)]  # IoUs far from 0.5, 0.55, …
        row = {"id": number + 1, "image_id": found["image_id"], "category_id": found["category_id"], "bbox": box}
        content["annotations"].append({**row, "area": box[2] * box[3], "iscrowd": int(number % 11 == 1)})
    file.write_text(json.dumps(content))


def test_eval_numbers_are_those_of_pycocotools(run: Command, weights: Path, own_parts: Path, tmp_path: Path) -> None:
    annotate_with_its_own_detections(run, weights, own_parts, tmp_path)
    out = tmp_path / "second"
    said = run("eval", weights, own_parts, "--out", out, "--precision", "fp32", "--device", "cpu")
    assert said.code == 0
    metrics = json.loads((out / "metrics.json").read_text())
    diagnosis = metrics["diagnosis"]
    assert f"best threshold: {diagnosis['threshold']:.2f} (F1 {diagnosis['f1']:.3f})" in said.out
    costs = {kind: diagnosis["errors"]["costs"][kind] for kind in ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")}
    worst = max(costs, key=lambda kind: costs[kind])
    assert f"({worst}) cost the most: {costs[worst]:.3f} AP50" in said.out
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(own_parts / "instances_val.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(out / "detections.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert 0.1 < metrics["AP"] < metrics["AP50"] < 1
    for name, value in zip(SUMMARY, evaluation.stats, strict=True):
        assert metrics[name] == pytest.approx(value, abs=1e-6), name


def test_the_best_threshold_of_a_training_is_that_of_auto(
    run: Command, weights: Path, own_parts: Path, tmp_path: Path
) -> None:
    photos = own_parts / "images"
    refused = run.fails("detect", weights, photos, "--out", tmp_path / "no", "--score", "auto", code=2)
    assert "these weights store no threshold; find it with 'retinanet eval'" in refused
    annotate_with_its_own_detections(run, weights, own_parts, tmp_path)
    said = run("eval", weights, own_parts, "--out", tmp_path / "second", "--precision", "fp32", "--device", "cpu")
    best = json.loads((tmp_path / "second" / "metrics.json").read_text())["diagnosis"]["threshold"]
    assert f"best threshold: {best:.2f}" in said.out

    model, info = zoo.load_weights(weights)
    config = replace(info.config, train=replace(info.config.train, precision="fp32", device="cpu"))
    val_set = read_split(own_parts, "val")
    metrics, _ = validate(model, config, val_set, Processes(), info.objects)
    assert metrics["threshold"] == best
    background = replace(val_set, ignore=np.ones_like(val_set.ignore))  # no objects
    assert "threshold" not in validate(model, config, background, Processes(), info.objects)[0]

    stored = tmp_path / "w.safetensors"
    zoo.save_weights(stored, dict(model.state_dict()), replace(info, metrics=metrics))
    for score in ("auto", best):
        said = run("detect", stored, photos, "--out", tmp_path / str(score), "--score", score)
        assert said.code == 0
        assert f"(score ≥ {best:g})" in said.out
    files = [tmp_path / str(score) / "detections.csv" for score in ("auto", best)]
    assert files[0].read_bytes() == files[1].read_bytes()
    detector, photo = retinanet.load(stored), sorted(photos.iterdir())[0]
    found = detector(photo, score="auto")
    assert len(found) == len(detector(photo, score=best)) > 0
    assert found.confidence is not None
    assert found.confidence.min() >= best


def test_eval_goes_beside_the_weights_and_knows_splits(
    run: Command, weights: Path, parts: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copy(weights, tmp_path / "w.safetensors"))
    said = run("eval", own, parts, "--split", "train")
    assert said.code == 0
    assert "9 images" in said.out
    assert (tmp_path / "eval" / "metrics.json").is_file()
    assert "no split 'nowhere'" in run.fails("eval", own, parts, "--split", "nowhere")


def test_eval_of_a_detector_that_finds_nothing(
    run: Command, trained: tuple[Path, str], parts: Path, tmp_path: Path
) -> None:
    untrained = tmp_path / "w.safetensors"
    model, info = zoo.load_weights(trained[0] / "best.safetensors")
    torch.nn.init.constant_(model.classification.predict.bias, -20.0)  # type: ignore[arg-type]
    zoo.save_weights(untrained, dict(model.state_dict()), info)
    assert run("eval", untrained, parts).code == 0
    assert json.loads((tmp_path / "eval" / "detections.json").read_text()) == []
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["AP"] == 0


def test_eval_of_unknown_classes(run: Command, weights: Path, own_parts: Path, tmp_path: Path) -> None:
    file = own_parts / "instances_val.json"
    file.write_text(file.read_text().replace('"gear"', '"sprocket"'))
    said = run("eval", weights, own_parts, "--out", tmp_path / "e")
    assert said.code == 0
    assert "class that train lacks, kept, its AP is 0: 'sprocket' has" in said.out
    content = json.loads(file.read_text())
    content["categories"] = [{**c, "name": f"other {c['id']}"} for c in content["categories"]]
    file.write_text(json.dumps(content))
    assert "class 'other" in run.fails("eval", weights, own_parts)


def test_eval_matches_classes_by_name(
    run: Command, evaluated: tuple[Path, str], weights: Path, own_parts: Path, tmp_path: Path
) -> None:
    file = own_parts / "instances_val.json"
    content = json.loads(file.read_text())
    numbers = {c["id"]: 90 - c["id"] for c in content["categories"]}  # other ids, in another order
    for category in content["categories"]:
        category["id"] = numbers[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = numbers[annotation["category_id"]]
    file.write_text(json.dumps(content))
    assert run("eval", weights, own_parts, "--out", tmp_path / "e", "--precision", "fp32", "--device", "cpu").code == 0
    renumbered, expected = (json.loads((p / "metrics.json").read_text()) for p in (tmp_path / "e", evaluated[0]))
    assert {k: renumbered[k] for k in SUMMARY} == {k: expected[k] for k in SUMMARY}
    assert renumbered["per_class"] == expected["per_class"]


def test_broken_image_at_eval_is_one_line(run: Command, weights: Path, own_parts: Path, tmp_path: Path) -> None:
    # Two batches, so that a worker process meets it; its traceback must stay there.
    broken = own_parts / "images" / "000002.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    line = run.fails("eval", weights, own_parts, "--split", "train", "--out", tmp_path / "eval")
    assert str(broken) in line
    assert "Traceback" not in line
    assert "worker" not in line
