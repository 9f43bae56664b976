"""The results in the README and on the models' cards are those of the committed result files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "experiments" / "results"
ROUNDING = 0.00051
CLASSES = {"red blood cells": "RBC", "white blood cells": "WBC", "platelets": "Platelets"}


@pytest.fixture(scope="module")
def bundled() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / "bundled.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def peers() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / "peers.jsonl").read_text(encoding="utf-8").splitlines()]


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"\b0\.\d{3}\b", line)]


def line_with(text: str, start: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return line


def test_ap_of_each_class_of_blood_cells_is_the_measured_one(bundled: dict[str, Any]) -> None:
    measured = bundled["blood-cells"]["splits"]["test"]
    found = re.findall(r"(0\.\d{3}) / (0\.\d{3})\s+for\s+(red\s+blood\s+cells|white\s+blood\s+cells|platelets)", README)
    assert len(found) == len(CLASSES) == len(measured["per_class"])
    for ap, ap50, name in found:
        row = measured["per_class"][CLASSES[" ".join(name.split())]]
        assert [float(ap), float(ap50)] == pytest.approx([row["AP"], row["AP50"]], abs=ROUNDING), name


def test_ap_of_the_bundled_model_is_the_measured_one(bundled: dict[str, Any]) -> None:
    measured = bundled["blood-cells"]["splits"]["test"]
    row = line_with(README, "| [`blood-cells`]")
    assert numbers(row) == pytest.approx([measured["AP"], measured["AP50"]], abs=ROUNDING)
    assert f"{measured['images']} smears" in row


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_card_of_blood_cells_has_the_measured_values(bundled: dict[str, Any], split: str) -> None:
    card = (ROOT / "src" / "retinanet" / "zoo" / "models" / "blood-cells.md").read_text(encoding="utf-8")
    measured = bundled["blood-cells"]["splits"][split]
    start = f"| {split}, {measured['images']} images |"
    whole = [measured[name] for name in ("AP", "AP50", "AP75")]
    assert numbers(line_with(card, start)) == pytest.approx(whole, abs=ROUNDING)
    rows = card[card.index(start) :].splitlines()[1:4]
    for row, (name, values) in zip(rows, sorted(measured["per_class"].items()), strict=True):
        assert row.startswith(f"| – {name} |")
        assert numbers(row) == pytest.approx([values["AP"], values["AP50"]], abs=ROUNDING)


def test_the_single_run_is_in_the_log(peers: list[dict[str, Any]]) -> None:
    wanted = {"side": "modern", "set": "bccd", "seed": 0}
    (run,) = (line for line in peers if line["spec"] == wanted)
    stated = numbers(line_with(README, "| this package, as above |"))
    assert stated == pytest.approx([run[name] for name in ("AP", "AP50", "AP75")], abs=ROUNDING)


@pytest.mark.parametrize(
    ("start", "name", "rate"),
    [("| blood cells (", "bccd", 0.01), ("| circuit boards (", "deeppcb", 0.01), ("| people (", "coco_person", 0.005)],
)
def test_the_comparison_has_the_means_of_the_log(
    peers: list[dict[str, Any]], start: str, name: str, rate: float
) -> None:
    theirs, ours = (
        [line for line in peers if line["spec"]["set"] == name and line["spec"]["side"] == side]
        for side in ("torchvision", "modern")
    )
    theirs = [line for line in theirs if line["spec"]["lr"] == rate]
    assert len(theirs) == len(ours) == 3
    measured = [mean(line[key] for line in side) for side in (theirs, ours) for key in ("AP", "AP50")]
    assert numbers(line_with(README, start)) == pytest.approx(measured, abs=ROUNDING)
