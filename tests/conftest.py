"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

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
        torch.nn.init.normal_(model.classification.predict.weight, std=1.5)
        torch.nn.init.normal_(model.regression.predict.weight, std=0.2)
        torch.nn.init.constant_(model.classification.predict.bias, -2.5)  # type: ignore[arg-type]
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    save_weights(path, dict(model.state_dict()), ModelInfo.of(model, CLASSES, config))
    return path
