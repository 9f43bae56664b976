"""Exported files in a server: without torch, and while the file is replaced."""

from __future__ import annotations

import http.client
import subprocess
import sys
from pathlib import Path

import pytest

from exported_files import write_files
from retinanet.detection.loading import load
from serving import answer_of, gray, running

# Importing one of these packages fails as if it were not installed.
BLOCKED = """
import sys

class Blocked:
    names = {"torch", "torchvision", "timm", "supervision", "scipy", "matplotlib", "safetensors", "multipart"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write_files(folder)
    return folder


@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_an_exported_file_is_served_without_torch(name: str, folder: Path) -> None:
    code = BLOCKED + "from retinanet.cli import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-u", "-c", code, "serve", str(folder / name), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "serving " in line, process.communicate()
        connection = http.client.HTTPConnection("127.0.0.1", int(line.split("/ (")[0].rpartition(":")[2]), timeout=30)
        connection.request("POST", "/v1/detect", gray(90), {"Accept": "image/png"})
        answer = answer_of(connection.getresponse())
        connection.close()
        process.terminate()
        process.communicate(timeout=30)
    assert (answer.status, answer.body[:4]) == (200, b"\x89PNG")


@pytest.mark.parametrize("name", ["model.onnx", "model.xml", "model.safetensors"])
def test_a_model_stays_as_it_was_loaded(name: str, folder: Path, weights: Path, tmp_path: Path) -> None:
    """The file is overwritten in place, cut off and removed while it is served."""
    if name.endswith(".safetensors"):
        (tmp_path / name).write_bytes(weights.read_bytes())
    else:
        for each in folder.glob("model.*"):
            (tmp_path / each.name).write_bytes(each.read_bytes())
    with running({"model": load(tmp_path / name, "fp32")}) as client:
        sizes = [(96, 96), (200, 90), (60, 200)]  # OpenVINO compiles the network for each size
        expected = client.detect(gray(90, sizes[0]), "?score=0.01").body
        for path in tmp_path.glob("model.*"):
            with path.open("r+b") as file:
                file.write(bytes(path.stat().st_size))
        assert client.detect(gray(90, sizes[0]), "?score=0.01").body == expected
        assert client.detect(gray(90, sizes[1]), "?score=0.01").status == 200
        for path in tmp_path.glob("model.*"):
            path.write_bytes(b"")
            path.unlink()
        assert client.detect(gray(90, sizes[0]), "?score=0.01").body == expected
        assert client.detect(gray(90, sizes[2]), "?score=0.01").status == 200
