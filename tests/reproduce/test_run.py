"""Rows to runs, and tiny trainings through the queue: once each, again after a kill, and what diverges."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file

from retinanet.errors import DataError, RetinaNetError
from retinanet.files import write_json
from retinanet.reproduce import plan as planning
from retinanet.reproduce.plan import Plan, Request, Run, paper_plan, require_coco, small_plan
from retinanet.reproduce.results import images_done, outcome
from retinanet.reproduce.rows import EXPERIMENTS, Row, find_experiments
from retinanet.reproduce.run import as_json, reproduce
from retinanet.reproduce.training import train_missing
from retinanet.reproduce.worker import FAILURE, SECONDS, SPEC

TINY = """
recipe: paper
model: {backbone: tf_efficientnet_lite0, channels: 32, subnet_depth: 1, pretrained: false}
data: {size: 64, max_size: 64, workers: 0, verify: false}
train: {batch: 4, precision: fp32, checkpoint_minutes: 0.0001}
"""
FL = Row("FL", 34.0)
CE = Row("CE", None, {"loss": {"classification": "ce"}})


def console() -> tuple[Console, io.StringIO]:
    said = io.StringIO()
    return Console(file=said, width=300), said


@pytest.fixture
def tiny(parts: Path, tmp_path: Path) -> Plan:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return small_plan(parts, tmp_path / "runs", images=18, recipe=str(tmp_path / "tiny.yaml"))


def one(plan: Plan, *rows: Row) -> Request:
    experiment = replace(EXPERIMENTS["table1b"], rows=rows)
    return Request([experiment], plan, (0,), plan.runs / "out")


# What is to be run


def test_the_budget_is_counted_in_images(parts: Path, tmp_path: Path, tiny: Plan) -> None:
    assert (tiny.train_images, tiny.val_images, tiny.base.train.epochs, tiny.base.train.eval_every) == (9, 3, 2, 2)
    assert tiny.run(FL, 0).images == 18
    part = small_plan(parts, tmp_path, images=4)
    assert (part.train_images, part.base.train.epochs) == (4, 1)
    train_set, val_set = part.source.read()
    assert (len(train_set), len(val_set)) == (4, 3)
    again, _ = part.source.read()
    assert list(train_set.files) == list(again.files)


def test_equal_settings_are_one_run(tiny: Plan) -> None:
    same = Row("by another name", 1.0, {"loss": {"gamma": 2.0, "alpha": 0.25}})
    assert tiny.run(FL, 0) == tiny.run(same, 0)
    assert len(tiny.all_runs([FL, same, CE], (0, 1))) == 4
    assert len({tiny.run(row, seed).folder for row in (FL, CE) for seed in (0, 1)}) == 4


def test_folders_tell_settings_data_and_budget_apart(tiny: Plan, parts: Path, tmp_path: Path) -> None:
    run = tiny.run(CE, 3)
    assert run.folder.parent == tmp_path / "runs" / "parts"
    assert run.folder.name.startswith("ce-s3-")
    longer = small_plan(parts, tmp_path / "runs", images=27, recipe=str(tmp_path / "tiny.yaml")).run(CE, 3)
    others = replace(tiny, identity="other boxes").run(CE, 3)
    assert len({run.folder, longer.folder, others.folder}) == 3
    for experiment in EXPERIMENTS.values():
        for row in experiment.chosen(every=True, small=True):
            assert "/" not in tiny.run(row, 0).folder.name
            assert len(tiny.run(row, 0).folder.name) < 80


def test_tables_share_runs(tiny: Plan) -> None:
    """γ = 2, α = 0.25 is a row of 1b, 1c, 1d, 1e, 3 and Figure 4; α-CE 0.75 one of 1a and 1b."""

    def count(*names: str) -> int:
        return len(Request(find_experiments(names), replace(tiny, base=small), (0, 1), Path("out")).runs())

    small = small_plan(tiny.source.path, tiny.runs, images=2400).base
    assert count("table1a") == count("table1b") == count("table1c") == 14
    assert count("table1a", "table1b") == 2 * (7 + 7 - 1)
    assert count("table1b", "table3") == 2 * (7 + 2)
    assert count("table1b", "table1d") == 2 * (7 + 2)
    assert count("table1e", "fig2") == 10
    assert count("table1b", "divergence") == 2 * (7 + 4)  # without group norm
    assert count("fig4") == 1
    assert count("table1b", "fig4") == 14
    assert count("fig1") == 0
    assert count("all") == 2 * (7 + 6 + 6 + 2 + 4 + 2 + 4)


def test_flags_say_what_a_row_changes(tiny: Plan) -> None:
    assert tiny.flags(FL) == ""
    assert tiny.flags(CE) == "--loss.classification ce"
    assert tiny.flags(Row("", None, {"anchors": {"ratios": (1.0,)}})) == "--anchors.ratios 1.0"


def test_only_coco_is_coco(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"there is no annotations/instances_train2017\.json; the paper's numbers"):
        require_coco(str(parts))
    named = tmp_path / "coco"
    (named / "annotations").mkdir(parents=True)
    (named / "images").symlink_to(parts / "images")
    for split in ("train", "val"):
        (named / "annotations" / f"instances_{split}2017.json").write_text(
            (parts / f"instances_{split}.json").read_text()
        )
    with pytest.raises(DataError, match="9 train and 3 val images of 4 classes, but COCO 2017 has 118287, 5000 and 80"):
        require_coco(str(named))
    monkeypatch.setattr(planning, "COCO_IMAGES", (9, 3))
    with pytest.raises(DataError, match="of 4 classes"):
        require_coco(str(named))
    assert paper_plan("COCO", tmp_path).train_images == 9


# Trainings


def test_what_is_missing_is_trained_once(tiny: Plan) -> None:
    terminal, said = console()
    request = one(tiny, FL, CE)
    reproduce(request, 2, terminal)
    found = json.loads((request.out / "table1b.json").read_text())
    for row, measured in zip((FL, CE), found["rows"], strict=True):
        run = tiny.run(row, 0)
        (own,) = measured["runs"]
        log = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        assert own["ap"] == log[-1]["AP"]
        assert own["images"] == 18
        steps = outcome(run)
        assert steps is not None
        assert steps.losses == [line["loss"] for line in log if "loss" in line]
        assert own["losses"] == []
        assert 0 < own["seconds"] < 600
        assert sum(own["shares"].values()) == pytest.approx(1, abs=1e-3)
        assert not own["diverged"]
    assert "2 runs, 0 of them finished" in said.getvalue()
    assert (request.out / "table1b.png").exists()
    assert "not run" not in (request.out / "table1b.md").read_text()

    before = {run.folder: (run.folder / "last.safetensors").stat().st_mtime_ns for run in request.runs()}
    terminal, said = console()
    reproduce(request, 1, terminal)
    assert "2 runs, 2 of them finished" in said.getvalue()
    assert before == {run.folder: (run.folder / "last.safetensors").stat().st_mtime_ns for run in request.runs()}


def test_lists_of_numbers_are_a_line() -> None:
    value = {"a": [1, 2.5e-7, -3.0], "b": ["[1,\n2]"], "c": {"γ": [[1, 2], []]}, "d": None}
    text = as_json(value)
    assert json.loads(text) == value
    assert '"a": [ 1, 2.5e-07, -3.0 ]' in text
    assert '"γ"' in text


def test_a_report_trains_nothing(tiny: Plan) -> None:
    terminal, _ = console()
    request = one(tiny, FL)
    reproduce(request, 1, terminal, report=True)
    assert not tiny.run(FL, 0).folder.exists()
    assert "| FL | 34.0 | not run |" in (request.out / "table1b.md").read_text()


def test_a_killed_queue_goes_on_where_it_stopped(tiny: Plan, tmp_path: Path) -> None:
    """SIGKILL of the queue: the training notices, saves its state and ends; the next queue ends as if nothing was."""
    longer = replace(tiny, base=replace(tiny.base, train=replace(tiny.base.train, epochs=20, eval_every=20)))
    run = longer.run(FL, 0)
    write_json(run.folder / SPEC, run.to_dict())
    code = (
        "import sys; from retinanet.reproduce.queue import Task, run_tasks; run_tasks([Task('', (sys.executable, '-m', "
        f"'retinanet.reproduce.worker', {str(run.folder)!r}))], 1, print, one_thread=False)"
    )
    queue = subprocess.Popen([sys.executable, "-c", code])
    _wait(lambda: images_done(run) > 16)
    os.kill(queue.pid, signal.SIGKILL)
    queue.wait()
    _wait(lambda: (run.folder / SECONDS).exists() and (run.folder / SECONDS).read_text() != "null\n")
    stopped = images_done(run)
    assert 16 < stopped < run.images
    assert outcome(run) is None

    terminal, _ = console()
    assert train_missing([run], 1, terminal) == []
    found = outcome(run)
    assert found is not None
    assert found.ap is not None
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 61))

    whole = replace(longer, runs=tmp_path / "whole").run(FL, 0)
    assert train_missing([whole], 1, terminal) == []
    ours, theirs = (load_file(each.folder / "best.safetensors") for each in (run, whole))
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_diverged_run_is_a_result(tiny: Plan) -> None:
    wild = Row("lr", None, {"train": {"lr": 1e9, "warmup": 0}}, diverges=True)
    terminal, said = console()
    request = one(tiny, wild)
    reproduce(request, 1, terminal)
    found = outcome(tiny.run(wild, 0))
    assert found is not None
    assert found.diverged is not None
    assert 1 < found.diverged <= 6
    assert (found.ap, found.images) == (None, min(18, 4 * found.diverged))
    assert len(found.losses) == found.diverged - 1
    assert f"diverged at step {found.diverged}" in said.getvalue()
    page = (request.out / "table1b.md").read_text()
    assert f"| lr | diverges | diverged | – | – | 0 | 1 of 1, at step {found.diverged} |" in page
    terminal, said = console()
    reproduce(request, 1, terminal)
    assert "1 runs, 1 of them finished" in said.getvalue()


def test_a_run_that_cannot_be_done_is_said_and_tried_again(tiny: Plan) -> None:
    broken = Row("broken", None, {"model": {"backbone": "no_such_network"}})
    terminal, said = console()
    request = one(tiny, broken)
    with pytest.raises(RetinaNetError, match=r"1 runs failed, first .*no backbone 'no_such_network'"):
        reproduce(request, 1, terminal)
    assert "failed" in said.getvalue()
    assert "| broken | – | not run |" in (request.out / "table1b.md").read_text()
    assert not (tiny.run(broken, 0).folder / FAILURE).exists()


def test_garbage_in_a_folder_takes_one_line(tiny: Plan) -> None:
    run = tiny.run(FL, 0)
    run.folder.mkdir(parents=True)
    for name in (FAILURE, SECONDS):
        for content in ("{garbage", "[1, 2]", '{"stop": 1}'):
            (run.folder / name).write_text(content)
            with pytest.raises(RetinaNetError, match=rf"{name}: .*; remove .* to train it again"):
                outcome(run)
        (run.folder / name).unlink()


def test_a_log_cut_in_two_is_read(tiny: Plan) -> None:
    run = tiny.run(FL, 0)
    assert images_done(run) == 0
    run.folder.mkdir(parents=True)
    (run.folder / "metrics.jsonl").write_text('{"step": 2, "loss": 1}\n{"step": 3, "lo')
    assert images_done(run) == 8
    assert outcome(run) is None


def _wait(ready: Any) -> None:
    until = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_figures_2_and_4_of_trained_runs(tiny: Plan) -> None:
    """Through the whole command: fig4 takes the γ = 2 run, fig2 times each size."""
    terminal, _ = console()
    sized = Row(
        "R-50, 400 px", 30.5, {}, {}, {"data": {"size": 64, "max_size": 64}}, 64, here="64 px (for R-50, 400 px)"
    )
    experiments = [replace(EXPERIMENTS["fig2"], rows=(sized,)), EXPERIMENTS["fig4"]]
    request = Request(experiments, replace(tiny, base=_larger(tiny)), (0, 1), tiny.runs / "out")
    assert len(request.runs()) == 2  # seed 0 is that of Figure 4 as well
    reproduce(request, 2, terminal)
    speed = json.loads((request.out / "fig2.json").read_text())["extra"]["speed"]
    assert speed[sized.here]["median"] > 0
    assert speed[sized.here]["images"] == 3
    found: dict[str, Any] = json.loads((request.out / "fig4.json").read_text())["extra"]["distribution"]
    assert found["model"].startswith("the recipe `paper` with `--model.backbone")
    assert "after 2 epochs, AP " in found["model"]
    assert found["images"] == 3
    assert "of the background" in (request.out / "fig4.md").read_text()


def _larger(plan: Plan) -> Any:
    """With anchors that match the sample's small parts, so that there is foreground."""
    sizes = tuple(size / 4 for size in plan.base.anchors.sizes)
    return replace(plan.base, anchors=replace(plan.base.anchors, sizes=sizes))


def test_runs_are_named_and_specified(tiny: Plan) -> None:
    run: Run = tiny.run(CE, 1)
    assert run.name == "ce, seed 1"
    assert run.to_dict()["source"] == {"path": tiny.source.path, "train_images": 18, "val_images": 400}
