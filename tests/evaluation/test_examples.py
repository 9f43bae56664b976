from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.detections import Detections
from retinanet.evaluation.examples import Example, false_positives, label_errors, missed_objects
from retinanet.evaluation.matching import make_scene, match
from retinanet.evaluation.tide import KINDS, find_errors
from scenes import random_detections, random_truth

Row = tuple[int, tuple[float, float, float, float], float, int]


def planted() -> tuple[Dataset, Detections]:
    """Twenty cats are found in images 0–19; each image after them has one kind of error."""
    builder = DatasetBuilder("planted", Path("/data"), ("cat", "dog"))
    rows: list[Row] = []
    for image in range(20):
        builder.add_image(f"{image}.jpg", 200, 200)
        builder.add_box((10, 10, 60, 60), image % 2, "")
        rows.append((image, (10, 10, 60, 60), 0.9, image % 2))
    builder.add_image("dog-called-cat.jpg", 200, 200)
    builder.add_box((50, 50, 100, 100), 0, "")
    rows.append((20, (50, 50, 100, 98), 0.95, 1))
    builder.add_image("forgotten.jpg", 200, 200)
    rows.append((21, (120, 20, 160, 90), 0.92, 0))
    builder.add_image("never-found.jpg", 200, 200)
    builder.add_box((5, 5, 15, 15), 1, "")
    builder.add_box((100, 100, 180, 180), 1, "")
    builder.add_image("hardly-found.jpg", 200, 200)
    builder.add_box((20, 20, 120, 120), 0, "")
    rows.append((23, (20, 20, 120, 118), 0.2, 0))
    builder.add_image("badly-placed.jpg", 200, 200)
    builder.add_box((20, 20, 110, 110), 0, "")
    rows.append((24, (60, 20, 150, 110), 0.6, 0))
    builder.add_image("crowd.jpg", 200, 200)
    builder.add_box((0, 0, 200, 200), 0, "", ignore=True)
    rows.append((25, (20, 20, 60, 60), 0.99, 0))
    images, boxes, scores, labels = zip(*rows, strict=True)
    return builder.build(), Detections(
        np.array(images), np.array(boxes, np.float32), np.array(scores, np.float32), np.array(labels)
    )


def files(dataset: Dataset, examples: tuple[Example, ...]) -> list[str]:
    return [Path(dataset.files[each.image]).stem for each in examples]


def test_planted_mistakes_are_found() -> None:
    dataset, predictions = planted()
    scene = make_scene(dataset, predictions)
    matching = match(scene)
    errors = find_errors(scene, matching)

    missed = missed_objects(scene, matching, 0.5)
    assert missed.total == len(missed.shown) == 5
    # the largest of each class, then the second largest …
    assert files(dataset, missed.shown) == [
        *("hardly-found", "never-found", "badly-placed", "never-found", "dog-called-cat")
    ]
    assert [each.text for each in missed.shown] == [
        "found with a score of only 0.20",
        "nothing of its class is detected there",
        "the best box of its class has an IoU of 0.38, score 0.60",
        "nothing of its class is detected there",
        "only dog is detected there, score 0.95",
    ]
    assert missed.shown[1].box == (100, 100, 180, 180)
    assert missed.shown[2].other == (60, 20, 150, 110)

    wrong = false_positives(scene, errors, 0.5)
    assert wrong.total == 3
    assert files(dataset, wrong.shown) == ["dog-called-cat", "forgotten", "badly-placed"]
    assert [each.kind for each in wrong.shown] == ["Cls", "Bkg", "Loc"]
    assert [round(each.score or 0, 2) for each in wrong.shown] == [0.95, 0.92, 0.6]
    assert wrong.shown[0].other == (50, 50, 100, 100)
    assert wrong.shown[1].other is None

    likely = label_errors(scene, matching, errors)
    assert {kind: files(dataset, each.shown) for kind, each in likely.items()} == {
        "class": ["dog-called-cat"],
        "missing": ["forgotten"],
        "unfindable": ["never-found", "never-found"],
    }
    assert likely["class"].shown[0].text == "annotated as cat, detected as dog"
    assert likely["unfindable"].shown[0].box == (100, 100, 180, 180)
    assert wrong.shown[0].to_dict(dataset) == {
        "image_id": 21,
        "file": "dog-called-cat.jpg",
        "box": [50, 50, 100, 98],
        "class": "dog",
        "score": 0.95,
        "kind": "Cls",
        "text": "Cls: it lies on an object of another class",
    }


def test_an_object_that_is_also_seen_as_what_it_is_is_no_label_error() -> None:
    dataset, predictions = planted()
    again = Detections(
        np.append(predictions.images, 20),
        np.append(predictions.boxes, [[50, 50, 100, 99]], axis=0).astype(np.float32),
        np.append(predictions.scores, 0.93).astype(np.float32),
        np.append(predictions.labels, 0),
    )
    scene = make_scene(dataset, again)
    matching = match(scene)
    assert label_errors(scene, matching, find_errors(scene, matching))["class"].total == 0


def test_a_class_that_is_mostly_wrong_is_never_sure() -> None:
    dataset, predictions = planted()
    moved = predictions.boxes.copy()
    moved[predictions.labels == 0] += 70
    scene = make_scene(dataset, Detections(predictions.images, moved, predictions.scores, predictions.labels))
    matching = match(scene)
    likely = label_errors(scene, matching, find_errors(scene, matching))
    assert likely["missing"].total == 0
    assert likely["class"].total == 1


@pytest.mark.parametrize("seed", range(3))
def test_lists_are_complete(seed: int) -> None:
    dataset = random_truth(seed, images=30)
    scene = make_scene(dataset, random_detections(dataset, seed))
    matching = match(scene)
    errors = find_errors(scene, matching)
    shown = scene.scores >= 0.4
    missed = missed_objects(scene, matching, 0.4)
    assert missed.total == (~dataset.ignore).sum() - (matching.tp[0] & shown).sum()
    wrong = false_positives(scene, errors, 0.4)
    assert wrong.total == (matching.fp[0] & shown).sum()
    assert [each.score for each in wrong.shown] == sorted((each.score or 0 for each in wrong.shown), reverse=True)
    assert len(wrong.shown) == min(60, wrong.total)
    assert {each.kind for each in wrong.shown} <= set(KINDS)
