"""``retinanet.train``: the settings of the flags, from Python."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import retinanet
from retinanet import cli
from retinanet.config import Config
from retinanet.data.synthetic import write_sample
from retinanet.errors import CheckpointError, ConfigError, DataError
from retinanet.zoo.weights import read_info

SMALL: dict[str, Any] = {
    "model.channels": 32,
    "model.subnet-depth": 1,
    "data.size": 64,
    "data.workers": 0,
    "train.epochs": 1,
    "train.batch": 4,
    "train.precision": "fp32",
}
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "parts"
    write_sample(folder, images=12, seed=3, size=96)
    return folder


def test_python_and_the_command_line_train_the_same(parts: Path, tmp_path: Path) -> None:
    console = Console(file=(text := io.StringIO()), width=200)
    result = retinanet.train(parts, out=tmp_path / "python", recipe="modern", console=console, **SMALL)
    flags = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    assert cli.main(["train", str(parts), "--out", str(tmp_path / "shell"), *flags]) == 0
    found, expected = (load_file(tmp_path / run / "last.safetensors") for run in ("python", "shell"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert result.best == tmp_path / "python" / "best.safetensors"
    assert result.metrics == read_info(result.best).metrics
    assert result.finished == "all 1 epochs are done"
    assert f"best AP {result.metrics['AP']:.4f}" in text.getvalue()


def test_a_run_is_resumed_with_its_own_settings(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = retinanet.train(str(parts), str(out), console=QUIET, **SMALL)
    with pytest.raises(CheckpointError, match="add --resume"):
        retinanet.train(parts, out, console=QUIET, **SMALL)
    again = retinanet.train(parts, out, resume=True, console=QUIET)
    assert (again.metrics, again.seconds) == (first.metrics, 0.0)
    other: dict[str, Any] = {"train.batch": 2}
    with pytest.raises(CheckpointError, match=r"train\.batch 4 → 2"):
        retinanet.train(parts, out, resume=True, console=QUIET, **other)


def test_a_recipe_can_be_a_config(parts: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"train.epochs": 0}
    with pytest.raises(ConfigError, match=r"train\.epochs is 0"):
        retinanet.train(parts, tmp_path / "run", Config(), console=QUIET, **settings)


@pytest.mark.parametrize(
    ("data", "settings", "error"),
    [("nowhere", {}, DataError), ("parts", {"model.backbone": "no_such_network"}, Exception)],
)
def test_a_training_that_cannot_start_leaves_no_folder(
    data: str, settings: dict[str, Any], error: type[Exception], parts: Path, tmp_path: Path
) -> None:
    with pytest.raises(error):
        retinanet.train(parts.parent / data, tmp_path / "run", console=QUIET, **settings)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_was_there_stays(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        retinanet.train(parts.parent / "nowhere", tmp_path, console=QUIET)
    assert tmp_path.is_dir()


def test_the_name_is_a_function_after_its_modules_were_imported() -> None:
    code = "import retinanet.detection.detector; import retinanet; retinanet.train; print(callable(retinanet.train))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, retinanet; print('torch' in sys.modules, 'train' in dir(retinanet))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False True"
