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
