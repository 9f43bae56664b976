"""``retinanet.fit_anchors`` gives the same results as the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retinanet
from retinanet.cli import main
from retinanet.errors import ConfigError
from retinanet.inspection.anchor_text import fit_lines
from retinanet.recipes import load_recipe

QUICK: dict[str, Any] = {"data.size": 96}


def test_result_is_that_of_the_command(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_command, by_function = tmp_path / "a.yaml", tmp_path / "b.yaml"
    flags = ["--data.size", "96", "--scales", "2", "--ratios", "1"]
    assert main(["data", "anchors", str(parts), "--out", str(by_command), *flags]) == 0
    said = capsys.readouterr().out
    fit = retinanet.fit_anchors(parts, by_function, scales=2, ratios=1, **QUICK)
    assert by_command.read_text() == by_function.read_text()
    assert load_recipe(str(by_function)).anchors == fit.fitted.spec
    assert "\n".join(fit_lines(fit)) in said


def test_measures_current_and_fitted_anchors(parts: Path) -> None:
    fit = retinanet.fit_anchors(parts, scales=1, ratios=1, **QUICK)
    objects = ~fit.train.ignore
    assert fit.current.spec == fit.config.anchors
    assert fit.fitted.spec.per_location == 1
    for anchors in (fit.current, fit.fitted):
        assert len(anchors.overlaps) == len(fit.sizes) == len(fit.train.boxes)
        assert np.isnan(anchors.overlaps).tolist() == fit.train.ignore.tolist()
        assert anchors.coverage.share == (anchors.overlaps[objects] >= fit.threshold).mean()
        assert len(anchors.positives) == (~fit.sample.ignore).sum()
    assert list(fit.table) == [(1, 1)]
    assert repr(fit).startswith("<AnchorFit to parts [train]: covered boxes ")
    assert fit.uncovered_share == pytest.approx(1 - fit.fitted.coverage.share)


@pytest.mark.parametrize("arguments", [{"scales": 0}, {"ratios": 7}, {"seed": -1}, {"out": "anchors.txt"}])
def test_mistakes_are_refused(parts: Path, arguments: dict[str, Any]) -> None:
    [name] = arguments
    with pytest.raises(ConfigError, match=f"--{name}"):
        retinanet.fit_anchors(parts, **arguments)
