from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from html_pages import Page
from retinanet.data.dataset import Dataset
from retinanet.data.formats.open_dataset import read_split
from retinanet.detections import Detections
from retinanet.evaluation.analysis import Analysis, analyze
from retinanet.evaluation.coco_ap import SUMMARY, coco_metrics
from retinanet.evaluation.model_evaluation import Evaluation
from retinanet.evaluation.voc_ap import voc_metrics
from retinanet.report.evaluation_page import write_report
from scenes import nothing, perfect, random_detections, random_truth


@pytest.fixture
def dataset(parts: Path) -> Dataset:
    return read_split(parts, "val")


def analyzed(dataset: Dataset, predictions: Detections) -> Analysis:
    return analyze(dataset, predictions, resamples=20)


def evaluated(dataset: Dataset, predictions: Detections, name: str = "w") -> Evaluation:
    metrics, analysis = coco_metrics(dataset, predictions), analyzed(dataset, predictions)
    return Evaluation(name, dataset, predictions, metrics, analysis)


def with_voc(evaluation: Evaluation) -> Evaluation:
    voc = voc_metrics(evaluation.dataset, evaluation.predictions)
    return replace(evaluation, metrics=replace(evaluation.metrics, voc=voc))


def report(path: Path, dataset: Dataset, predictions: Detections, weights: str = "best.safetensors") -> str:
    write_report(path / "report.html", evaluated(dataset, predictions, weights))
    return (path / "report.html").read_text(encoding="utf-8")


def test_page_is_self_contained_and_well_formed(tmp_path: Path, dataset: Dataset) -> None:
    text = report(tmp_path, dataset, perfect(dataset))
    page = Page(text)
    assert page.open == []
    assert page.images == len(dataset)
    links = [reference for reference in page.references if reference.startswith("#")]
    assert all(reference.startswith(("data:image/", "#")) for reference in page.references)
    assert {link[1:] for link in links} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    assert len(links) == 13
    assert "url(" not in text
    assert "@import" not in text
    assert "<script" not in text
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_page_tells_the_numbers(tmp_path: Path, dataset: Dataset) -> None:
    predictions = perfect(dataset)
    text = report(tmp_path, dataset, predictions)
    assert f"{len(dataset)} images, {len(predictions.scores)} objects" in text
    assert re.search(r"<small>AP</small><b>1\.000</b>", text)
    assert re.search(r"<small>AR100</small><b>1\.000</b>", text)
    for name in dataset.classes:
        assert name in text


def test_numbers_there_is_nothing_to_measure_for_are_dashes(tmp_path: Path, dataset: Dataset) -> None:
    text = report(tmp_path, dataset, perfect(dataset))  # images of 96 pixels have no object over 96² pixels
    assert re.search(r"<small>APl</small><b>–</b>", text)


def test_nothing_found(tmp_path: Path, dataset: Dataset) -> None:
    text = report(tmp_path, dataset, nothing())
    assert re.search(r"<small>AP</small><b>0\.000</b>", text)
    assert "0 detections" in text


def test_names_are_escaped(tmp_path: Path, dataset: Dataset) -> None:
    evil = "<script>alert(1)</script>"
    renamed = replace(dataset, name=evil, classes=(evil, *dataset.classes[1:]))
    text = report(tmp_path, renamed, perfect(renamed), weights=f"{evil}.safetensors")
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_voc_is_shown_if_it_was_measured(tmp_path: Path, dataset: Dataset) -> None:
    predictions = perfect(dataset)
    assert "VOC" not in report(tmp_path, dataset, predictions)
    empty = replace(dataset, ignore=np.ones_like(dataset.ignore))
    write_report(tmp_path / "report.html", with_voc(evaluated(empty, predictions)))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    for name in ("VOC mAP", "11 points"):
        assert f"<small>{name}</small><b>–</b>" in text


def test_number_of_images_is_limited(tmp_path: Path, dataset: Dataset) -> None:
    predictions = perfect(dataset)
    for limit, expected in ((2, 2), (50, len(dataset)), (1, 1)):
        write_report(tmp_path / "r.html", evaluated(dataset, predictions), images=limit)
        assert Page((tmp_path / "r.html").read_text(encoding="utf-8")).images == expected


