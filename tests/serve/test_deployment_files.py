"""The container, the compose file, Prometheus' configuration and the systemd unit fit the package and each other."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from retinanet.cli.serve import Arguments
from retinanet.cli.terminal import parse
from retinanet.serve.app import create_app
from serving import HeldDetector

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and their arguments."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2]) for line in lines]


def argument(name: str) -> str:
    """The argument of the last instruction of a name."""
    return [text for instruction, text in instructions() if instruction == name][-1]


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return content


def serve_words(words: list[str]) -> Arguments:
    """The parsed arguments of ``retinanet serve``."""
    assert words[:2] == ["retinanet", "serve"]
    return parse(Arguments, words[2:], "retinanet serve")


def test_the_image_installs_extras_that_exist_and_no_torch() -> None:
    install = next(text for name, text in instructions() if name == "RUN" and "install" in text)
    extras = re.findall(r"\.\[([\w,]+)\]", install)[0].split(",")
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras == ["serve", "runtime"]
    assert not any("torch" in requirement for extra in extras for requirement in known[extra])


def test_files_that_the_image_copies_exist_and_are_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name, text in instructions():
        if name == "COPY" and not text.startswith("--from"):
            for source in text.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored, source


def test_the_container_has_no_root_and_one_port() -> None:
    user, group = argument("USER").split(":")
    assert int(user) > 0
    assert int(group) > 0
    given = serve_words(json.loads(argument("ENTRYPOINT")) + json.loads(argument("CMD")))
    assert (given.host, given.weights) == ("0.0.0.0", ("/models/model.onnx",))
    assert str(given.port) == argument("EXPOSE")
    assert f"127.0.0.1:{given.port}/healthz" in argument("HEALTHCHECK")


def test_the_check_of_health_is_a_route_and_compiles() -> None:
    command = json.loads(argument("HEALTHCHECK").partition("CMD ")[2])
    assert command[:2] == ["python", "-c"]
    compile(command[2], "Dockerfile", "exec")
    paths = create_app({"gray": HeldDetector()}).openapi()["paths"]
    assert {"/healthz", "/metrics"} <= paths.keys()


def test_the_compose_file_names_files_that_exist() -> None:
    server, prometheus = (compose()["services"][name] for name in ("retinanet", "prometheus"))
    context = (DEPLOY / server["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / server["build"]["dockerfile"]).is_file()
    mounted, target, _ = prometheus["volumes"][0].split(":")
    assert (DEPLOY / mounted).is_file()
    assert target == "/etc/prometheus/prometheus.yml"


def test_the_compose_file_starts_the_server_with_its_token_on_the_loopback_address() -> None:
    server = compose()["services"]["retinanet"]
    given = serve_words([*json.loads(argument("ENTRYPOINT")), *server["command"]])
    assert given.token_file == Path("/run/secrets/token")
    assert server["secrets"] == ["token"]
    assert server["ports"] == [f"127.0.0.1:{given.port}:{given.port}"]
    folder = server["volumes"][0].split(":")[1]
    assert given.weights[0].startswith(f"{folder}/")
    for service in compose()["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_grace_period_is_longer_than_the_longest_answer() -> None:
    limits = parse(Arguments, ["person"], "retinanet serve").limits
    seconds = int(compose()["services"]["retinanet"]["stop_grace_period"].removesuffix("s"))
    assert seconds > limits.seconds + limits.upload_seconds


def test_prometheus_scrapes_the_server_with_the_token() -> None:
    [job] = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    services = compose()["services"]
    [target] = job["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    assert host in services
    assert port == argument("EXPOSE")
    assert job["metrics_path"] == "/metrics"
    assert job["authorization"]["credentials_file"] == "/run/secrets/token"
    assert services["prometheus"]["secrets"] == ["token"]


@pytest.mark.parametrize("section", ["Unit", "Service", "Install"])
def test_the_systemd_unit_of_the_guide_starts_the_server(section: str) -> None:
    guide = (ROOT / "docs" / "serving.md").read_text()
    unit = next(block for block in re.findall(r"```text\n(.*?)```", guide, re.DOTALL) if "[Unit]" in block)
    assert f"[{section}]" in unit
    start = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)[0]
    program, *words = shlex.split(start)
    given = serve_words([Path(program).name, *words])
    assert given.token_file is not None
    [credential] = re.findall(r"^LoadCredential=(\w+):", unit, re.MULTILINE)
    assert given.token_file.name == credential
    stop = int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[0])
    assert stop > given.limits.seconds + given.limits.upload_seconds
