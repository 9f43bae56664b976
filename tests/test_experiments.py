"""The experiment scripts start, and what they try are settings that exist."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from retinanet.anchors import AnchorSpec
from retinanet.config import Config
from retinanet.data.formats.open_dataset import read_split
from retinanet.data.synthetic import write_sample
from retinanet.detections import Detections
from retinanet.inspection.anchor_coverage import best_overlaps


def test_every_candidate_is_a_valid_configuration_that_changes_something(experiment: Any, tmp_path: Path) -> None:
    screening = experiment("screening")
    start = Config.from_dict(screening.START)
    write_sample(tmp_path / "parts", images=12, seed=0, size=640)
    train_set = read_split(tmp_path / "parts", "train")
    configs = {name: screening.config_of(name, train_set) for name in screening.CANDIDATES}
    assert [name for name, config in configs.items() if config == start] == ["start"]
    before, after = (best_overlaps(train_set, configs[n].anchors, start.data) for n in ("start", "fitted anchors"))
    assert (after >= 0.7).mean() > (before >= 0.7).mean()


def test_the_queue_runs_what_has_no_result_yet(experiment: Any, tmp_path: Path) -> None:
    runs = experiment("runs")
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\n"
        "spec = json.loads(sys.argv[sys.argv.index('--one') + 1])\n"
        "assert sys.argv[1] == 'DATA'\n"
        "if spec['seed'] == 3: raise SystemExit('broken')\n"
        "print('noise'); print(json.dumps({'AP': spec['seed'] / 10, 'AP50': 0.5}))\n"
    )
    log = tmp_path / "log.jsonl"
    runs.run_queue(script, [{"seed": 1}, {"seed": 2}], log, 2, ["DATA"])
    assert sorted(line["AP"] for line in runs.read_log(log)) == [0.1, 0.2]
    before = log.read_text()
    runs.run_queue(script, [{"seed": 1}, {"seed": 3}, {"seed": 4}], log, 1, ["DATA"])
    assert log.read_text().startswith(before)
    assert [line["spec"]["seed"] for line in runs.read_log(log)][2:] == [4]  # the broken one is left for the next time


def test_the_report_compares_the_sides(experiment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = experiment("peers")
    lines = []
    for data_set in peers.SETS:
        for rate in peers.RATES:
            lines.append(({"side": "torchvision", "set": data_set, "seed": 0, "lr": rate}, 0.4 - abs(rate - 0.01)))
        for seed in (0, 1):
            lines.append(({"side": "modern", "set": data_set, "seed": seed}, 0.5 + seed / 10))
        lines.append(({"side": "torchvision", "set": data_set, "seed": 1, "lr": 0.01}, 0.6))
    log = tmp_path / "peers.jsonl"
    measured = {"AP50": 0.6, "AP75": 0.3, "images_seen": 8000, "seconds": 100}
    log.write_text("".join(json.dumps({"spec": spec, "AP": ap, **measured}) + "\n" for spec, ap in lines))
    monkeypatch.setattr(peers, "LOG", log)
    assert peers.best_rate("bccd") == 0.01
    text = peers.report()
    assert "| bccd/val | modern | 0, 1 | 8000 | 100 | 0.5500 (0.5000–0.6000) |" in text
    assert "| bccd/val | torchvision (lr 0.01) | 0, 1 | 8000 | 100 | 0.5000 (0.4000–0.6000) |" in text
    assert "* torchvision: mean AP of the three sets 0.5000" in text
    assert "| bccd | 0.3925 | 0.3950 | 0.4000 | 0.3900 |" in text
    assert "paper:" not in text  # nothing is said of a side that was not run


def test_the_papers_recipe_can_have_fitted_anchors(
    experiment: Any, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = experiment("peers")
    trained: dict[str, Any] = {}

    def train(config: Any, train_set: Any, val_set: Any, out: Path, resume: bool) -> Any:
        trained[out.name] = config
        return SimpleNamespace(metrics={"AP": 0.5})

    monkeypatch.setattr("retinanet.training.loop.train_on", train)
    dataset = read_split(parts, "train")
    middle = (dataset.boxes[:, :2] + dataset.boxes[:, 2:]) / 2
    small = np.concatenate([middle - 3, middle + 3], axis=1)  # 20 pixels of the network's input: too small for 32
    dataset = replace(dataset, boxes=small)
    for side in ("paper", "paper_fitted"):
        assert peers.train_recipe({"side": side, "set": "bccd", "seed": 3}, dataset, dataset, epochs=2) == {"AP": 0.5}
    plain, fitted = trained["paper-bccd-3"], trained["paper_fitted-bccd-3"]
    assert plain.anchors == AnchorSpec()
    assert (plain.train.epochs, plain.train.eval_every, plain.train.seed, plain.train.batch) == (2, 2, 3, 8)
    assert replace(fitted, anchors=plain.anchors) == plain  # nothing else differs
    covered = [(best_overlaps(dataset, each.anchors, each.data) >= 0.5).mean() for each in (plain, fitted)]
    assert covered[0] < 0.1 < 0.9 < covered[1]


def test_the_peer_is_torchvisions_network_with_our_backbone(experiment: Any) -> None:
    import torch

    peer = experiment("torchvision_peer")
    model = peer.build(3, bf16=False)
    assert sum(p.requires_grad for p in model.backbone.body.parameters()) > 0
    images = [torch.rand(3, 320, 320), torch.rand(3, 320, 240)]
    targets = [{"boxes": torch.tensor([[10.0, 10, 60, 80]]), "labels": torch.tensor([1])}] * 2
    losses = model.train()(images, targets)
    assert set(losses) == {"classification", "bbox_regression"}
    assert all(torch.isfinite(value) for value in losses.values())


def test_scores_that_follow_the_fit_correlate_with_it(experiment: Any, parts: Path) -> None:
    study = experiment("score_and_fit")
    dataset = read_split(parts, "train")
    rows = np.flatnonzero(~dataset.ignore)
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))[rows]
    boxes = dataset.boxes[rows].astype(np.float64)
    part = np.linspace(0.6, 0.99, len(rows))  # of each object's width: the IoU
    boxes[:, 2] = boxes[:, 0] + part * (boxes[:, 2] - boxes[:, 0])
    for scores, expected in ((part, 1.0), (1 - part, -1.0)):
        found = Detections(owner, boxes, scores, dataset.labels[rows].astype(np.int64))
        mean, correlation = study.score_and_fit(dataset, found)
        assert mean == pytest.approx(part.mean(), abs=2e-3)
        assert correlation == pytest.approx(expected, abs=0.02)


def test_a_rare_class_is_all_that_is_annotated(experiment: Any, parts: Path) -> None:
    content = json.loads((parts / "instances_val.json").read_text(encoding="utf-8"))
    name = content["categories"][1]["name"]
    rare = experiment("rare_class").only(content, name)
    assert [category["name"] for category in rare["categories"]] == [name]
    assert rare["images"] == content["images"]  # those without the class stay, as background
    wanted = [each for each in content["annotations"] if each["category_id"] == content["categories"][1]["id"]]
    assert 0 < len(rare["annotations"]) == len(wanted) < len(content["annotations"])
    with pytest.raises(SystemExit, match="no class 'cells'; there are"):
        experiment("rare_class").only(content, "cells")


def test_cut_files_hold_the_objects_of_the_large_images(experiment: Any, tmp_path: Path) -> None:
    tiles = experiment("training_tiles")
    tiles.write_large(tmp_path / "large", 1, 600)
    tiles.write_cut(tmp_path / "large", tmp_path / "cut", 200)
    for split in ("train", "val"):
        large, cut = (read_split(tmp_path / name, split) for name in ("large", "cut"))
        assert (cut.sizes == 200).all()
        assert (~cut.ignore).sum() >= (~large.ignore).sum() > 0
        assert cut.areas[~cut.ignore].max() <= large.areas.max()


def test_both_starts_of_the_fine_tuning_differ_in_the_initial_weights_only(experiment: Any) -> None:
    study = experiment("finetuning")
    person, imagenet = (study.settings(start, 1e-3, 2) for start in study.STARTS)
    assert (person.model.init, imagenet.model.init) == ("person", None)
    assert imagenet.model.pretrained
    assert replace(person, model=replace(person.model, init=None, pretrained=True)) == imagenet
    assert (person.train.epochs, person.train.seed, person.train.lr, person.data.size) == (5, 2, 1e-3, 320)


def test_the_report_of_the_fine_tuning_has_the_mean_and_the_range_of_the_seeds(experiment: Any) -> None:
    study = experiment("finetuning")
    lines = [
        {
            "spec": {"start": start, "lr": 0.002, "seed": seed},
            "AP": ap,
            "AP50": ap + 0.3,
            "AP75": ap - 0.1,
            "AP of epochs": [0.1, 0.2, 0.3, 0.4, ap],
            "images": 1025,
        }
        for start, seed, ap in (("person", 0, 0.5), ("person", 1, 0.6), ("ImageNet", 0, 0.4))
    ]
    text = study.report(lines)
    means = "0.100 | 0.200 | 0.300 | 0.400"
    assert (
        f"| person | 0.002 | 0, 1 | 0.550 (0.500–0.600) | 0.850 (0.800–0.900) | 0.450 (0.400–0.500) | {means} |" in text
    )
    assert (
        f"| ImageNet | 0.002 | 0 | 0.400 (0.400–0.400) | 0.700 (0.700–0.700) | 0.300 (0.300–0.300) | {means} |" in text
    )
    assert "5 epochs (1025 training images)" in text
