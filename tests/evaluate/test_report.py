from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from retinanet.data.dataset import Dataset
from retinanet.data.formats.detect import read_split
from retinanet.evaluate.ap import Predictions, evaluate
from retinanet.evaluate.report import write_report


class Page(HTMLParser):
    """Every reference, and whether each element that was opened is closed."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.images = 0
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]
        self.images += tag == "img"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def dataset(parts: Path) -> Dataset:
    return read_split(parts, "val")


def perfect(dataset: Dataset) -> Predictions:
    keep = ~dataset.ignore
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    return Predictions(
        owner[keep].astype(np.int64),
        dataset.boxes[keep],
        np.full(int(keep.sum()), 0.9, dtype=np.float32),
        dataset.labels[keep].astype(np.int64),
    )


def report(path: Path, dataset: Dataset, predictions: Predictions, weights: str = "best.safetensors") -> str:
    write_report(path / "report.html", dataset, predictions, evaluate(dataset, predictions), Path(weights))
    return (path / "report.html").read_text(encoding="utf-8")


def test_page_is_self_contained_and_well_formed(tmp_path: Path, dataset: Dataset) -> None:
    text = report(tmp_path, dataset, perfect(dataset))
    page = Page(text)
    assert page.open == []
    assert page.images == len(dataset)
    assert all(reference.startswith("data:image/") for reference in page.references)
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
    text = report(tmp_path, dataset, perfect(dataset))  # 96-pixel pictures hold no object over 96² pixels
    assert re.search(r"<small>APl</small><b>–</b>", text)


def test_nothing_found(tmp_path: Path, dataset: Dataset) -> None:
    none = Predictions(
        np.zeros(0, dtype=np.int64),
        np.zeros((0, 4), dtype=np.float32),
        np.zeros(0, dtype=np.float32),
        np.zeros(0, dtype=np.int64),
    )
    text = report(tmp_path, dataset, none)
    assert re.search(r"<small>AP</small><b>0\.000</b>", text)
    assert "0 detections" in text


def test_names_are_escaped(tmp_path: Path, dataset: Dataset) -> None:
    evil = "<script>alert(1)</script>"
    renamed = replace(dataset, name=evil, classes=(evil, *dataset.classes[1:]))
    text = report(tmp_path, renamed, perfect(renamed), weights=f"{evil}.safetensors")
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_number_of_pictures_is_limited(tmp_path: Path, dataset: Dataset) -> None:
    predictions = perfect(dataset)
    metrics = evaluate(dataset, predictions)
    for limit, expected in ((2, 2), (50, len(dataset)), (1, 1)):
        write_report(tmp_path / "r.html", dataset, predictions, metrics, Path("w"), pictures=limit)
        assert Page((tmp_path / "r.html").read_text(encoding="utf-8")).images == expected
