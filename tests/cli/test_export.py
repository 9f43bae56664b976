from __future__ import annotations

from pathlib import Path

import pytest

from commands import Command
from retinanet.cli import main


def test_export_detect_and_verify(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    """The file is written beside the weights, and the printed next command works."""
    copy = tmp_path / "own weights.safetensors"
    copy.write_bytes(weights.read_bytes())
    code, out, err = run("export", copy, "--to", "onnx", "--data", parts)
    assert code == 0, err
    assert "verdict: the file agrees with the model" in out
    assert "AP: model" in out
    assert f"next: retinanet detect '{copy.with_suffix('.onnx')}' IMAGE" in out

    image = next((parts / "images").glob("*.jpg"))
    code, _, err = run("detect", copy.with_suffix(".onnx"), image, "--out", tmp_path / "found", "--score", "0.05")
    assert code == 0, err
    assert (tmp_path / "found" / "detections.json").is_file()

    code, out, err = run("verify", copy.with_suffix(".onnx"), copy)
    assert (code, err) == (0, "")
    assert "verdict: the file agrees with the model" in out

    code, out, err = run("eval", copy.with_suffix(".onnx"), parts, "--out", tmp_path / "eval")
    assert code == 0, err
    code, out, err = run("verify", copy, "--data", parts, "--detections", tmp_path / "eval" / "detections.json")
    assert (code, err) == (0, "")
    assert "another program on 3 images" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "person", "--to", "openvino", "--int8"], "give --data DATA"),
        (["export", "person", "--to", "onnx", "--size", "500"], "give 512"),
        (["export", "person", "--out", "model.engine"], "end in .onnx"),
        (["export", "persn"], "did you mean 'person'"),
        (["verify", "person"], "retinanet verify FILE WEIGHTS"),
        (["verify", "nothing.onnx", "person"], "no such file"),
        (["verify", "README.md", "person"], "not an exported file"),
        (["verify", "person", "--detections", "found.json"], "give --data DATA"),
    ],
)
def test_mistakes_are_explained_in_one_line(run: Command, words: list[str], message: str) -> None:
    code, _, err = run(*words)
    assert code != 0
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_an_unknown_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "person", "--to", "tensorrt"])
    assert "openvino" in capsys.readouterr().err
