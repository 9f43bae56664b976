"""The whole training: what it writes, that it learns, and what stops it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from retinanet import cli
from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.data.formats.train_val import read_train_val
from retinanet.data.sampling import TrainingOrder
from retinanet.errors import ConfigError, DataError
from retinanet.model import RetinaNet
from retinanet.recipes import load_recipe
from retinanet.training import loop
from retinanet.training.meter import Meter
from retinanet.training.validation import epoch_line
from retinanet.zoo.weights import load_weights, read_info
from training_runs import FLAGS, log_lines, sample_dataset, small_config, train_and_val


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def sets(parts: Path) -> tuple[Dataset, Dataset]:
    return train_and_val(parts)


def test_same_seed_same_weights_and_other_seed_others(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    runs = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        loop.train_on(small_config(seed=seed), *sets, tmp_path / name)
        runs[name] = load_file(tmp_path / name / "last.safetensors")
    assert all(torch.equal(runs["a"][key], runs["b"][key]) for key in runs["a"])
    assert any(not torch.equal(runs["a"][key], runs["c"][key]) for key in runs["a"])


def test_writes_what_it_promises(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    result = loop.train_on(small_config(epochs=2), *sets, tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        ".lock",
        "best.safetensors",
        "config.yaml",
        "curves.png",
        "last.safetensors",
        "metrics.jsonl",
    }
    lines = log_lines(tmp_path / "run" / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "AP" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in evaluations] == [1, 2]
    assert all(abs(s["loss"] - s["classification"] - s["box"]) < 1e-3 for s in steps)
    assert result.metrics["AP"] == max(line["AP"] for line in evaluations)
    written = load_recipe(str(tmp_path / "run" / "config.yaml"))
    assert written == replace(small_config(epochs=2), decode=written.decode)
    assert (written.decode.max_detections, written.decode.top_k) == (100, 1000)
    model, info = load_weights(result.best)
    assert info.classes == ("washer", "nut", "screw", "gear")
    assert not model.training


def test_averaged_weights_differ_from_raw_ones_and_are_the_ones_saved(
    sets: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    loop.train_on(small_config(ema=0.9), *sets, tmp_path / "run")
    state = load_file(tmp_path / "run" / "last.safetensors")
    name = "classification.predict.weight"
    assert not torch.equal(state[name], state[f"train.model.{name}"])
    model, _ = load_weights(tmp_path / "run" / "last.safetensors")
    assert torch.equal(model.state_dict()[name], state[name])


def test_learns_one_image_by_heart(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    train_set = sets[0]
    # an image of a few parts; none is hidden so much that it looks like another class
    one = train_set.subset([next(i for i in train_set if 3 <= len(train_set.boxes[train_set.rows(i)]) <= 6)])
    config = small_config(epochs=100, batch=1, eval_every=100, lr=0.02, ema=None)
    config = replace(config, data=replace(config.data, size=192, flip=0.0, scale=(1.0, 1.0), color=0.0))
    result = loop.train_on(config, one, one, tmp_path / "run")
    assert result.metrics["AP50"] > 0.9


def test_a_set_without_boxes_is_refused_with_the_reason(tmp_path: Path) -> None:
    builder = DatasetBuilder("empty", tmp_path, ["cell"])
    builder.add_image("a.jpg", 10, 10)
    empty = builder.build()
    with pytest.raises(DataError, match="no box to learn from"):
        loop.train_on(small_config(), empty, empty, tmp_path / "run")


def test_val_without_boxes_is_said_and_the_newest_weights_are_kept(
    sets: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    train_set, val_set = sets
    nothing = replace(val_set, ignore=np.ones_like(val_set.ignore))
    console = Console(record=True, width=200)
    result = loop.train_on(small_config(epochs=2), train_set, nothing, tmp_path / "run", console=console)
    assert "has no box to measure with; the newest weights are kept as the best" in console.export_text()
    assert read_info(result.best).progress["epoch"] == 2


def test_an_image_that_went_bad_is_replaced_named_and_counted(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "parts"
    shutil.copytree(parts, data)
    train_set, val_set, _ = read_train_val(data)
    bad, bad_val = train_set.path(2), val_set.path(0)
    bad.write_bytes(bad.read_bytes()[:300])
    bad_val.write_bytes(b"no image")
    flags = [*FLAGS, "--train.epochs", "2", "--data.no-verify"]
    assert cli.main(["train", str(data), "--out", str(tmp_path / "run"), *flags]) == 0
    said = capsys.readouterr().out
    named = [line for line in said.splitlines() if line.startswith("warning") and bad.name in line]
    assert len(named) == 1  # not in every epoch
    assert "another image takes its place" in named[0]
    assert "1 images could not be read (2 times in all); others took their places" in said
    left_out = [line for line in said.splitlines() if bad_val.name in line and "left out of this evaluation" in line]
    assert len(left_out) == 2  # in each
    warnings = [line["warning"] for line in log_lines(tmp_path / "run" / "metrics.jsonl") if "warning" in line]
    assert any(bad.name in warning for warning in warnings)


def test_all_images_gone_ends_the_training_with_the_reason(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    train_set, val_set = (replace(dataset, root=Path("/gone")) for dataset in sets)
    with pytest.raises(DataError, match="8 images in a row cannot be read; check their disk"):
        loop.train_on(small_config(), train_set, val_set, tmp_path / "run")


def test_numbers_read_a_step_late_as_on_a_gpu_change_nothing(
    sets: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(epochs=2)
    loop.train_on(config, *sets, tmp_path / "at once")
    monkeypatch.setattr(
        "retinanet.training.recorder.Meter", lambda processes, deferred: Meter(processes, deferred=True)
    )
    loop.train_on(config, *sets, tmp_path / "late")
    found, expected = (load_file(tmp_path / run / "last.safetensors") for run in ("late", "at once"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    steps = [
        [line for line in log_lines(tmp_path / r / "metrics.jsonl") if "loss" in line] for r in ("late", "at once")
    ]
    assert steps[0] == steps[1]


def test_loss_shares_are_logged(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    loop.train_on(small_config(), *sets, tmp_path / "run")
    first, *others = [line for line in log_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    shares = [first[f"share_{name}"] for name in ("foreground", "easy", "hard")]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert sum(first[f"positives_p{level}"] for level in range(3, 8)) == first["foreground"]
    assert not any("share_easy" in line for line in others[:19])


def test_rare_classes_are_shown_more_often(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    config = small_config()
    config = replace(config, data=replace(config.data, repeat_rare=1.0))
    loop.train_on(config, *sets, tmp_path / "run")
    plain = TrainingOrder(sets[0], 4, 1, 0).steps_per_epoch
    assert read_info(tmp_path / "run" / "last.safetensors").progress["step"] > plain


def test_parts_of_a_step_train_as_the_whole(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    for accumulate in (1, 3):
        loop.train_on(small_config(optimizer="sgd", lr=0.01, accumulate=accumulate), *sets, tmp_path / str(accumulate))
    whole, parts = (load_file(tmp_path / run / "last.safetensors") for run in ("1", "3"))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=1e-3)


def crowded(folder: Path, boxes: int, images: int = 2) -> Dataset:
    """Images of noise, each with that many small boxes."""
    rng = np.random.default_rng(0)
    builder = DatasetBuilder("crowded", folder, ("cell",))
    for number in range(images):
        Image.fromarray(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        builder.add_image(f"{number}.png", 128, 128)
        for x, y in rng.uniform(0, 110, (boxes, 2)):
            builder.add_box((x, y, x + 15, y + 12), 0, "generated")
    return builder.build()


@pytest.mark.parametrize("method", ["atss", "iou"])
def test_an_image_with_5000_boxes(method: str, tmp_path: Path) -> None:
    dataset = crowded(tmp_path, 5000)
    config = small_config()
    config = replace(config, assign=replace(config.assign, method=method))  # type: ignore[arg-type]
    result = loop.train_on(config, dataset, dataset, tmp_path / "run")
    (step,) = [line for line in log_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert step["foreground"] > 0 or method == "iou"
    assert result.metrics["AP"] >= 0


def test_objects_that_no_anchor_reaches_are_said(tmp_path: Path) -> None:
    """Boxes of 15 pixels, anchors of 32 and more: nothing can be learnt, and that is said before the first step."""
    console = Console(record=True, width=300)
    dataset = crowded(tmp_path, 60)
    config = small_config(epochs=1)
    config = replace(config, assign=replace(config.assign, method="iou"))
    loop.train_on(config, dataset, dataset, tmp_path / "run", console=console)
    said = console.export_text()
    assert (
        "warning: 120 of 120 objects (100%, in 2 images) are matched with no anchor, so nothing is learned from them"
        in said
    )
    assert "fit the anchors with 'retinanet data anchors'" in said
    assert log_lines(tmp_path / "run" / "metrics.jsonl")[0]["warning"].startswith("120 of 120 objects")


def test_one_image_is_enough(tmp_path: Path) -> None:
    dataset = crowded(tmp_path, 5, images=1)
    assert loop.train_on(small_config(), dataset, dataset, tmp_path / "run").metrics["AP"] >= 0


def test_synced_norm_needs_gpus(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="works on GPUs only"):
        loop.train_on(small_config(sync_norm=True, device="cpu"), *sets, tmp_path / "run")


def test_paper_recipe_trains(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    paper = load_recipe("paper")
    config = replace(
        paper,
        model=replace(paper.model, backbone="resnet18", pretrained=False, norm="trained", channels=32, subnet_depth=1),
        data=replace(paper.data, size=96, workers=0),
        train=replace(paper.train, epochs=1, batch=4, precision="fp32"),
    )
    result = loop.train_on(config, *sets, tmp_path / "run")
    steps = [line for line in log_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert len(steps) == 3
    assert result.best.exists()


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_long_gradients_are_clipped(sets: tuple[Dataset, Dataset], tmp_path: Path, clip: float | None) -> None:
    """A step of plain SGD moves the weights by the learning rate times the gradient's norm."""
    config = small_config(optimizer="sgd", momentum=0.0, weight_decay=0.0, ema=None, warmup=0, clip=clip, batch=64)
    train_set, val_set = sets
    out = tmp_path / "run"
    loop.train_on(config, train_set, val_set, out)
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    (step,) = (line for line in steps if "grad_norm" in line)
    torch.manual_seed(config.train.seed)
    before = RetinaNet.from_config(config.model, config.anchors, len(train_set.classes)).state_dict()
    after = load_file(out / "last.safetensors")
    moved = sum((after[name] - value).square().sum() for name, value in before.items() if value.is_floating_point())
    assert step["grad_norm"] > 0.1
    expected = step["lr"] * (step["grad_norm"] if clip is None else clip)
    assert float(moved) ** 0.5 == pytest.approx(expected, rel=0.01)


def test_waiting_for_images_is_logged_and_printed_if_it_is_much() -> None:
    loss, metrics = 1.0, {"AP": 0.5, "AP50": 0.7, "AP75": 0.4}
    assert epoch_line(3, 10, loss, metrics, 0.05) == "epoch  3/10  loss 1.000  AP 0.500  AP50 0.700  AP75 0.400"
    assert "35% of the time waiting for images; try more --data.workers" in epoch_line(3, 10, loss, metrics, 0.35)
    assert "--data.workers" not in epoch_line(3, 10, loss, metrics, 0.35, more_workers_help=False)  # all cores load
