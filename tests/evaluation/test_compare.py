from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import hotcoco
import numpy as np
import numpy.typing as npt
import pytest

from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder
from retinanet.detections import Detections
from retinanet.errors import DataError
from retinanet.evaluation.coco_ap import coco_evaluation, coco_metrics
from retinanet.evaluation.compare import (
    Comparison,
    Contestant,
    compare_predictions,
    mistakes,
    most_different,
    relabelled,
    restricted,
)
from retinanet.evaluation.curves import bootstrap, draw_images
from retinanet.evaluation.matching import make_scene, match
from scenes import CLASSES, apart, nothing, random_detections, random_truth, reference, repeated


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinanet.evaluation.compare.RESAMPLES", 200)


def contestants(dataset: Dataset, seeds: tuple[int, int] = (0, 1)) -> tuple[Contestant, Contestant]:
    a, b = (Contestant(f"{seed}.json", random_detections(dataset, seed), dataset.classes) for seed in seeds)
    return a, b


def compared(dataset: Dataset, seeds: tuple[int, int] = (0, 1)) -> Comparison:
    return compare_predictions(dataset, *contestants(dataset, seeds), seed=3)


def test_every_draw_is_measured_as_pycocotools_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interval, fraction and classes, compared with datasets that contain each drawn image as often as it was drawn."""
    monkeypatch.setattr("retinanet.evaluation.compare.RESAMPLES", 10)
    dataset = random_truth(0, category_ids=(90, 17, 3, 44))
    sides = [replace(c, predictions=apart(c.predictions)) for c in contestants(dataset)]
    result = compare_predictions(dataset, sides[0], sides[1], seed=3)
    assert list(result.total) == ["AP", "AP50"]
    measured: dict[str, list[tuple[float, float]]] = {"AP": [], "AP50": [], "cat": [], "dog": [], "fox": []}
    for times in [np.ones(len(dataset), dtype=np.int64), *draw_images(len(dataset), 10, 3)]:
        (a, a_classes), (b, b_classes) = (reference(*repeated(dataset, c.predictions, times)) for c in sides)
        for position, name in enumerate(("AP", "AP50")):
            measured[name].append((a[position], b[position]))
        for name in ("cat", "dog", "fox"):
            measured[name].append((a_classes[name]["AP"], b_classes[name]["AP"]))
    changes = {**result.total, **{name: result.per_class[name]["AP"] for name in result.per_class}}
    assert set(changes) == set(measured)
    for name, change in changes.items():
        first, *rest = measured[name]
        assert (change.a, change.b) == pytest.approx(first, abs=1e-12)
        assert change.delta == pytest.approx(first[1] - first[0], abs=1e-12)
        differences = sorted(b - a for a, b in rest)
        # quantiles by hand: positions 0.025 · 9 and 0.975 · 9 among the sorted 10
        assert change.low == pytest.approx(differences[0] + 0.225 * (differences[1] - differences[0]), abs=1e-9)
        assert change.high == pytest.approx(differences[8] + 0.775 * (differences[9] - differences[8]), abs=1e-9)
        assert change.better == sum(d > 1e-12 for d in differences) / 10
        assert change.worse == sum(d < -1e-12 for d in differences) / 10


def test_hotcoco_counts_images_drawn_twice_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why hotcoco's ``compare`` is not used: it counts an image once per resample, and its intervals are too narrow."""
    dataset = random_truth(1, images=60)
    sides = contestants(dataset, (1, 6))
    one, other = (coco_evaluation(dataset, c.predictions) for c in sides)
    theirs = hotcoco.compare(one, other, n_bootstrap=500, seed=0)
    change = compare_predictions(dataset, *sides).total["AP"]
    assert change.delta == pytest.approx(theirs["deltas"]["AP"], abs=1e-12)
    scenes = [make_scene(dataset, c.predictions) for c in sides]
    draws = draw_images(len(dataset), 500, seed=0)
    spreads = []
    for counts in (draws, np.minimum(draws, 1)):
        monkeypatch.setattr("retinanet.evaluation.curves.draw_images", lambda *_, counts=counts: counts)
        a, b = (bootstrap(scene, match(scene), resamples=500).means() for scene in scenes)
        spreads.append(float((b - a).std()))
    assert theirs["ci"]["AP"]["std_err"] == pytest.approx(spreads[1], rel=0.1)
    assert theirs["ci"]["AP"]["std_err"] < 0.9 * spreads[0]


