"""``retinanet serve``: one clear line for each mistake, names of models, and a process that ends as it should."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from commands import Command
from retinanet.errors import ConfigError
from retinanet.serve.run import is_loopback, model_names, read_token


def test_a_port_in_use_is_one_line(run: Command, weights: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"127.0.0.1:{port} is in use; end the other program" in run.fails("serve", weights, "--port", port)


def test_other_mistakes_are_one_line(run: Command, weights: Path, tmp_path: Path) -> None:
    empty = tmp_path / "token"
    empty.write_text("\n")
    assert "the token is empty" in run.fails("serve", weights, "--token-file", empty, code=2)
    assert "cannot be read" in run.fails("serve", weights, "--token-file", tmp_path / "none", code=2)
    assert "no model given" in run.fails("serve", code=2)
    assert "two models are named" in run.fails("serve", weights, weights, code=2)
    assert "none.onnx" in run.fails("serve", tmp_path / "none.onnx", "--port", 0)
    assert "--port is 70000" in run.fails("serve", weights, "--port", 70000, code=2)
    assert "no address of this machine" in run.fails("serve", weights, "--host", "192.0.2.1")
    assert "--score is 2" in run("serve", weights, "--score", 2).err
    assert "--limits.requests must be above 0" in run("serve", weights, "--limits.requests", 0).err


def test_missing_packages_are_one_line(run: Command, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "retinanet.serve.app", None)
    monkeypatch.delitem(sys.modules, "retinanet.serve.app")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert "pip install 'retinanet[serve]'" in run.fails("serve", weights, "--port", 0)


def test_names_of_models() -> None:
    named = model_names(["person", "runs/a/best.safetensors", "runs/b/best.safetensors", "c=x/best.onnx", "d/e f.xml"])
    assert named == {
        "person": "person",
        "a": "runs/a/best.safetensors",
        "b": "runs/b/best.safetensors",
        "c": "x/best.onnx",
        "e-f": "d/e f.xml",
    }
    with pytest.raises(ConfigError, match="cannot name a model"):
        model_names(["a b=c.onnx"])


def test_a_path_may_contain_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.3.onnx").touch()
    assert model_names(["runs/lr=0.1/best.onnx", "lr=0.3.onnx", "a=runs/lr=0.2/best.onnx"]) == {
        "lr-0.1": "runs/lr=0.1/best.onnx",
        "lr-0.3": "lr=0.3.onnx",
        "a": "runs/lr=0.2/best.onnx",
    }


def test_the_token_comes_from_the_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETINANET_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("RETINANET_TOKEN", "one")
    assert read_token(None) == "one"
    (tmp_path / "token").write_text("two\n")
    assert read_token(tmp_path / "token") == "two"
    monkeypatch.setenv("RETINANET_TOKEN", "")
    with pytest.raises(ConfigError, match="the token is empty"):
        read_token(None)
    monkeypatch.setenv("RETINANET_TOKEN", "a b")
    with pytest.raises(ConfigError, match="one word"):
        read_token(None)


def test_loopback_addresses() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"))


@pytest.mark.parametrize(("sent", "host"), [(signal.SIGTERM, "127.0.0.1"), (signal.SIGINT, "0.0.0.0")])
def test_the_process_serves_and_ends_with_code_0(sent: signal.Signals, host: str, weights: Path) -> None:
    command = [sys.executable, "-m", "retinanet", "serve", f"small={weights}", "--port", "0", "--host", host]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.pop("RETINANET_TOKEN", None)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if host == "0.0.0.0":
            assert "warning: everybody who reaches 0.0.0.0 can use the server" in line
            line = process.stdout.readline()
        assert "serving small at http://" in line
        port = int(line.split("/ (")[0].rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/readyz")
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(sent)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == "stopped\n"
    assert "GET /readyz 200" in err
    assert "Traceback" not in err
