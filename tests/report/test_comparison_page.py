from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from html_pages import Page
from retinanet.data.dataset import Dataset
from retinanet.data.formats.open_dataset import read_split
from retinanet.detections import Detections
from retinanet.evaluation.compare import Change, Comparison, Contestant, compare_predictions
from retinanet.report.comparison_page import draw_outcome, outcome_of, verdict, write_comparison
from retinanet.report.html import metric, signed
from scenes import perfect


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinanet.evaluation.compare.RESAMPLES", 50)


@pytest.fixture
def dataset(parts: Path) -> Dataset:
    return read_split(parts, "train")


def half(dataset: Dataset) -> Detections:
    """Detect every other object, with a false positive in the corner of the first image."""
    every = perfect(dataset)
    keep = np.arange(len(every.scores)) % 2 == 0
    return Detections(
        np.append(every.images[keep], 0),
        np.concatenate([every.boxes[keep], [[0, 0, 4, 4]]]).astype(np.float32),
        np.append(every.scores[keep], 0.9).astype(np.float32),
        np.append(every.labels[keep], 1),
    )


def comparison(dataset: Dataset, a: Detections, b: Detections, name: str = "a.json") -> Comparison:
    return compare_predictions(dataset, Contestant(name, a, dataset.classes), Contestant("b.json", b, dataset.classes))


def written(folder: Path, result: Comparison, images: int = 6) -> str:
    write_comparison(folder / "compare.html", result, images)
    assert [p.name for p in folder.iterdir()] == ["compare.html"]
    return (folder / "compare.html").read_text(encoding="utf-8")


def test_page_is_self_contained_and_tells_the_numbers(tmp_path: Path, dataset: Dataset) -> None:
    result = comparison(dataset, half(dataset), perfect(dataset))
    text = written(tmp_path, result)
    page = Page(text)
    assert page.open == []
    assert all(reference.startswith("data:image/") for reference in page.references)
    assert not re.search(r"url\(|@import|<script|https?:", text)
    change = result.total["AP"]
    assert f"<small>AP of A</small><b>{change.a:.3f}</b>" in text
    assert "<small>AP of B</small><b>1.000</b>" in text
    assert f"<small>ΔAP</small><b>+{change.delta:.3f}</b><small>+{change.low:.3f} to +{change.high:.3f}</small>" in text
    assert "<small>B better</small><b>100.0%</b>" in text
    assert f"B is better by {change.delta:.3f} AP" in text
    for name, row in result.per_class.items():
        assert re.search(rf"<td>{name}</td><td>{re.escape(signed(row['AP'].delta))}</td>", text)
    assert text.count("<svg") == len(result.per_class)


def test_images_show_missed_objects_and_false_positives(tmp_path: Path, dataset: Dataset) -> None:
    result = comparison(dataset, half(dataset), perfect(dataset))
    text = written(tmp_path, result, images=2)
    assert Page(text).images == 4  # two images, each twice
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert [caption[:2] for caption in captions] == ["A:", "B:"] * 2
    assert captions[1] == captions[3] == "B: false negatives 0; false positives 0"
    assert re.fullmatch(r"A: false negatives \d+ \(.+\); false positives \d+( \(.+\))?", captions[0])
    missed = re.match(r"A: false negatives (\d+) \((.*?)\)", captions[0])
    assert missed is not None
    assert int(missed[1]) == sum(int(part.split()[0]) for part in missed[2].split(", "))
    after = text.split("A makes fewer mistakes")[-1]
    assert "In no image." in after


def test_lines_have_the_colours_of_the_key(dataset: Dataset) -> None:
    result = comparison(dataset, half(dataset), perfect(dataset))
    outcome = outcome_of(result, 0, 0)
    objects = dataset.boxes[dataset.rows(0)]
    assert len(outcome.missed) + len(outcome.found) == len(objects) >= 2
    black = np.zeros((96, 96, 3), dtype=np.uint8)
    image = draw_outcome(black, result, 0, outcome)
    assert tuple(image[0, 2]) == (0xE6, 0x9F, 0x00)  # the box in the corner is a false positive
    for row in outcome.missed:
        x1, y1, x2, y2 = (int(v) for v in dataset.boxes[row])
        outline = image[y1:y2, x1:x2].reshape(-1, 3)
        assert (outline == (0xF0, 0xE4, 0x42)).all(axis=1).any()
    assert (black == 0).all()