def test_a_detector_and_itself() -> None:
    result = compared(random_truth(2), (4, 4))
    for change in [*result.total.values(), *(c for row in result.per_class.values() for c in row.values())]:
        assert (change.delta, change.low, change.high, change.better, change.worse) == (0, 0, 0, 0, 0)
        assert 0 < change.a < 1
    assert most_different(result, 5) == ([], [])


def test_a_better_detector_is_called_better() -> None:
    dataset = random_truth(3, images=60)
    a, b = contestants(dataset, (0, 0))
    rng = np.random.default_rng(0)
    worse = np.where(rng.uniform(size=len(a.predictions.scores)) < 0.7, 0.001, a.predictions.scores)
    result = compare_predictions(dataset, replace(a, predictions=replace(a.predictions, scores=worse)), b)
    assert result.total["AP"].low > 0.01
    assert result.total["AP"].better == 1
    assert result.total["AP"].worse == 0
    other = compare_predictions(dataset, b, replace(a, predictions=replace(a.predictions, scores=worse)))
    assert other.total["AP"].delta == pytest.approx(-result.total["AP"].delta, abs=1e-15)
    assert other.total["AP"].high == pytest.approx(-result.total["AP"].low, abs=1e-15)


def test_numbers_are_those_of_an_evaluation_of_each() -> None:
    dataset = random_truth(4)
    result = compared(dataset)
    for side, contestant in enumerate(contestants(dataset)):
        alone = coco_metrics(dataset, contestant.predictions)
        assert result.metrics[side] == alone
        for name in ("AP", "AP50"):
            assert [result.total[name].a, result.total[name].b][side] == pytest.approx(alone.summary[name], abs=1e-12)
            for class_name, row in alone.per_class.items():
                change = result.per_class[class_name][name]
                assert [change.a, change.b][side] == pytest.approx(row[name], abs=1e-12)


def test_classes_are_matched_by_name_and_those_of_one_alone_left_out() -> None:
    dataset = random_truth(5)
    a, b = contestants(dataset)
    order = ("zebra", "fox", "dog", "cat")  # B lists them otherwise, knows zebras and no owls
    labels = np.array([3, 2, 1, 0])[b.predictions.labels]
    renamed = Contestant(b.name, replace(b.predictions, labels=labels), order)
    few = replace(
        a, classes=("cat", "fox", "owl"), predictions=relabelled(a.predictions, CLASSES, ("cat", "fox", "owl"))
    )
    result = compare_predictions(dataset, few, renamed)
    assert result.dataset.classes == ("cat", "fox")
    assert result.only == ((), ("dog",), ())
    assert set(result.per_class) == {"cat", "fox"}
    everything = compare_predictions(dataset, a, b)
    for name in ("cat", "fox"):
        assert result.per_class[name] == everything.per_class[name]
    mean = np.mean([result.per_class[name]["AP"].delta for name in ("cat", "fox")])
    assert result.total["AP"].delta == pytest.approx(mean, abs=1e-12)
    neither = replace(renamed, classes=("zebra", "fox", "wolf", "cat"))
    assert compare_predictions(dataset, few, neither).only == ((), (), ("dog",))
    assert compare_predictions(dataset, a, neither).only == (("dog",), (), ())


def test_no_class_in_common() -> None:
    a, b = contestants(random_truth(5))
    with pytest.raises(
        DataError, match=r"no class here \(cat, dog, fox\) is a class of both 0.json \(cat, dog, fox, owl\)"
    ):
        compare_predictions(random_truth(5), a, replace(b, classes=("w", "x", "y", "z")))
    with pytest.raises(DataError, match="no class here"):
        compare_predictions(random_truth(5), a, replace(b, classes=("w", "x", "y", "owl")))


def test_left_out_classes_take_their_regions_along() -> None:
    builder = DatasetBuilder("regions", Path("/data"), ("cat", "dog", "fox"))
    builder.add_image("0.jpg", 100, 100)
    builder.add_box((0, 0, 9, 9), 0, "")
    builder.add_box((0, 0, 9, 9), 1, "")
    builder.add_box((20, 20, 90, 90), 1, "", ignore=True)
    builder.add_box((30, 30, 90, 90), 2, "", ignore=True)
    builder.add_box((40, 40, 90, 90), NO_CLASS, "", ignore=True)
    kept = restricted(builder.build(), ("cat",))
    assert kept.labels.tolist() == [0, NO_CLASS, NO_CLASS]
    assert kept.boxes[:, 0].tolist() == [0, 30, 40]


