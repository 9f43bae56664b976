"""``retinanet data anchors`` as users meet it."""

from __future__ import annotations

import json
import shlex
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from retinanet import cli
from retinanet.anchors import make_grid, match_batch
from retinanet.config import AnchorSpec, DataConfig
from retinanet.data.formats.open_dataset import read_split
from retinanet.inspection.anchor_coverage import best_overlaps
from retinanet.losses.detection import detection_losses
from retinanet.model import RetinaNet
from retinanet.recipes import load_recipe


def write_bars(folder: Path, images: int = 30, largest: int = 60) -> Path:
    """A COCO dataset of lying bars, 9 times as wide as high. Its images are empty files, which are never read."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for number in range(images):
        (folder / "images" / f"{number}.png").touch()
    for split in ("train", "val"):
        listed: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(images):
            listed.append({"id": number, "file_name": f"{number}.png", "width": 320, "height": 320})
            for _ in range(8):
                width = rng.uniform(largest / 2, largest)
                x, y = rng.uniform(0, 320 - width, 2)
                row = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
                annotations.append({**row, "bbox": [x, y, width, width / 9], "area": width * width / 9})
        classes = [{"id": 1, "name": "bar"}, {"id": 2, "name": "never there"}]
        content = {"images": listed, "annotations": annotations, "categories": classes}
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bars(tmp_path_factory.mktemp("bars") / "long bars", largest=240)


def share(dataset: Path, split: str, spec: AnchorSpec, data: DataConfig) -> float:
    return float((best_overlaps(read_split(dataset, split), spec, data) >= 0.5).mean())


def test_writes_a_recipe_that_covers_more(bars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "my anchors.yaml"
    argv = ["data", "anchors", str(bars), "--out", str(out), "--data.size", "320", "--scales", "2", "--ratios", "2"]
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    config = load_recipe(str(out))
    modern = load_recipe("modern")
    assert config.anchors.per_location <= 4
    assert config == type(config)(**{**vars(modern), "anchors": config.anchors})
    data = DataConfig(size=320)
    for split in ("train", "val"):
        assert share(bars, split, AnchorSpec(), data) < 0.2
        assert share(bars, split, config.anchors, data) > 0.9
    text = out.read_text()
    now, was = share(bars, "train", config.anchors, data), share(bars, "train", AnchorSpec(), data)
    assert f"{was:.1%} before, {now:.1%} with these" in text
    assert set(yaml.safe_load(text)) == {"recipe", "anchors"}
    with Image.open(out.with_suffix(".png")) as plot:
        assert min(plot.size) > 400
    assert said.count("never there") == 1  # among the classes; there is nothing to cover
    assert f"{share(bars, 'val', AnchorSpec(), data):.1%} → {share(bars, 'val', config.anchors, data):.1%}" in said
    words = shlex.split(said.splitlines()[-1].removeprefix("next: retinanet "))
    assert words == ["train", str(bars), "--recipe", str(out), "--data.size", "320"]

    again = tmp_path / "again.yaml"
    assert cli.main([*argv[:4], str(again), *argv[5:]]) == 0
    assert again.read_text() == text


def test_a_network_learns_with_the_fitted_anchors(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "anchors.yaml"
    flags = ["--data.size", "64", "--scales", "2", "--ratios", "1"]
    assert cli.main(["data", "anchors", str(parts), "--out", str(out), *flags]) == 0
    config = load_recipe(str(out))
    settings = replace(config.model, channels=64, subnet_depth=1)
    model = RetinaNet.from_config(settings, config.anchors, 4, pretrained=False)
    grid, boxes = make_grid(config.anchors, (64, 64)), torch.tensor([[8.0, 8.0, 30.0, 30.0]])
    matches = match_batch(grid, [boxes], [torch.zeros(0, 4)], config.assign)
    losses = detection_losses(
        model(torch.rand(1, 3, 64, 64)), grid, matches, boxes, torch.zeros(1, dtype=torch.int64), config.loss
    )
    assert losses.foreground > 0
    losses.total.backward()  # type: ignore[no-untyped-call]
    learnt = model.regression.predict.weight.grad
    assert learnt is not None
    assert torch.isfinite(learnt).all()
    assert learnt.abs().sum() > 0


def test_anchors_that_are_as_good_are_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fitted once, there is nothing to win by fitting again; and the way back leads over the first recipe."""
    bars = write_bars(tmp_path / "bars", images=10, largest=240)
    first, second = tmp_path / "first.yaml", tmp_path / "second" / "again.yaml"
    flags = ["--scales", "2", "--ratios", "1", "--data.size", "320"]
    assert cli.main(["data", "anchors", str(bars), "--out", str(first), *flags]) == 0
    capsys.readouterr()
    assert cli.main(["data", "anchors", str(bars), "--out", str(second), "--recipe", str(first), *flags]) == 0
    said = capsys.readouterr().out
    assert "Keep them." in said
    assert said.splitlines()[-1] == f"next: retinanet train {bars} --recipe {first} --data.size 320"
    assert yaml.safe_load(second.read_text())["recipe"] == "../first.yaml"
    assert load_recipe(str(second)).model == load_recipe("modern").model


