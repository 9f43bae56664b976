"""``retinanet train``: the files of a run, resuming, and one line for wrong data or settings."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import retinanet
from commands import SMALL, Command, next_command
from retinanet.training.log import Log
from retinanet.zoo import weights as zoo


def test_train_leaves_weights_metrics_and_curves(trained: tuple[Path, str], parts: Path) -> None:
    out, said = trained
    files = {path.name for path in out.iterdir()}
    assert files == {".lock", "best.safetensors", "last.safetensors", "metrics.jsonl", "curves.png", "config.yaml"}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps, evaluations = [x for x in lines if "loss" in x], [x for x in lines if "AP" in x]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert [line["epoch"] for line in evaluations] == [1]
    assert all({"classification", "box", "lr", "grad_norm", "foreground"} <= set(line) for line in steps)
    with Image.open(out / "curves.png") as curves:
        assert min(curves.size) > 200
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert settings["data"]["size"] == 64
    assert next_command(said) == ["eval", str(out / "best.safetensors"), str(parts)]


def test_written_settings_are_a_recipe(run: Command, trained: tuple[Path, str], parts: Path, tmp_path: Path) -> None:
    recipe = trained[0] / "config.yaml"
    assert run("train", parts, "--out", tmp_path / "run", "--recipe", recipe).code == 0
    assert (tmp_path / "run" / "config.yaml").read_text() == recipe.read_text()
    first, second = (load_file(folder / "best.safetensors") for folder in (trained[0], tmp_path / "run"))
    assert all(torch.equal(first[name], second[name]) for name in first), "same settings and seed, other weights"


def test_train_refuses_to_overwrite_a_run(run: Command, trained: tuple[Path, str], parts: Path) -> None:
    before = (trained[0] / "last.safetensors").read_bytes()
    assert "--resume" in run.fails("train", parts, "--out", trained[0], *SMALL)
    assert (trained[0] / "last.safetensors").read_bytes() == before


def test_train_refuses_to_overwrite_best_weights_alone(run: Command, parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "best.safetensors").write_bytes(b"precious")
    assert "best.safetensors" in run.fails("train", parts, "--out", out, *SMALL)
    assert "best.safetensors" in run.fails("train", parts, "--out", out, "--resume", *SMALL)
    assert (out / "best.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("flag", "value", "hint"),
    [
        ("--data.size", "3", "32 to 8192"),
        ("--train.epochs", "0", "at least 1"),
        ("--train.lr", "-1", "positive"),
        ("--loss.alpha", "3", "between 0 and 1"),
        ("--model.channels", "33", "multiple of 32"),
        ("--data.workers", "-2", "negative"),
    ],
)
def test_values_out_of_range(run: Command, tmp_path: Path, flag: str, value: str, hint: str) -> None:
    line = run.fails("train", tmp_path, "--out", tmp_path / "run", flag, value, code=2)
    assert hint in line
    assert flag.removeprefix("--") in line


def test_recipes(run: Command, parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = run.fails("train", parts, "--out", out, "--recipe", "modren", code=2)
    assert "modern, paper" in line
    recipe = tmp_path / "mine.yaml"
    for text, hint in (
        ("train: {epoch: 3}", "did you mean 'epochs'"),
        ("trian: {epochs: 3}", "did you mean 'train'"),
        ("train: {epochs: many}", "expected int"),
        ("train: 3", "group of settings"),
        ("- train", "mapping"),
        ("train: {epochs: [", "not a readable YAML file"),
        ("train: {epochs: 0}", "at least 1"),
    ):
        recipe.write_text(text)
        assert hint in run.fails("train", parts, "--out", out, "--recipe", recipe, code=2)
    assert not out.exists()


def test_a_recipe_without_a_name(run: Command, parts: Path) -> None:
    assert "no recipe ''; there are modern, paper" in run.fails("train", parts, "--recipe", "", code=2)


def test_resume_with_another_recipe_is_refused(run: Command, trained: tuple[Path, str], parts: Path) -> None:
    line = run.fails("train", parts, "--out", trained[0], "--resume", "--recipe", "paper", code=1)
    assert "cannot resume with other settings" in line


def test_resume_with_other_settings_is_refused(run: Command, trained: tuple[Path, str], parts: Path) -> None:
    line = run.fails("train", parts, "--out", trained[0], "--resume", "--data.size", 96, "--loss.gamma", 1)
    assert "data.size 64 → 96" in line
    assert "loss.gamma 2.0 → 1.0" in line


def test_resume_with_other_data_is_refused(run: Command, trained: tuple[Path, str], tmp_path: Path) -> None:
    assert run("data", "sample", tmp_path / "other", "--images", 10, "--size", 64, "--seed", 5).code == 0
    assert "data has changed" in run.fails("train", tmp_path / "other", "--out", trained[0], "--resume")


def test_stopped_and_resumed_is_as_if_never_stopped(
    run: Command, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*SMALL, "--train.epochs", "2"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run("train", parts, "--out", whole, *flags).code == 0

    write = Log.write
    interrupted: list[bool] = []

    def write_and_interrupt(log: Log, **values: Any) -> None:
        write(log, **values)
        if values["step"] == 2 and not interrupted:  # a second Ctrl-C would end the process at once
            interrupted.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", write_and_interrupt)
        said = run("train", parts, "--out", halves, *flags)
    assert said.code == 130
    assert "--resume" in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert [json.loads(x)["step"] for x in (halves / "metrics.jsonl").read_text().splitlines()][-2:] == [1, 2]
    assert run("train", parts, "--out", halves, "--resume").code == 0

    for name in ("last.safetensors", "best.safetensors"):
        first, second = load_file(whole / name), load_file(halves / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    kept = [[json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()] for out in (whole, halves)]
    assert [{**line, "seconds": 0, "data_wait": 0} for line in kept[0]] == [
        {**line, "seconds": 0, "data_wait": 0} for line in kept[1]
    ]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for single processes")
def test_ctrl_c_saves_and_says_how_to_go_on(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "retinanet", "train", parts, "--out", out, "--train.epochs", "1000", *SMALL]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        metrics, deadline = out / "metrics.jsonl", time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert len(err.strip().splitlines()) == 1, err
    assert "--resume" in err
    assert zoo.read_info(out / "last.safetensors").progress["step"] >= 1
    retinanet.load(out / "last.safetensors", device="cpu")


def test_full_disk_leaves_the_last_weights_intact(
    run: Command, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    kept: dict[str, bytes] = {}

    write_bytes = Path.write_bytes

    def write(self: Path, content: bytes) -> int:
        if (out / "last.safetensors").exists():  # the first epoch is saved
            kept.update({p.name: p.read_bytes() for p in out.glob("[!.]*.safetensors")})
            write_bytes(self, b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(self, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    line = run.fails("train", parts, "--out", out, "--train.epochs", 2, *SMALL)
    assert "No space left on device" in line
    assert "safetensors" in line
    assert sorted(kept) == ["best.safetensors", "last.safetensors"]
    assert {p.name: p.read_bytes() for p in out.glob("*.safetensors")} == kept
    assert not list(out.glob(".*.*"))
    retinanet.load(out / "best.safetensors", device="cpu")


def test_wrong_data(run: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert "nowhere: no such file or folder" in run.fails("train", tmp_path / "nowhere", "--out", out)
    (tmp_path / "empty").mkdir()
    line = run.fails("train", tmp_path / "empty", "--out", out)
    assert "the folder is empty" in line
    assert all(name in line for name in ("COCO", "Pascal VOC", "YOLO", "CSV"))
    (tmp_path / "list.json").write_text("[1, 2]")
    assert "not of annotations" in run.fails("train", tmp_path / "list.json", "--out", out)
    (tmp_path / "other.json").write_text('{"name": "x"}')
    assert "not COCO" in run.fails("train", tmp_path / "other.json", "--out", out)
    (tmp_path / "cut.json").write_text('{"images": [')
    assert "cut.json:1:" in run.fails("train", tmp_path / "cut.json", "--out", out)
    assert not out.exists()


def test_images_that_are_all_missing(run: Command, own_parts: Path) -> None:
    shutil.rmtree(own_parts / "images")
    assert "000000.jpg" in run.fails("train", own_parts, "--out", own_parts / "run")


def test_annotated_image_that_is_missing(run: Command, own_parts: Path, tmp_path: Path) -> None:
    (own_parts / "images" / "000004.jpg").unlink()
    line = run.fails("train", own_parts, "--out", tmp_path / "run", *SMALL)
    assert "images not found, first '000004.jpg'" in line


def test_annotation_of_an_image_that_is_not_listed(run: Command, own_parts: Path, tmp_path: Path) -> None:
    file = own_parts / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["image_id"] = 4711
    file.write_text(json.dumps(content))
    line = run.fails("train", own_parts, "--out", tmp_path / "run", "--train.epochs", 1, *SMALL)
    assert "image_id 4711" in line
    assert str(file) in line


def test_broken_image_is_named_before_training(run: Command, own_parts: Path, tmp_path: Path) -> None:
    broken = own_parts / "images" / "000002.jpg"
    broken.write_bytes(broken.read_bytes()[:500])
    arguments = ["train", own_parts, "--out", tmp_path / "run", "--train.epochs", 1, *SMALL]
    line = run.fails(*arguments)
    assert str(broken) in line
    assert "--data.skip-broken" in line
    assert not (tmp_path / "run").exists()
    said = run(*arguments, "--data.skip-broken")
    assert said.code == 0
    assert "8 images" in said.out
    assert f"note: left out: {broken}" in said.out


def test_nothing_to_learn_from(run: Command, own_parts: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        file = own_parts / f"instances_{split}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    assert "no box to learn from" in run.fails("train", own_parts, "--out", tmp_path / "run", *SMALL)
