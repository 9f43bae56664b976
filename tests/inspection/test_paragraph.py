"""No sentence advises a setting that the planned training already has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinanet.config import AnchorSpec, Config, DataConfig
from retinanet.data.dataset import DatasetBuilder
from retinanet.inspection.checks import run_checks
from retinanet.inspection.findings import Finding
from retinanet.inspection.paragraph import problems, remedy
from retinanet.read_options import ReadOptions


def test_repeat_factor_sampling_is_advised_once() -> None:
    finding = Finding("rare-class", "train", "toy", "'dog': 2 boxes")
    assert "--data.repeat-rare" in problems([finding], Config())
    repeated = Config(data=DataConfig(repeat_rare=0.1))
    assert problems([finding], repeated).endswith("too few examples to learn the class; annotate more examples.")


def test_anchors_that_were_fitted_are_not_fitted_again() -> None:
    assert "data anchors" in remedy("low-coverage", Config())
    fitted = Config(anchors=AnchorSpec(scales=(1.0, 1.1)))
    assert remedy("low-coverage", fitted) == "use --assign.method atss"


@pytest.mark.parametrize("code", ["leak", "broken-annotation", "duplicate-image"])
def test_a_repair_that_is_being_done_is_not_advised(code: str) -> None:
    assert "--fix OUT" in remedy(code, Config())
    assert remedy(code, Config(), Path("copy")) == "it is repaired in copy"


def effects(folder: Path, data: DataConfig) -> dict[str, str]:
    """The effect of each finding in a dataset with a broken and a black image."""
    (folder / "broken.png").write_bytes(b"")
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(folder / "black.png")
    builder = DatasetBuilder("toy", folder, ("cat",), tolerant=True)
    for name in ("broken.png", "black.png"):
        builder.add_image(name, 20, 20)
        builder.add_box((2, 2, 9, 9), 0, name)
    splits = {"train": builder.build()}
    found = run_checks(splits, {}, {"train": ("cat",)}, data, True).findings
    return {finding.code: str(finding.to_dict()["effect"]) for finding in found}


def test_effects_name_the_settings_in_use(tmp_path: Path) -> None:
    usual = effects(tmp_path, DataConfig())
    assert "with --data.skip-broken it leaves out the image" in usual["broken-image"]
    assert "set --data.pixel-range" in usual["flat-image"]
    given = effects(tmp_path, DataConfig(skip_broken=True, pixel_range=(0, 100)))
    assert given["broken-image"] == "training leaves out the image (--data.skip-broken)"
    assert "correct --data.pixel-range" in given["flat-image"]


def test_scored_boxes_do_not_advise_a_score_that_is_given() -> None:
    messages = []
    for least in (0.0, 0.3):
        builder = DatasetBuilder("toy", Path(), ("cat",), options=replace(ReadOptions(), min_score=least))
        builder.add_image("a.png", 20, 20)
        builder.add_box((2, 2, 9, 9), 0, "a", score=0.5)
        messages.append(builder.problems[0].message)
    assert ["--data.min-score" in message for message in messages] == [True, False]