def test_small_objects_are_told_of_a_larger_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bars = write_bars(tmp_path / "bars", images=10, largest=24)
    out = tmp_path / "a.yaml"
    argv = ["data", "anchors", str(bars), "--out", str(out), "--data.size", "320", "--scales", "1", "--ratios", "2"]
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    assert "They need anchors 4 pixels apart, which this network (levels P3 to P7) does not have" in said
    covers = [float(line.split("cover ")[1].split("%")[0]) for line in said.splitlines() if "would cover" in line]
    fitted = 100 * share(bars, "train", load_recipe(str(out)).anchors, DataConfig(size=320))
    assert fitted < covers[0] < covers[1]
    assert "--data.size 480" in said
    assert "--data.size 640" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scales", "0"], "--scales is 0; use 1 to 6"),
        (["--ratios", "7"], "--ratios is 7; use 1 to 6"),
        (["--seed", "-1"], "--seed is -1"),
        (["--out", "anchors.txt"], "give the name of a YAML file"),
        (["--recipe", "missing.yaml"], "no recipe 'missing.yaml'"),
        (["--recipe", "own.yaml", "--out", "own.yaml"], "write to another file"),
        (["--data.size", "3"], "data.size is 3"),
        (["--out", "own.yaml/anchors.yaml"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(
    parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("recipe: modern\n")
    quick = ["--scales", "1", "--ratios", "1", "--data.size", "64"]
    try:
        code = cli.main(["data", "anchors", str(parts), *quick, *flags])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code in (1, 2)
    assert message in " ".join(capsys.readouterr().err.split())
    assert Path("own.yaml").read_text() == "recipe: modern\n"


@pytest.mark.parametrize("box", [[319.9999, 10, 0.0001, 310], [0, 0, 320, 320], [5, 5, 0.001, 0.001]])
def test_odd_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str], box: list[float]) -> None:
    """One box, which no anchors can cover, or which the paper's cover already."""
    bars = write_bars(tmp_path / "bars", images=4, largest=40)
    content = json.loads((bars / "instances_train.json").read_text())
    only = {**content["annotations"][0], "bbox": box, "area": box[2] * box[3]}
    (bars / "instances_train.json").write_text(json.dumps({**content, "annotations": [only]}))
    flags = ["--data.size", "32", "--scales", "2", "--ratios", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cli.main(["data", "anchors", str(bars), "--out", str(tmp_path / "a.yaml"), *flags]) == 0
    said = capsys.readouterr().out
    assert ("pixel at data.size 32 and cannot be learned" in said) == (box[2] < 1)
    assert "Keep them." in said


def test_nothing_to_fit_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bars = write_bars(tmp_path / "bars", images=4, largest=40)
    content = json.loads((bars / "instances_train.json").read_text())
    (bars / "instances_train.json").write_text(json.dumps({**content, "annotations": []}))
    assert cli.main(["data", "anchors", str(bars), "--out", str(tmp_path / "a.yaml")]) == 1
    assert "there is no box to fit anchors to in 4 images" in capsys.readouterr().err
    empty = {**content["annotations"][0], "bbox": [5, 5, 0, 9]}
    (bars / "instances_train.json").write_text(json.dumps({**content, "annotations": [empty]}))
    assert cli.main(["data", "anchors", str(bars), "--out", str(tmp_path / "a.yaml")]) == 1
    assert "invalid annotations: 1, first " in capsys.readouterr().err
