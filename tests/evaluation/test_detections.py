from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.detections import Detections
from retinanet.errors import DataError
from retinanet.evaluation.coco_ap import coco_metrics
from retinanet.evaluation.detections import read_detections
from scenes import random_detections, random_truth, reference


def dataset() -> Dataset:
    """Three images of 100 × 80 pixels, two with the same name in different folders; two classes with unusual ids."""
    builder = DatasetBuilder("animals [val]", Path("/data"), ("cat", "dog"), (7, 3))
    for number, file in ((10, "a/one.jpg"), (40, "b/one.jpg"), (20, "b/0012.png")):
        builder.add_image(file, 100, 80, image_id=number)
        builder.add_box((10, 10, 30, 30), 0, "")
    return builder.build()


def entry(**changed: Any) -> dict[str, Any]:
    whole = {"image_id": 20, "category_id": 7, "bbox": [10.5, 11, 20, 30], "score": 0.5, **changed}
    return {key: value for key, value in whole.items() if value is not ...}


def read(tmp_path: Path, content: Any, data: Dataset | None = None) -> tuple[Detections, list[str]]:
    file = tmp_path / "found.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_detections(file, data or dataset())


def refused(tmp_path: Path, content: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    line = str(caught.value)
    assert line.startswith(str(tmp_path / "found.json"))
    assert "\n" not in line
    assert len(line) < 600
    return line.removeprefix(str(tmp_path / "found.json"))


def test_columns(tmp_path: Path) -> None:
    """Detections are sorted by image, in float64, otherwise in the order of the file."""
    rows = [
        entry(score=0.1 + 1e-12),
        entry(image_id=10, category_id=3, bbox=[0, 0, 1e-9, 5]),
        entry(score=0.9, extra="kept out", area=3),
        entry(image_id=40.0, category_id=7.0, score=1),
    ]
    found, notes = read(tmp_path, rows)
    assert found.images.tolist() == [0, 1, 2, 2]
    assert found.labels.tolist() == [1, 0, 0, 0]
    assert found.scores.tolist() == [0.5, 1.0, 0.1 + 1e-12, 0.9]
    assert found.boxes.tolist()[0] == [0, 0, 1e-9, 5]
    assert found.boxes.tolist()[3] == [10.5, 11, 30.5, 41]
    assert notes == []


def test_numbers_are_those_of_pycocotools(tmp_path: Path) -> None:
    """Detections are the same after writing and reading, with more than 100 in an image."""
    data = random_truth(8, category_ids=(90, 17, 3, 44))
    made = random_detections(data, 8)
    rng = np.random.default_rng(8)
    corner = rng.uniform(0, 300, (400, 2))
    many = Detections(
        np.concatenate([made.images, np.full(400, 3)]),
        np.concatenate(
            [made.boxes.astype(np.float64), np.column_stack([corner, corner + rng.uniform(5, 99, (400, 2))])]
        ),
        np.concatenate([made.scores.astype(np.float64), rng.uniform(size=400)]),
        np.concatenate([made.labels, np.zeros(400, np.int64)]),
    )
    ids = np.array(data.category_ids)[many.labels]
    sides = many.boxes[:, 2:] - many.boxes[:, :2]
    rows = [
        {"image_id": int(i), "category_id": int(k), "bbox": [*box[:2], *side], "score": score}
        for i, k, box, side, score in zip(
            data.image_ids[many.images], ids, many.boxes.tolist(), sides.tolist(), many.scores.tolist(), strict=True
        )
    ]
    found, _ = read(tmp_path, rows, data)
    stats, _ = reference(data, many)
    assert 0.05 < stats[0] < 0.95
    assert list(coco_metrics(data, found).summary.values()) == pytest.approx(stats, abs=1e-12)


def test_images_and_classes_by_name(tmp_path: Path) -> None:
    by_name: list[dict[str, Any]] = [
        {"file_name": "a/one.jpg", "category_name": "dog"},
        {"image_id": 99, "file_name": "/somewhere/else/0012.png", "category_id": 0, "category_name": " cat "},
        {"image_id": "0012", "category_id": 7},
        {"image_id": "b\\one", "category_id": 3},
        {"image_id": "40", "category_id": 3},
    ]
    found, _ = read(tmp_path, [{"bbox": [1, 2, 3, 4], "score": 0.5, **row} for row in by_name])
    assert found.images.tolist() == [0, 1, 1, 2, 2]
    assert found.labels.tolist() == [1, 1, 1, 0, 0]
    line = refused(tmp_path, [{"file_name": "one.jpg", "category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5}])
    assert "detection 1 is of 'one.jpg', the name of several images" in line


def test_a_file_that_lists_its_own_images_and_categories(tmp_path: Path) -> None:
    """As `retinanet detect` writes it: ids refer to the lists in the file, not to the dataset."""
    content = {
        "images": [{"id": 1, "file_name": "folder/0012.png"}, {"id": 10, "file_name": "b/one.jpg"}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 1, "name": "cat"}, {"id": 3, "name": "owl"}],
        "annotations": [
            entry(image_id=1, category_id=7),
            entry(image_id=10, category_id=1),
            entry(image_id=10, category_id=3),
        ],
    }
    found, notes = read(tmp_path, content)
    assert found.images.tolist() == [1, 2]
    assert found.labels.tolist() == [0, 1]
    assert any("detections left out: 1, of classes that animals [val] does not have: 'owl' 1" in note for note in notes)
    content["annotations"] = [entry(image_id=1, category_id=4)]
    assert "not in the file's 'categories'" in refused(tmp_path, content)
    content["annotations"] = [entry(image_id=1, category_id=3)]
    assert "no detection is of a class of animals [val] (7 cat, 3 dog); the classes in the file are 'owl' 1" in refused(
        tmp_path, content
    )
    content["images"] = [{"id": 1, "file_name": "fox.jpg"}]
    assert "1 of 1 detections are of images" in refused(tmp_path, content)


def test_an_object_without_lists_of_its_own(tmp_path: Path) -> None:
    found, _ = read(tmp_path, {"info": {}, "annotations": [entry()]})
    assert found.images.tolist() == [2]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image_id": ...}, "has no 'image_id'; give the image's id"),
        ({"image_id": None}, "has image_id None"),
        ({"image_id": [1]}, "has image_id [1]; give the image's id as a whole number, or its file name"),
        ({"image_id": True}, "has image_id True"),
        ({"image_id": 1.5}, "has image_id 1.5"),
        ({"file_name": 3}, "has file_name 3; write it as text"),
        ({"category_id": ...}, "has no 'category_id'; give the category's id"),
        (
            {"category_id": "cat"},
            "has category_id 'cat'; give the category's id as a whole number, or its 'category_name'",
        ),
        ({"category_name": 7}, "has category_name 7; write it as text"),
        ({"bbox": ...}, "has no 'bbox'; add [x, y, width, height]"),
        ({"bbox": [1, 2, 3]}, "has bbox [1, 2, 3]; write [x, y, width, height]"),
        ({"bbox": {"x": 1}}, "write [x, y, width, height]"),
        ({"bbox": [1, 2, "3", 4]}, "has '3' in its bbox; write four finite numbers"),
        ({"bbox": [1, 2, float("nan"), 4]}, "has nan in its bbox"),
        ({"bbox": [1, float("inf"), 3, 4]}, "has inf in its bbox"),
        ({"bbox": [1, 2, 1e300, 1e300]}, "has 1e+300 in its bbox"),
        ({"bbox": [1, 2, True, 4]}, "has True in its bbox"),
        (
            {"bbox": [50, 20, -30, 4]},
            "has bbox [50, 20, -30, 4] with a negative side; write [x, y, width, height], not corners",
        ),
        ({"score": ...}, "has no 'score'; give a file of detections, not of annotations"),
        ({"score": 97.5}, "has score 97.5; scores must be numbers from 0 to 1"),
        ({"score": -0.1}, "has score -0.1"),
        ({"score": float("nan")}, "has score nan"),
        ({"score": float("inf")}, "has score inf"),
        ({"score": "0.9"}, "has score '0.9'"),
        ({"score": True}, "has score True"),
    ],
)
def test_detections_that_cannot_be_meant(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    line = refused(tmp_path, [entry(), entry(), entry(**changed)])
    assert line.startswith(": detection 3 ")
    assert said in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", ": the file is empty; expected a list of detections"),
        ("[{", "not valid JSON"),
        ("image,score\n", "not valid JSON"),
        ("[" * 100_000, "not usable JSON"),
        ('[{"score": 1, "score": 0}]', "two keys 'score'"),
        ("3", ": holds 3; expected a list of detections"),
        ('{"detections": []}', "without a list 'annotations' (found 'detections')"),
        ("{}", "without a list 'annotations' (found nothing)"),
        ("[[1, 2, 3]]", ": detection 1 is [1, 2, 3], not an object"),
        ('{"images": 3, "annotations": []}', ": 'images' is not a list of objects"),
        ('{"categories": ["cat"], "annotations": []}', ": 'categories' is not a list of objects"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: str, said: str) -> None:
    assert said in refused(tmp_path, content)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_detections(tmp_path / "none.json", dataset())
    with pytest.raises(DataError, match="a folder"):
        read_detections(tmp_path, dataset())
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(DataError, match="not UTF-8"):
        read_detections(tmp_path / "latin.json", dataset())


def test_unknown_images_and_classes_are_counted(tmp_path: Path) -> None:
    line = refused(tmp_path, [entry(), entry(image_id=11), entry(image_id=12)])
    assert "2 of 3 detections are of images that are not in animals [val], first detection 2 of 11" in line
    assert "the first is 'a/one.jpg' (id 10)" in line
    assert "--split" in line
    line = refused(tmp_path, [entry(category_id=1), entry(), entry(category_id=0)])
    assert "2 of 3 detections have a category_id that is not in animals [val] (7 cat, 3 dog), first detection 1" in line


def test_nothing_found(tmp_path: Path) -> None:
    found, [note] = read(tmp_path, [])
    assert len(found.scores) == 0
    assert found.boxes.shape == (0, 4)
    assert "holds no detection" in note
    assert coco_metrics(dataset(), found).summary["AP"] == 0


def test_odd_detections_are_counted_and_kept(tmp_path: Path) -> None:
    everywhere = [entry(image_id=i) for i in (10, 20, 40)]
    found, notes = read(tmp_path, [*everywhere, entry(), entry(score=0.4), entry(bbox=[5, 5, 0, 9])])
    assert len(found.scores) == 6
    assert notes == [
        "boxes without area: 1; they count as false positives, as in COCO's own evaluation",
        "exact copies of another detection: 1; of several on one object, all but one are false positives",
    ]


def test_a_box_without_area_is_as_wrong_as_for_pycocotools(tmp_path: Path) -> None:
    data = random_truth(9)
    made = random_detections(data, 9)
    boxes = made.boxes.copy()
    boxes[::7, 2] = boxes[::7, 0]
    flat = Detections(made.images, boxes, made.scores, made.labels)
    assert list(coco_metrics(data, flat).summary.values()) == pytest.approx(reference(data, flat)[0], abs=1e-12)


def test_signs_of_a_misunderstanding(tmp_path: Path) -> None:
    def notes(rows: list[dict[str, Any]]) -> str:
        return " | ".join(read(tmp_path, rows)[1])

    corners = [entry(image_id=i, bbox=[50, 40, 90, 70]) for i in (10, 20, 40)]
    assert "100% of the boxes extend far beyond their images" in notes(corners)
    parts = [entry(image_id=i, bbox=[0.1, 0.2, 0.5, 0.6]) for i in (10, 20, 40)]
    assert "not in fractions of the image" in notes(parts)
    assert "2 of 3 images have no detections" in notes([entry()])


def test_a_score_that_rounding_put_above_one(tmp_path: Path) -> None:
    found, _ = read(tmp_path, [entry(score=1.0000001)])
    assert found.scores.tolist() == [1.0]
