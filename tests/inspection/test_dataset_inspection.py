"""``retinanet.inspect`` gives the same results as the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import retinanet
from retinanet.cli import main
from retinanet.errors import ConfigError, DataError, RetinaNetError
from retinanet.inspection.inspection_text import inspection_lines
from retinanet.recipes import load_recipe

SIZE: dict[str, Any] = {"data.size": 256}
SMALL: dict[str, Any] = {"data.size": 96}


def test_result_is_that_of_the_command(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**SIZE, "assign.method": "iou"}
    flags = ["--data.size", "256", "--assign.method", "iou"]
    assert main(["data", "inspect", str(planted), "--out", str(tmp_path), *flags]) == 0
    said = capsys.readouterr().out
    found = retinanet.inspect(planted, **settings)
    assert json.loads((tmp_path / "findings.json").read_text()) == json.loads(json.dumps(found.to_dict()))
    lines = list(inspection_lines(replace(found, notes=[])))  # the command has decoded the images
    assert said.startswith("\n".join(lines))
    assert lines[0].startswith("planted: ")
    assert "Image that cannot be read (1 ×): training stops" in lines[0]
    assert found.name == planted.name
    assert found.train is found.surveys["train"]
    assert list(found.surveys) == list(found.splits) == ["train", "val"]


def test_findings_come_in_the_order_of_their_importance(planted: Path) -> None:
    found = retinanet.inspect(planted, **SIZE)
    findings = found.findings
    severities = [finding.severity for finding in findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert len(set(severities)) == 3
    errors = severities.count("error")
    assert repr(found).startswith(f"<Inspection of planted: {errors} errors, ")


def test_repaired_copy(planted: Path, tmp_path: Path) -> None:
    retinanet.inspect(planted, fix=tmp_path / "fixed", **SIZE)
    assert (tmp_path / "fixed" / "changes.txt").read_text()
    again = retinanet.inspect(tmp_path / "fixed", **SIZE)
    # An image of the wrong size needs a decision of the user.
    assert {finding.code for finding in again.findings if finding.severity == "error"} == {"image-size"}
    with pytest.raises(RetinaNetError, match="not an empty folder"):
        retinanet.inspect(planted, fix=tmp_path / "fixed")


def test_recipe_by_name_or_as_settings(sound: Path) -> None:
    by_name = retinanet.inspect(sound, recipe="paper", **SMALL)
    as_settings = retinanet.inspect(sound, recipe=load_recipe("paper"), **SMALL)
    assert by_name.config == as_settings.config
    assert by_name.config.assign.method == "iou"
    assert by_name.needs_anchors


@pytest.mark.parametrize(("setting", "named"), [("size", "'size'"), ("dat.size", "'dat'"), ("data.sizes", "'sizes'")])
def test_unknown_settings_are_refused(sound: Path, setting: str, named: str) -> None:
    wrong: dict[str, Any] = {setting: 96}
    with pytest.raises(ConfigError, match=named):
        retinanet.inspect(sound, **wrong)


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        retinanet.inspect(tmp_path / "none")
