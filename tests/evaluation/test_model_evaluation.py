"""``retinanet.evaluate`` and ``retinanet.compare`` give the results of the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import retinanet
from retinanet.cli import main
from retinanet.data.dataset import Dataset
from retinanet.errors import DataError
from retinanet.evaluation.coco_ap import coco_results
from retinanet.evaluation.detections import DetectionFile
from retinanet.read_options import ReadOptions

QUIET = Console(quiet=True)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def written(weights: Path, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the verb writes."""
    out = tmp_path_factory.mktemp("verb")
    assert main(["eval", str(weights), str(parts), "--out", str(out), "--precision", "fp32", "--device", "cpu"]) == 0
    return out


def test_evaluate_returns_what_the_verb_writes(weights: Path, parts: Path, written: Path) -> None:
    result = retinanet.evaluate(weights, parts, precision="fp32", device="cpu", console=QUIET)
    assert json.loads(json.dumps(result.to_dict())) == read(written / "metrics.json")
    assert json.loads(json.dumps(coco_results(result.predictions, result.dataset))) == read(written / "detections.json")
    assert result.name == str(weights)
    with pytest.raises(FrozenInstanceError):
        result.name = "another"  # type: ignore[misc]


def test_a_file_of_detections_is_evaluated_without_a_network(weights: Path, parts: Path, written: Path) -> None:
    opened: list[tuple[str, list[str]]] = []

    def note(dataset: Dataset, notes: Sequence[str]) -> None:
        opened.append((dataset.name, list(notes)))

    result = retinanet.evaluate(DetectionFile(written / "detections.json"), parts, opened=note)
    assert result.metrics.summary["AP50"] == pytest.approx(read(written / "metrics.json")["AP50"], abs=0.02)
    assert opened == [("parts [val]", list(result.notes))]


def test_options_of_reading_mean_the_same_as_in_training(weights: Path, parts: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(parts, tmp_path / "less"))
    first = read(folder / "instances_val.json")["images"][0]["file_name"]
    (folder / "images" / first).unlink()
    with pytest.raises(DataError, match=r"1 of \d+ images not found.*--data\.skip-broken"):
        retinanet.evaluate(weights, folder, console=QUIET)
    options = ReadOptions(skip_broken=True)
    result = retinanet.evaluate(weights, folder, precision="fp32", device="cpu", console=QUIET, options=options)
    assert [problem.where for problem in result.dataset.problems if problem.code == "skipped-image"] == [
        str(folder / "images" / first)
    ]


def test_a_class_that_the_model_lacks_is_measured(weights: Path, parts: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(parts, tmp_path / "more"))
    content = read(folder / "instances_val.json")
    used = content["annotations"][0]["category_id"]
    content["categories"].append({"id": 99, "name": "sprocket"})
    content["annotations"].append({**content["annotations"][0], "id": 999_999, "category_id": 99})
    assert used != 99
    (folder / "instances_val.json").write_text(json.dumps(content))
    result = retinanet.evaluate(weights, folder, precision="fp32", device="cpu", console=QUIET)
    assert result.dataset.classes[-1] == "sprocket"
    assert result.metrics.per_class["sprocket"]["AP"] == 0
    assert "unlearnt-class" in [problem.code for problem in result.dataset.problems]


def test_compare_takes_weights_and_files(weights: Path, parts: Path, written: Path) -> None:
    file = DetectionFile(written / "detections.json")
    result = retinanet.compare(file, weights, parts, precision="fp32", device="cpu", console=QUIET)
    assert result.names == (str(file), str(weights))
    assert result.total["AP"].delta == pytest.approx(0, abs=0.02)
