"""Every format that ``retinanet detect`` writes is read back: as detections, and as a dataset of pre-labels."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from retinanet.data.dataset import Dataset
from retinanet.data.formats.open_dataset import read_all
from retinanet.detection.input_images import ImageFile
from retinanet.detection.pipeline import ImageResult
from retinanet.detection.record import Record
from retinanet.detection.result_files import write_result_files
from retinanet.detection.write import OutputFormat, OutputNames, Outputs, Writer
from retinanet.detections import Detections
from retinanet.errors import DataError
from retinanet.evaluation.detections import read_detections
from retinanet.read_options import ReadOptions

PLACES = {"coco": "detections.json", "csv": "detections.csv", "yolo": "", "voc": ""}
BOXES = [[1.0, 2.0, 31.0, 22.0], [5.0, 5.0, 15.0, 25.0]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of photos with two detections in the first and none in the second, in each format."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    files = [ImageFile(Path("photos", name), Path(name)) for name in ("a.jpg", "b.jpg")]
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    for file in files:
        Image.fromarray(pixels).save(file.path)
    for name in get_args(OutputFormat):
        outputs = Outputs(Path("out", name), ("cat", "dog"), (name,), True)
        outputs.out.mkdir(parents=True)
        found = Detections(np.zeros(2, int), np.array(BOXES), np.array([0.9, 0.25]), np.array([1, 0]))
        record = Record.start(outputs.out, outputs.classes, {})
        with Writer(outputs, record, OutputNames()) as writer:
            writer.add(ImageResult(files[0], (30, 40), found, pixels))
            writer.add(ImageResult(files[1], (30, 40), Detections.empty(), pixels))
            writer.finish()
        record.close()
        write_result_files(outputs, record)
    return tmp_path


def only(path: Path, options: ReadOptions | None = None) -> Dataset:
    [data] = read_all(path, options or ReadOptions()).values()
    return data


@pytest.mark.parametrize("name", PLACES)
def test_output_is_a_dataset(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")  # the photos are found from any folder, and not the drawings
    data = only(folder / "out" / name / PLACES[name])
    assert [data.path(i) for i in data] == [
        folder / "photos" / "a.jpg",
        folder / "photos" / "b.jpg",
    ]  # not the drawings
    assert data.boxes.tolist() == [pytest.approx(box, abs=1e-3) for box in BOXES]
    assert [data.classes[label] for label in data.labels] == ["dog", "cat"]
    assert [(problem.code, problem.count) for problem in data.problems] == [("scored-box", 2)]


@pytest.mark.parametrize("name", PLACES)
def test_low_scores_are_left_out_on_request(folder: Path, name: str) -> None:
    data = only(folder / "out" / name / PLACES[name], ReadOptions(min_score=0.5))
    assert len(data) == 2
    assert [data.classes[label] for label in data.labels] == ["dog"]


@pytest.mark.parametrize("name", PLACES)
def test_output_is_a_file_of_detections(folder: Path, name: str) -> None:
    dataset = only(folder / "out" / "coco" / "detections.json")
    found, notes = read_detections(folder / "out" / name / PLACES[name], dataset)
    assert found.boxes == pytest.approx(np.array(BOXES), abs=1e-3)
    assert found.scores.tolist() == [0.9, 0.25]
    assert [dataset.classes[label] for label in found.labels] == ["dog", "cat"]
    assert not notes


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("x.csv", "path,x1,y1,x2,y2,class\na.jpg,1,2,3,4,cat\n", "detection 1 has no 'score'"),
        ("x.csv", "path,x1,y1,x2,y2,class,score\na.jpg,1,x,3,4,cat,1\n", "corners are not four numbers"),
        ("labels/a.txt", "0 0.5 0.5 1 1\n", "a.txt:1: '0 0.5 0.5 1 1'; expected 'class x y width height score'"),
        ("labels/a.txt", "7 0.5 0.5 1 1 0.5\n", "class number 7 has no name"),
        ("notes.md", "", "no detections here"),
    ],
)
def test_unusable_detections_are_refused(folder: Path, file: str, text: str, message: str) -> None:
    dataset = only(folder / "out" / "coco" / "detections.json")
    place = folder / "other"
    (place / file).parent.mkdir(parents=True)
    (place / file).write_text(text)
    (place / "classes.txt").write_text("cat\ndog\n") if file.startswith("labels") else None
    with pytest.raises(DataError, match=message):
        read_detections(place / file if file.endswith(".csv") else place, dataset)
