from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands import Command
from retinanet.cli import main


def test_export_detect_and_verify(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    """The file is written beside the weights, and the printed next command works."""
    copy = tmp_path / "own weights.safetensors"
    copy.write_bytes(weights.read_bytes())
    # A network of a fixed size is traced faster.
    code, out, err = run("export", copy, "--to", "onnx", "--data", parts, "--size", "96", "--batch", "2")
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
        (["export", "person", "--opset", "5"], "choose 18, 20, 21, 22, 23"),
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


@pytest.mark.parametrize(
    ("package", "words", "message"),
    [
        ("onnxscript", [], "onnxscript; install it with: pip install 'retinanet[export]'"),
        ("onnxslim", [], "onnxslim; install it with: pip install 'retinanet[export]'"),
        ("onnxruntime", [], "ONNX Runtime; install it with: pip install 'retinanet[runtime]'"),
        ("openvino", ["--to", "openvino"], "OpenVINO; install it with: pip install 'retinanet[openvino]'"),
        ("nncf", ["--to", "openvino", "--int8"], "NNCF; install it with: pip install 'retinanet[export]'"),
    ],
)
def test_a_missing_package_is_reported_before_the_work(
    run: Command,
    package: str,
    words: list[str],
    message: str,
    parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, out, err = run("export", "person", *words, "--data", parts, "--out", tmp_path)
    assert (code, out) == (1, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_data_of_other_classes_is_refused(run: Command, parts: Path, tmp_path: Path) -> None:
    for words in (["export", "person", "--out", tmp_path], ["verify", "person", "--detections", "found.json"]):
        code, out, err = run(*words, "--data", parts)
        assert (code, out) == (1, "")
        assert "not one of the model's 1 classes (person)" in err
        assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--to", "onnx", "--out", "model.onnx"], "tracing the network"),
        (["--to", "openvino", "--int8", "--out", "model.xml"], "quantizing to INT8"),
    ],
)
def test_after_ctrl_c_nothing_remains(words: list[str], line: str, weights: Path, sound: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "retinanet", "export", str(weights), "--data", str(sound), *words]
    process = subprocess.Popen(
        [*command, "--size", "96", "--batch", "1"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert any(line in printed for printed in process.stdout)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "stopped", err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "person", "--to", "tensorrt"])
    assert "openvino" in capsys.readouterr().err
