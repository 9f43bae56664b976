"""Fixtures every test may use."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from commands import SMALL, Command
from retinanet import cli

# Time limits per example only tell how busy the machine is.
settings.register_profile("retinanet", deadline=None)
settings.load_profile("retinanet")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets: ``$RETINANET_DATA``, else ``../shared/data`` beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RETINANET_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real data sets are not at {folder}; set RETINANET_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sample dataset: 12 pictures of 96 × 96 pixels, 9 of them train."""
    from retinanet.data.synthetic import write_sample

    folder = tmp_path_factory.mktemp("data") / "parts"
    write_sample(folder, images=12, seed=0, size=96)
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained detector of the sample dataset's classes whose scores spread widely: it finds things."""
    import torch

    from retinanet.config import Config
    from retinanet.data.synthetic import CLASSES
    from retinanet.model import RetinaNet
    from retinanet.zoo.weights import ModelInfo, save_weights

    config = Config.from_dict(
        {
            "model": {"backbone": "tf_efficientnet_lite0", "channels": 32, "subnet_depth": 1},
            "data": {"size": 96, "workers": 0},
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RetinaNet.from_config(config.model, config.anchors, len(CLASSES))
        torch.nn.init.normal_(model.classification.predict.weight, std=0.06)
        torch.nn.init.normal_(model.regression.predict.weight, std=0.008)
        torch.nn.init.constant_(model.classification.predict.bias, -2.5)  # type: ignore[arg-type]
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    save_weights(path, dict(model.state_dict()), ModelInfo.of(model, CLASSES, config))
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ``retinanet`` with words as arguments."""
    return Command(capsys)


@pytest.fixture(scope="session")
def trained(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a training of one epoch and its output. Tests must not change the folder."""
    out = tmp_path_factory.mktemp("trained") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main(["train", str(parts), "--out", str(out), "--train.epochs", "1", *SMALL]) == 0
    return out, said.getvalue()


@pytest.fixture
def own_parts(parts: Path, tmp_path: Path) -> Path:
    """A copy of the sample dataset that a test may damage."""
    return Path(shutil.copytree(parts, tmp_path / "own parts"))


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample dataset without any defect: 60 pictures of 96 × 96 pixels."""
    from retinanet.data.synthetic import write_sample

    folder = tmp_path_factory.mktemp("data") / "sound"
    write_sample(folder, images=60, seed=0, size=96)
    return folder


@pytest.fixture(scope="session")
def planted(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``sound`` with one of every defect; tests/data/test_doctor.py lists them."""
    return _plant(sound, tmp_path_factory.mktemp("data") / "planted")


def _noise(seed: int, width: int, height: int) -> Image.Image:
    """A picture that is like no other."""
    small = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def _plant(clean: Path, out: Path) -> Path:
    """Copy the clean sample dataset (60 pictures of 96 × 96 pixels) and plant one of every defect."""
    shutil.copytree(clean, out)
    images = out / "images"
    (images / "000000.jpg").write_bytes((images / "000000.jpg").read_bytes()[:1500])
    _noise(1, 50, 40).save(images / "000002.jpg")
    shutil.copy(images / "000003.jpg", images / "000006.jpg")
    Image.open(images / "000004.jpg").point(lambda v: min(255, v + 9)).save(images / "000011.jpg", quality=70)
    pixels = io.BytesIO()
    Image.open(images / "000005.jpg").save(pixels, "PNG")
    (images / "000007.jpg").write_bytes(pixels.getvalue())  # other bytes, same pixels
    Image.open(images / "000009.jpg").save(images / "000010.jpg", quality=60)
    _noise(2, 96, 96).save(images / "zzz.jpg")

    train: dict[str, Any] = json.loads((out / "instances_train.json").read_text())
    val: dict[str, Any] = json.loads((out / "instances_val.json").read_text())
    train["categories"] += [{"id": 5, "name": "bolt"}, {"id": 6, "name": "pin"}, {"id": 7, "name": "Gear"}]
    val["categories"] += [{"id": 6, "name": "pin"}, {"id": 8, "name": "spring"}]
    gear, bolt, pin, other_gear, spring = 4, 5, 6, 7, 8
    boxes: list[list[float] | None] = [
        [9, 9, 0, 9],
        [9, 9, float("nan"), 9],
        [40, 9, -9, 9],
        [200, 9, 9, 9],
        None,
        [90, 9, 20, 20],
        [9, 9, 0.5, 9],
    ]
    for number, bbox in enumerate(boxes, start=9001):
        _add(train, number, 16, gear, bbox)
    _add(train, 9008, 20, gear, [5, 60, 22, 24])
    _add(train, 9009, 20, gear, [5, 60, 22.5, 24])
    _add(train, 9010, 18, gear, [5, 60, 22, 24])
    _add(train, 9011, 18, 1, [5, 60, 22, 24.5])
    _add(train, 9012, 28, gear, [1, 1, 94.5, 94])  # picture 28 is 000027.jpg, which is empty
    for k in range(5):
        _add(train, 9021 + k, 19, gear, [12 + 14 * k, 70, 9, 9])
    _add(train, 9020, 19, gear, [10, 66, 76, 18])
    _add(train, 9030, 777, gear, [9, 9, 9, 9])
    _add(train, 9031, 20, 55, [9, 9, 9, 9])
    for k in range(3):
        _add(train, 9040 + k, 23, bolt, [3 + 30 * k, 3, 20, 20])
    for k in range(12):
        _add(train, 9050 + k, 24 + k // 6 * 5, other_gear, [3 + 15 * (k % 6), 80, 12, 12])
    _add(val, 9001, 27, pin, [9, 9, 30, 30])
    _add(val, 9002, 27, spring, [50, 9, 30, 30])
    (out / "instances_train.json").write_text(json.dumps(train))
    (out / "instances_val.json").write_text(json.dumps(val))
    return out


def _add(content: dict[str, Any], number: int, image: int, category: int, bbox: list[float] | None) -> None:
    row = {"id": number, "image_id": image, "category_id": category, "iscrowd": 0}
    content["annotations"].append(row | ({"bbox": bbox} if bbox else {}))
