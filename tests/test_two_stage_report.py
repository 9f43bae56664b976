"""``experiments/two_stage.py``: AP and milliseconds at several input sizes, also while runs are missing."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from retinanet.data.synthetic import CLASSES


@pytest.fixture
def measured(
    experiment: Any, parts: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Any, argparse.Namespace]]:
    """``two_stage`` with weights of Faster R-CNN and ``modern`` on the sample dataset, and its arguments."""
    from safetensors.torch import save_file

    runs, peers, study = experiment("runs"), experiment("peers"), experiment("two_stage")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(runs.SETS, "tiny", runs.Set(parts.name, "val", 2, 9, 1))
    log = tmp_path / "peers.jsonl"
    spec = {"side": "faster_rcnn", "set": "tiny", "seed": 0, "lr": 0.01}
    log.write_text(json.dumps({"spec": spec, "AP": 0.5, "seconds": 90, "cpu_seconds": 80}) + "\n")
    monkeypatch.setattr(peers, "LOG", log)
    for folder in (peers.folder_of(spec), peers.folder_of({"side": "modern", "set": "tiny", "seed": 0})):
        folder.mkdir(parents=True)
    torch.manual_seed(0)
    save_file(peers.build_peer("faster_rcnn", len(CLASSES)).state_dict(), peers.folder_of(spec) / "weights.safetensors")
    shutil.copy(weights, folder / "best.safetensors")
    threads = torch.get_num_threads()
    yield (
        study,
        argparse.Namespace(
            data=parts.parent,
            set=["tiny"],
            side=["faster_rcnn", "paper", "modern"],
            sizes=[64, 96],
            seeds=[0, 1],
            threads=1,
            images=1,
            result=tmp_path / "fig2_two_stage.json",
        ),
    )
    torch.set_num_threads(threads)


def test_weights_are_evaluated_once_at_each_size(
    measured: tuple[Any, argparse.Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, arguments = measured
    study.evaluate_all(arguments)
    found = study.Measurements.read(arguments.result)
    assert [(e.side, e.seed, e.size, e.lr) for e in found.evaluations] == [
        ("faster_rcnn", 0, 64, 0.01),
        ("faster_rcnn", 0, 96, 0.01),
        ("modern", 0, 64, None),
        ("modern", 0, 96, None),
    ]  # without the side and the seed that have no weights
    assert all(0 <= e.summary["AP"] <= 1 for e in found.evaluations)
    monkeypatch.setattr(study, "evaluate", None)
    monkeypatch.setattr(arguments, "side", ["modern"])
    monkeypatch.setattr(arguments, "seeds", [0])
    study.evaluate_all(arguments)
    assert study.Measurements.read(arguments.result) == found


def test_the_sides_are_timed_in_turn_and_random_weights_are_marked(
    measured: tuple[Any, argparse.Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, arguments = measured
    study.time_all(arguments)
    found = study.Measurements.read(arguments.result)
    assert [(t.side, t.size) for t in found.timings] == [(s, size) for s in arguments.side for size in (64, 96)]
    assert {t.side for t in found.timings if t.trained} == {"faster_rcnn", "modern"}
    assert all(0 < t.low <= t.median <= t.high for t in found.timings)
    proposals = {t.side: t.proposals for t in found.timings}
    assert 0 < proposals["faster_rcnn"] <= 1000
    assert proposals["modern"] is None
    assert found.timed["tiny"]["images"] == 1
    monkeypatch.setattr(arguments, "side", ["modern"])
    study.time_all(arguments)  # replaces the rows
    assert len(study.Measurements.read(arguments.result).timings) == len(found.timings)


def test_a_size_is_the_size_of_the_networks_input(measured: tuple[Any, argparse.Namespace]) -> None:
    study, arguments = measured
    peer = study.load_peer("faster_rcnn", 3, 256, None)
    assert (peer.transform.min_size, peer.transform.max_size) == ((256,), 341)
    assert study.scaling(320).longest == 426
    weights = study.weights_of("tiny", "modern", 0)
    train_set = study.load_sets(arguments.data, "tiny", screening=False)[0]
    data = study.load_ours("modern", train_set, 416, weights).info.config.data
    assert (data.size, data.max_size) == (416, 554)


def test_the_page_lists_what_was_not_run(experiment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, page, peers = experiment("two_stage"), experiment("two_stage_report"), experiment("peers")
    numbers = {"AP": 0.4, "AP50": 0.6, "AP75": 0.3, "seconds": 100}
    specs: list[dict[str, Any]] = [{"side": "modern", "set": "bccd", "seed": seed} for seed in (0, 1)]
    lines = [{"spec": spec, **numbers, "cpu_seconds": 70} for spec in specs]
    faster = {"side": "faster_rcnn", "set": "bccd", "seed": 0}
    lines += [{"spec": {**faster, "lr": 0.0025}, **numbers, "AP": 0.3, "resumed": True, "cpu_seconds": 1}]
    lines += [{"spec": {**faster, "lr": 0.02}, **numbers, "AP": 0.0, "diverged": True}]
    log = tmp_path / "peers.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for module in (peers, page):
        monkeypatch.setattr(module, "LOG", log)
    monkeypatch.setattr(page, "REPEATED", tmp_path / "none.jsonl")
    result = tmp_path / "fig2_two_stage.json"
    page.write_report(study.Measurements(), result)
    text = result.with_suffix(".md").read_text(encoding="utf-8")
    assert "| bccd/val | modern |  | 0, 1 (not run: 2) | 40.0 (40.0–40.0) | 100 | 70 | – |" in text
    assert (
        "| bccd/val | Faster R-CNN (two stages) | 0.0025, 2 of 4 tried | 0 (not run: 1, 2) | 30.0 | 100 | – |" in text
    )
    assert "| deeppcb/test | Faster R-CNN (two stages) |  | not run |" in text
    assert "only flipped" not in text  # a control that was not run
    assert "| bccd/val | modern | 320 px | 0, 1 | 40.0 (40.0–40.0), log: 0, 1 | – | not run |" in text
    assert "| bccd/val | modern | 416 px |  | not run | – | not run |" in text
    assert "| bccd/val | modern | 320 px | +10.0 | one seed | – |" in text
    assert result.with_suffix(".png").stat().st_size > 1000

    summary = {"AP": 0.5, "APs": 0.2}
    evaluations = [study.Evaluation("bccd", "modern", 0, 320, summary)]
    evaluations += [study.Evaluation("bccd", "faster_rcnn", 0, 320, {"AP": 0.35, "APs": -1.0}, 0.0025)]
    evaluations += [study.Evaluation("bccd", "faster_rcnn", 0, 256, summary, 0.005)]  # no longer the best rate
    control = {"spec": {"side": "modern_flip", "set": "deeppcb", "seed": 0}, **numbers}
    log.write_text(log.read_text() + json.dumps(control) + "\n")
    timing = study.Timing("bccd", "modern", 320, 50.0, 45.0, 55.0, True, 4_000_000, None, 20.0)
    two = replace(timing, side="faster_rcnn", median=200.0, trained=False, proposals=900.0)
    page.write_report(study.Measurements(evaluations, [timing, two]), result)
    text = result.with_suffix(".md").read_text(encoding="utf-8")
    assert "| bccd/val | modern | 320 px | 0, 1 | 45.0 (40.0–50.0), log: 1 | 20.0 | 50 (45–55) | – | 20 |" in text
    assert "| deeppcb/test | modern, only flipped | 320 px | 0 | 40.0, log: 0 |" in text
    assert "| bccd/val | modern, only flipped |" not in text
    assert "| 320 px | 0 | 35.0 | – | 200 (45–55), random weights | 900 | 20 |" in text
    assert "| bccd/val | Faster R-CNN (two stages) | 256 px |  | not run |" in text
    assert "| bccd/val | modern | 320 px | +10.0 | one seed | 4.0 × (random weights) |" in text


def test_a_diverged_seed_is_shown(experiment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, page, peers = experiment("two_stage"), experiment("two_stage_report"), experiment("peers")
    runs = [
        {"spec": {"side": "faster_rcnn", "set": "bccd", "seed": seed, "lr": 0.02}, "AP": ap, "seconds": 9, **more}
        for seed, ap, more in ((0, 0.4, {}), (1, 0.0, {"diverged": True}))
    ]
    log = tmp_path / "peers.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in runs))
    monkeypatch.setattr(peers, "LOG", log)
    row = page.row_of(study.Measurements(), runs, "bccd", "faster_rcnn", 320)
    assert row.aps == {0: 40.0, 1: 0.0}
    assert row.logged == (0,)
    assert "20.0 (0.0–40.0), 1 diverged" in page.trainings(runs, [row])
