"""``retinanet eval`` with two detectors or files compares them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from eval_runs import CPU, Eval, annotate_with, read, write_peer_detections
from retinanet.evaluation.coco_ap import SUMMARY
from retinanet.zoo.weights import load_weights, save_weights


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinanet.evaluation.compare.RESAMPLES", 50)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Eval:
    return Eval(capsys)


@pytest.fixture(scope="session")
def peer_file(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_peer_detections(parts, tmp_path_factory.mktemp("peer") / "torchvision.json")


@pytest.fixture
def own_parts(parts: Path, peer_file: Path, tmp_path: Path) -> Path:
    """A copy of the sample dataset, annotated with some of the detections, without info and licenses."""
    folder = Path(shutil.copytree(parts, tmp_path / "own parts"))
    annotate_with(folder, peer_file)
    return folder


@pytest.fixture(scope="session")
def other_weights(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The detector of ``weights`` with a little noise."""
    model, info = load_weights(weights)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.classification.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    save_weights(path, dict(model.state_dict()), info)
    return path


def test_two_models(run: Eval, weights: Path, other_weights: Path, parts: Path, tmp_path: Path) -> None:
    said = run(weights, "--split", "train", other_weights, parts, "--out", tmp_path / "out", *CPU)
    written = read(tmp_path / "out" / "compare.json")
    assert (written["a"], written["b"], written["data"]) == (str(weights), str(other_weights), "parts [train]")
    assert f"A: {weights}\nB: {other_weights}\n" in said
    for side, model in (("a", weights), ("b", other_weights)):
        run(model, parts, "--split", "train", "--out", tmp_path / side, *CPU)
        alone = read(tmp_path / side / "metrics.json")
        assert written["metrics"][side] == {name: alone[name] for name in SUMMARY}
        assert written["AP"][side] == pytest.approx(alone["AP"], abs=1e-12)
    assert written["AP"]["delta"] != 0
    page = (tmp_path / "out" / "compare.html").read_text()
    assert 'src="http' not in page
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["compare.html", "compare.json"]


def test_a_model_and_itself(run: Eval, weights: Path, parts: Path, tmp_path: Path) -> None:
    own = Path(shutil.copy(weights, tmp_path / "w.safetensors"))
    said = run(own, own, parts, *CPU)
    written = read(tmp_path / "compare" / "compare.json")
    for name in ("AP", "AP50"):
        change = written[name]
        assert [change[key] for key in ("delta", "low", "high", "b_better", "a_better")] == [0] * 5
    assert "There is no difference" in said


def test_a_model_and_a_file(run: Eval, weights: Path, own_parts: Path, peer_file: Path, tmp_path: Path) -> None:
    """The model is A, wherever it stands; the next command evaluates the better one."""
    said = run("--detections", peer_file, weights, own_parts, "--out", tmp_path / "out", *CPU)
    written = read(tmp_path / "out" / "compare.json")
    assert (written["a"], written["b"]) == (str(weights), str(peer_file))
    assert written["AP"]["delta"] > 0
    last = said.strip().splitlines()[-1]
    assert last == f"next: retinanet eval --detections {peer_file} '{own_parts}'"


def test_models_of_different_classes(
    run: Eval, weights: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, info = load_weights(weights)
    others = ("something", *info.classes[1:])
    renamed = tmp_path / "renamed.safetensors"
    save_weights(renamed, dict(model.state_dict()), type(info)(**{**vars(info), "classes": others}))
    said = run(weights, renamed, parts, "--split", "train", *CPU)
    assert f"note: not compared, because only A has these classes: {info.classes[0]}" in said
    written = read(tmp_path / "compare" / "compare.json")
    assert written["not_compared"] == {"only_a": [info.classes[0]], "only_b": [], "neither": []}
    assert set(written["per_class"]) == set(info.classes[1:])
    strange = tmp_path / "strange.safetensors"
    save_weights(strange, dict(model.state_dict()), type(info)(**{**vars(info), "classes": tuple("wxyz")}))

    def never(*_: object) -> None:
        raise AssertionError("the work was begun")

    monkeypatch.setattr("retinanet.model.RetinaNet.forward", never)
    assert "no class here" in run.fails(weights, strange, parts, *CPU)


def test_models_that_set_different_parts_aside(run: Eval, weights: Path, parts: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(parts, tmp_path / "p"))
    (own / "instances_val.json").unlink()
    model, info = load_weights(weights)
    data = type(info.config.data)(**{**vars(info.config.data), "val_fraction": 0.3})
    config = type(info.config)(**{**vars(info.config), "data": data})
    other = tmp_path / "other.safetensors"
    save_weights(other, dict(model.state_dict()), type(info)(**{**vars(info), "config": config}))
    line = run.fails(weights, other, own, *CPU, code=2)
    assert "(0.1 and 0.3); name a split with --split" in line
    run(weights, other, own, "--split", "train", *CPU)


def test_what_is_to_be_evaluated_must_be_clear(run: Eval, weights: Path, parts: Path, tmp_path: Path) -> None:
    assert "0 detectors before DATA" in run.fails(parts, code=2)
    file = tmp_path / "a.json"
    file.write_text("[]")
    assert "3 detectors before DATA" in run.fails(weights, weights, "--detections", file, parts, code=2)
    assert f"--detections {file}" in run.fails(file, parts, code=2)
    assert "give WEIGHTS DATA" in run.fails(code=2)
    with pytest.raises(SystemExit) as stopped:
        run(weights, weights, weights, parts)
    assert stopped.value.code == 2


@pytest.mark.parametrize("words", ["A --split train B DATA", "A B --split train DATA", "--split=train A B DATA"])
def test_flags_may_stand_anywhere(
    words: str, run: Eval, weights: Path, other_weights: Path, parts: Path, tmp_path: Path
) -> None:
    names = {"A": weights, "B": other_weights, "DATA": parts}
    run(*(names.get(word, word) for word in words.split()), "--out", tmp_path / "out", *CPU)
    written = read(tmp_path / "out" / "compare.json")
    assert (written["a"], written["b"], written["data"]) == (str(weights), str(other_weights), "parts [train]")