def drawable(dataset: Dataset, folder: Path) -> Dataset:
    """Give a random dataset image files."""
    for image in dataset:
        noise = np.random.default_rng(image).integers(0, 255, (160, 200, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / dataset.files[image])
    return replace(dataset, root=folder)


def written(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


@pytest.fixture(scope="module")
def random_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str, dict[str, Any]]:
    """The page and metrics.json of random detections on random objects with ignore regions."""
    folder = tmp_path_factory.mktemp("random")
    dataset = drawable(random_truth(3, images=40, everywhere=0.3), folder)
    predictions = random_detections(dataset, 3)
    evaluation = with_voc(evaluated(dataset, predictions, "any detector"))
    write_report(folder / "report.html", evaluation)
    text = (folder / "report.html").read_text(encoding="utf-8")
    return Page(text), text, evaluation.to_dict()


def test_summary_is_that_of_the_json(random_report: tuple[Page, str, dict[str, Any]]) -> None:
    _, text, content = random_report
    cards = dict(re.findall(r"<small>([\w ]+)</small><b>([^<]+)</b>", text))
    values = {name: content[name] for name in SUMMARY}
    values |= {"VOC mAP": content["voc"]["mAP"], "11 points": content["voc"]["mAP11"]}
    assert content["voc"]["mAP"] != content["voc"]["mAP11"]
    assert cards == {name: f"{value:.3f}" if value >= 0 else "–" for name, value in values.items()}
    assert list(cards) == list(values)
    low, high = content["diagnosis"]["AP_interval"]
    assert f"(95%: {low:.3f}–{high:.3f})" in text
    assert f'<b id="best-threshold">{content["diagnosis"]["threshold"]:.2f}</b>' in text
    assert f'<b id="best-f1">{content["diagnosis"]["f1"]:.3f}</b>' in text
    assert f'<b id="calibration-error">{content["diagnosis"]["calibration"]["error"]:.3f}</b>' in text


def test_tables_are_those_of_the_json(random_report: tuple[Page, str, dict[str, Any]]) -> None:
    page, _, content = random_report
    known = content["diagnosis"]
    rows = {row[0]: row[1:] for row in page.tables["classes"][1:]}
    assert set(rows) == {"cat", "dog", "fox", "owl"}
    for name, row in rows.items():
        each = known["classes"][name]
        bounds = ["–" if b is None else f"{b[0]:.3f}–{b[1]:.3f}" for b in (each["AP_interval"], each["AP50_interval"])]
        numbers = [written(each[key]) for key in ("AP", "AP50", "AP75")]
        assert row == [
            *(str(each["objects"]), str(each["detections"]), numbers[0], "", bounds[0]),
            *(numbers[1], bounds[1], numbers[2]),
        ]
    for name, *row in page.tables["thresholds"][1:]:
        each = known["classes"][name]
        assert row == [written(each["threshold"], 2), *(written(each[key]) for key in ("f1", "precision", "recall"))]
    errors = {row[0]: (row[2], row[3]) for row in page.tables["errors"][1:]}
    counts, costs = known["errors"]["counts"], known["errors"]["costs"]
    assert errors == {kind: (str(counts[kind]), f"{costs[kind]:.3f}") for kind in counts}
    for row, count, score, right in zip(
        page.tables["calibration"][1:],
        *(known["calibration"][key] for key in ("counts", "scores", "right")),
        strict=True,
    ):
        assert row[1:] == [str(count), written(score), written(right)]
    own = {row[0]: row[1] for row in page.tables["class-calibration"][1:]}
    assert own == {name: written(each["error"]) for name, each in known["calibration"]["classes"].items()}
    histogram = known["score_histogram"]
    filled = [(str(r), str(w)) for r, w in zip(histogram["right"], histogram["wrong"], strict=True) if r or w]
    assert [tuple(row[1:]) for row in page.tables["scores"][1:]] == filled
    parts = page.tables["slices"][1:]
    assert len(parts) == len(known["slices"]) > 10
    for row, each in zip(parts, known["slices"], strict=True):
        assert row[0].endswith(each["name"])
        assert row[1:] == [
            *(str(each["objects"]), str(each["detections"]), written(each["AP"]), "", written(each["AP50"])),
            f"{each['found']:.1%}",
        ]


def test_confusion_is_that_of_the_json(random_report: tuple[Page, str, dict[str, Any]]) -> None:
    page, _, content = random_report
    head, *rows = page.tables["confusion"]
    told = {
        (row[0], column): int(count)
        for row in rows
        for column, count in zip(head[1:], row[1:], strict=True)
        if count != "0"
    }
    cells = content["diagnosis"]["confusion"]
    assert told == {(c["object"] or "nothing", c["detected"] or "nothing"): c["count"] for c in cells}


def test_curves_are_those_of_the_json(random_report: tuple[Page, str, dict[str, Any]]) -> None:
    """The points of the drawings, converted from pixels to numbers."""
    page, _, content = random_report
    curves = content["diagnosis"]["precision_recall"]
    names = sorted(curves["0.50"], key=lambda name: -content["diagnosis"]["classes"][name]["objects"])
    expected = []
    for iou in ("0.50", "0.75"):
        expected += [curves[iou][name] for name in names]
        expected.append(np.mean([curves[iou][name] for name in names], axis=0))
    thresholds = content["diagnosis"]["thresholds"]["classes"]
    expected += [thresholds[name]["f1"] for name in names]
    assert len(page.points) >= len(expected)
    for points, curve in zip(page.points, expected, strict=False):
        pixels = np.array([pair.split(",") for pair in points.split()], dtype=float)
        np.testing.assert_allclose((pixels[:, 0] - 56) / (430 - 56 - 12), np.linspace(0, 1, 101), atol=1e-4)
        np.testing.assert_allclose((310 - 44 - pixels[:, 1]) / (310 - 44 - 26), curve, atol=1e-4)
    assert all(len(label) > 30 for label in page.labels)  # every drawing is told in words
    assert len(page.labels) == 7


def test_galleries_say_how_many(random_report: tuple[Page, str, dict[str, Any]]) -> None:
    page, text, content = random_report
    known = content["diagnosis"]
    assert f"{known['missed']['total']} objects have no detection" in text
    assert f"{known['false_positives']['total']} detections with a score" in text
    lists = [known["missed"], known["false_positives"], *known["label_errors"].values()]
    assert page.images == 12 + sum(min(12, each["total"]) for each in lists)
    first = known["false_positives"]["first"][0]
    assert f"{first['class']} {first['score']:.2f}: {first['text']} · {first['file']}" in text


def test_many_classes(tmp_path: Path) -> None:
    """Ten classes are drawn, and all classes are in tables."""
    few = drawable(random_truth(0, images=30), tmp_path)
    count, rng = 300, np.random.default_rng(0)
    names = tuple(f"kind {k}" for k in range(count))
    many = replace(
        few,
        classes=names,
        category_ids=tuple(range(1, count + 1)),
        labels=rng.choice(40, len(few.labels)).astype(np.int32),
    )
    predictions = random_detections(few, 0)
    rows = rng.choice(40, len(predictions.labels))
    predictions = Detections(predictions.images, predictions.boxes, predictions.scores, rows.astype(np.int64))
    text = report(tmp_path, many, predictions)
    page = Page(text)
    assert page.open == []
    assert len(page.tables["classes"]) == 11
    assert len(page.tables["classes"]) + len(page.tables["more-classes"]) - 2 == 40
    assert len(page.tables["confusion"]) == 13  # a head, ten, others, nothing
    whole = sum(int(cell) for row in page.tables["confusion"][1:-1] for cell in row[1:])
    assert whole == (~many.ignore).sum()
    assert len(text) < 3_000_000


@pytest.mark.parametrize("kind", ["no detections", "no objects", "nothing", "ignore regions only", "one class"])
def test_pathological_input_gives_a_page(tmp_path: Path, kind: str) -> None:
    dataset = drawable(random_truth(0, images=8), tmp_path)
    predictions = random_detections(dataset, 0)
    none = Detections(*(part[:0] for part in vars(predictions).values()))
    if kind in ("no objects", "nothing"):
        dataset = dataset.with_boxes(np.zeros(len(dataset.labels), dtype=np.bool_))
    if kind in ("no detections", "nothing"):
        predictions = none
    if kind == "ignore regions only":
        dataset = replace(dataset, ignore=np.ones_like(dataset.ignore))
    if kind == "one class":
        dataset = replace(dataset, classes=("thing",), category_ids=(1,), labels=np.zeros_like(dataset.labels))
        predictions = replace(predictions, labels=np.zeros_like(predictions.labels))
    text = report(tmp_path, dataset, predictions)
    assert Page(text).open == []
    assert not re.search(r"\bnan\b", re.sub(r'src="[^"]*"', "", text))
    assert "What to do next" in text
    json.dumps(analyzed(dataset, predictions).to_dict(), allow_nan=False)