def test_names_are_escaped(tmp_path: Path, dataset: Dataset) -> None:
    evil = "<script>alert(1)</script>"
    renamed = replace(dataset, name=evil, classes=(evil, *dataset.classes[1:]))
    text = written(tmp_path, comparison(renamed, half(renamed), perfect(renamed), name=evil))
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_the_same_twice(tmp_path: Path, dataset: Dataset) -> None:
    text = written(tmp_path, comparison(dataset, half(dataset), half(dataset)))
    assert "There is no difference" in text
    assert "<small>ΔAP</small><b>0.000</b><small>0.000 to 0.000</small>" in text
    assert text.count("In no image.") == 2


def test_nothing_to_measure(tmp_path: Path, dataset: Dataset) -> None:
    crowds = replace(dataset, ignore=np.ones_like(dataset.ignore))
    text = written(tmp_path, comparison(crowds, half(crowds), perfect(crowds)))
    assert "There are no objects, so nothing can be measured." in text
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text)
    assert Page(text).open == []


def test_classes_that_one_does_not_know(tmp_path: Path, dataset: Dataset) -> None:
    a = Contestant("a", perfect(dataset), dataset.classes)
    names = ("<b>other</b>", *dataset.classes[1:])
    text = written(tmp_path, compare_predictions(dataset, a, Contestant("b", perfect(dataset), names)))
    assert f"Not compared: {dataset.classes[0]} (a class of A only)." in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            Change(0.5, 0.6, 0.02, 0.2, 0.99, 0.01),
            "B is better by 0.100 AP: the 95% interval of ΔAP is +0.020 to +0.200",
        ),
        (Change(0.6, 0.5, -0.2, -0.02, 0.0, 1.0), "A is better by 0.100 AP"),
        (
            Change(0.5, 0.6, -0.01, 0.2, 0.9, 0.1),
            "do not show which detector is better: the 95% interval of ΔAP is −0.010 to +0.200",
        ),
        (Change(0.5, 0.5, 0, 0, 0, 0), "no difference"),
        (
            Change(0.5, 0.5003, 0.0001, 0.0009, 0.982, 0.0),
            "The two APs are equal up to rounding: the 95% interval of ΔAP is 0.000 to +0.001.",
        ),
        (Change(0.5, 0.4997, -0.0009, -0.0001, 0.0, 0.982), "The two APs are equal up to rounding"),
        (Change(0.5, 0.5004, 0.0001, 0.02, 0.98, 0.0), "The two APs are equal up to rounding"),
        (Change(0.5, 0.5006, 0.0001, 0.002, 0.98, 0.0), "B is better by 0.001 AP"),
        (Change(0.5, 0.5004, -0.1, 0.1, 0.5, 0.5), "do not show which detector is better"),
        (Change(*[float("nan")] * 6), "no objects"),
    ],
)
def test_verdict(change: Change, said: str) -> None:
    assert said in verdict(change)


def test_numbers() -> None:
    assert [metric(v) for v in (0.12345, 0.0, -1.0, float("nan"))] == ["0.123", "0.000", "–", "–"]
    assert [signed(v) for v in (0.1, -0.1, 0.0001, -0.0001, float("nan"))] == [
        "+0.100",
        "−0.100",
        "0.000",
        "0.000",
        "–",
    ]


def test_images_that_cannot_be_shown_are_named(tmp_path: Path, parts: Path) -> None:
    dataset = read_split(shutil.copytree(parts, tmp_path / "data"), "train")
    result = comparison(dataset, half(dataset), perfect(dataset))
    folder = tmp_path / "all"
    folder.mkdir()
    text = written(folder, result)
    shown = [file for file in dataset.files if Path(file).name in text]
    dataset.path(list(dataset.files).index(shown[0])).unlink()
    remark = write_comparison(tmp_path / "compare.html", result)
    text = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert remark is not None
    assert remark.startswith("1 image cannot be shown on the page; the first: ")
    assert "1 image cannot be shown" in text
    assert Path(shown[0]).name in text  # with what each missed, in words
