"""Fixtures that every test may use."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from commands import SMALL, Command
from defects import plant_defects
from retinanet import cli

# A time limit per example would only measure how busy the machine is.
settings.register_profile("retinanet", deadline=None)
settings.load_profile("retinanet")


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache folder as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


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
    """A tiny sample dataset: 12 images of 96 × 96 pixels, 9 of them train."""
    from retinanet.data.synthetic import write_sample

    folder = tmp_path_factory.mktemp("data") / "parts"
    write_sample(folder, images=12, seed=0, size=96)
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained detector of the sample dataset's classes whose scores vary so much that it has detections."""
    import torch

    from retinanet.config import Config
    from retinanet.data.synthetic import CLASSES
    from retinanet.model import RetinaNet
    from retinanet.model_info import ModelInfo
    from retinanet.object_sizes import ObjectSizes
    from retinanet.zoo.weights import save_weights

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
    sides = (12.0, 16.0, 22.0, 28.0, 34.0, 40.0, 44.0, 48.0)
    info = ModelInfo.of(model, CLASSES, config, objects=ObjectSizes(sides, sides, 1.0))
    save_weights(path, dict(model.state_dict()), info)
    return path


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a module of ``experiments/`` by its name."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "experiments"))
    return importlib.import_module


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
    """A sample dataset without any defect: 60 images of 96 × 96 pixels."""
    from retinanet.data.synthetic import write_sample

    folder = tmp_path_factory.mktemp("data") / "sound"
    write_sample(folder, images=60, seed=0, size=96)
    return folder


@pytest.fixture(scope="session")
def planted(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``sound`` with one of every defect of ``defects.py``."""
    return plant_defects(sound, tmp_path_factory.mktemp("data") / "planted")
