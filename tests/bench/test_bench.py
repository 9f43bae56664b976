"""The comparisons run, compare equals with equals, and say what they found."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from retinanet import cli
from retinanet.bench import cases, run
from retinanet.bench.measure import Case, Timing, extra_memory, measure
from retinanet.bench.peer import torchvision_retinanet
from retinanet.cli import bench as bench_verb
from retinanet.model import RetinaNet


class Clock:
    """Stands still but for what is done in a call."""

    now = 0.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def test_sides_are_called_in_turn_and_medians_taken(clock: Clock) -> None:
    calls: list[str] = []
    waits = iter([10.0, 0.25, 2.0, 0.5])  # the first round warms up and does not count

    def slow() -> None:
        calls.append("slow")
        clock.pass_by(next(waits, 0.0))

    case = Case("c", {"ours": lambda: calls.append("ours"), "torchvision": slow}, lambda: calls.append("floor"), "f")
    found = measure(case, 3)
    assert calls[:9] == ["ours", "slow", "floor"] * 3
    assert set(found.seconds) == {"ours", "torchvision", "floor"}
    assert found.seconds["torchvision"] == 0.5
    assert found.notes == ["floor: f"]


def test_a_side_that_takes_too_long_is_called_once(clock: Clock) -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        clock.pass_by(30)

    found = measure(Case("c", {"ours": lambda: None, "torchvision": slow}), 5)
    assert len(calls) == 2  # once for the time, once for the memory
    assert found.seconds["torchvision"] == 30


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of memory this way")
def test_memory_of_a_call() -> None:
    taken = extra_memory(lambda: torch.ones(20 * 2**18))  # 20 MB
    assert taken is not None
    assert 19 < taken / 2**20 < 24


def test_ratios() -> None:
    found = Timing("x", {"ours": 0.5, "torchvision": 2.0, "ours bf16": 0.25, "floor": 0.1}, {"ours": 2**20}, 4, ["n"])
    assert found.times_faster() == 4
    assert found.times_faster("ours bf16") == 8
    assert Timing("y", {"ours": 0.5}, {}).times_faster() is None
    assert Timing("y", {"ours": 0.5, "pycocotools": 1.0}, {}).times_faster() == 2
    assert found.to_dict() == {
        "what": "x",
        "median_ms": {"ours": 500, "torchvision": 2000, "ours bf16": 250, "floor": 100},
        "times_faster": {"ours": 4, "ours bf16": 8},
        "extra_memory_mb": {"ours": 1},
        "items_per_call": 4,
        "notes": ["n"],
    }
    first, header, line = run.table([found]).splitlines()
    assert "threads" in first
    assert header.split() == [
        "ours",
        "ours",
        "bf16",
        "theirs",
        "faster",
        "faster",
        "bf16",
        "floor",
        "memory",
        "their",
        "memory",
    ]
    assert line.split() == ["x", "500", "ms", "250", "ms", "2.00", "s", "4.0×", "8.0×", "20%", "1", "MB"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: cases.focal(1, 400),
        lambda: cases.focal(7, 400),
        lambda: cases.assignment(7),
        lambda: cases.assignment(5000),
        lambda: cases.postprocessing(1, images=2),
        lambda: cases.detector(96),
        lambda: cases.training_step(64, 1),
        lambda: cases.evaluation(30, 30),
    ],
)
def test_every_comparison_runs(make: object) -> None:
    case = make()  # type: ignore[operator]
    for call in case.sides.values():
        call()
    if case.floor is not None:
        case.floor()
    assert "ours" in case.sides


def test_comparisons_from_files_run() -> None:
    for case in cases.from_files(images=1, side=64):
        assert set(case.sides) == {"ours", "torchvision", "ours bf16"}
        for call in case.sides.values():
            call()
    names = []
    for case in cases.photograph():
        names.append(case.name)
        case.sides["ours"]()
    assert len(names) == 6


def test_both_evaluations_give_the_same() -> None:
    sides = cases.evaluation(20, 40).sides
    ours, theirs = sides["ours"](), sides["pycocotools"]()
    assert theirs["AP50"] > 0.05
    for name, value in theirs.items():
        assert ours.summary[name] == pytest.approx(value, abs=1e-6)


def test_sides_that_disagree_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "focal_loss", lambda x, labels: 1.1 * x.sum())
    with pytest.raises(AssertionError, match="disagree"):
        cases.focal(3, 100)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    quick = {"loss": (lambda: [cases.focal(2, 100)], 1), "assignment": (lambda: [cases.assignment(3)], 1)}
    monkeypatch.setattr(run, "GROUPS", quick)
    monkeypatch.setattr(run, "SCALING", {"focal loss": ("classes", lambda n: cases.focal(n, 50), (1, 2))})
    assert cli.main(["bench", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "focal loss, 100 × 2" in shown
    assert "wrote bench.json, scaling.png" in shown
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert [case["what"] for case in kept["cases"]] == ["focal loss, 100 × 2", "assignment, 3 boxes"]
    assert [point["value"] for point in kept["scaling"]["focal loss"]] == [1, 2]
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["bench", "assignment", "--out", str(tmp_path / "one")]) == 0
    assert not (tmp_path / "one" / "scaling.png").exists()
    assert cli.main(["bench", "lost", "--out", str(tmp_path)]) == 2
    assert "there is no benchmark 'lost'; choose from loss, assignment" in capsys.readouterr().err


def test_the_groups_are_those_of_the_help() -> None:
    help_text = " ".join((bench_verb.Arguments.__doc__ or "").split())
    assert "torchvision" in help_text
    source = Path(bench_verb.__file__).read_text()
    assert f'"""Benchmarks to run: {", ".join(run.GROUPS)}.' in source
    assert all(name in source for name in run.ALONE)
    console = Console(quiet=True)
    with pytest.raises(Exception, match="choose from loss"):
        run.run(["x"], Path("unused"), console)


def test_quick_calls_are_repeated_and_slow_ones_are_not(clock: Clock) -> None:
    calls = {"ours": 0, "torchvision": 0}

    def quick() -> None:
        calls["ours"] += 1
        clock.pass_by(2**-10)

    def slow() -> None:
        calls["torchvision"] += 1
        clock.pass_by(0.25)

    measure(Case("quick", {"ours": quick}), repeats=2, memory=False)
    assert calls["ours"] == 201  # one to warm up
    measure(Case("slow", {"torchvision": slow}), repeats=2, memory=False)
    assert calls["torchvision"] == 4


def test_both_sides_of_the_training_step_train_the_same_part_of_the_backbone() -> None:
    """torchvision makes a model that trains all of it, and batch norm, unless weights are given."""
    peer = torchvision_retinanet(80).train()
    config = cases.training_config()
    own = RetinaNet.from_config(config.model, config.anchors, 80).train()

    def trained(model: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    assert 0 < trained(peer.backbone.body) == trained(own.backbone)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in peer.modules())