def crowds_only() -> Dataset:
    builder = DatasetBuilder("crowds", Path("/data"), CLASSES)
    for i in range(4):
        builder.add_image(f"{i}.jpg", 640, 480)
        builder.add_box((10, 10, 200, 200), 0, "", ignore=True)
    return builder.build()


def test_nothing_to_measure() -> None:
    result = compared(crowds_only())
    assert np.isnan(result.total["AP"].delta)
    assert result.per_class == {}
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert written["AP"] == dict.fromkeys(("a", "b", "delta", "low", "high", "b_better", "a_better"))


def test_nothing_found() -> None:
    dataset = random_truth(6)
    a, b = contestants(dataset)
    empty = replace(a, predictions=nothing())
    result = compare_predictions(dataset, empty, b)
    assert result.total["AP"].a == 0
    assert result.total["AP"].better == 1
    assert result.mistakes[0].score == 1
    assert result.mistakes[0].fn.sum() == (~dataset.ignore).sum()
    both = compare_predictions(dataset, empty, empty)
    assert (both.total["AP"].delta, both.total["AP"].low, both.total["AP"].high) == (0, 0, 0)


def best_f1(dataset: Dataset, predictions: Detections) -> tuple[float, list[int], list[int]]:
    """The score with the best F1, and FN and FP of each image, by trying every threshold from scratch."""
    best: tuple[float, float, list[int], list[int]] = (-1.0, 0.0, [], [])
    scene = make_scene(dataset, predictions)
    matching = match(scene)
    for score in sorted({float(s) for s in scene.scores}, reverse=True):
        missed, wrong = [], []
        for image in dataset:
            hits = fails = 0
            for d in range(len(scene.scores)):
                if scene.images[d] == image and scene.scores[d] >= score:
                    hits += bool(matching.tp[0, d])
                    fails += bool(matching.fp[0, d])
            missed.append(int((~dataset.ignore[dataset.rows(image)]).sum()) - hits)
            wrong.append(fails)
        hits = int((~dataset.ignore).sum()) - sum(missed)
        f1 = 2 * hits / (2 * hits + sum(missed) + sum(wrong))
        if f1 > best[0] + 1e-12:
            best = (f1, score, missed, wrong)
    return best[1:]


def test_mistakes_at_the_best_score() -> None:
    dataset = random_truth(7, images=8)
    made = random_detections(dataset, 7)
    predictions = replace(made, scores=np.round(made.scores, 1))  # many equal ones
    scene = make_scene(dataset, predictions)
    result = mistakes(scene, match(scene))
    score, missed, wrong = best_f1(dataset, predictions)
    assert result.score == pytest.approx(score)
    assert result.fn.tolist() == missed
    assert result.fp.tolist() == wrong


def test_most_different_images() -> None:
    result = compared(random_truth(1))

    def errors(side: int) -> npt.NDArray[np.int64]:
        return result.mistakes[side].fn + result.mistakes[side].fp

    gain = errors(0) - errors(1)
    better, worse = most_different(result, 3)
    assert better
    assert worse
    assert [gain[i] for i in better] == sorted(gain[gain > 0], reverse=True)[:3]
    assert [gain[i] for i in worse] == sorted(gain[gain < 0])[:3]


def test_json() -> None:
    dataset = random_truth(1)
    result = compared(dataset)
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (written["a"], written["b"], written["data"]) == ("0.json", "1.json", "random")
    assert (written["images"], written["resamples"], written["confidence"]) == (20, 200, 0.95)
    assert written["AP"]["delta"] == written["AP"]["b"] - written["AP"]["a"]
    assert written["AP"]["low"] < written["AP"]["delta"] < written["AP"]["high"]
    assert written["per_class"]["cat"]["boxes"] == dataset.class_counts()["cat"]
    assert set(written["per_class"]["cat"]) == {"boxes", "AP", "AP50"}
    assert written["metrics"]["a"]["APs"] == result.metrics[0].summary["APs"]
    assert written["not_compared"] == {"only_a": [], "only_b": [], "neither": []}
