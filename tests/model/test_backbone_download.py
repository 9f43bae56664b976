"""Pre-trained weights without a network."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from retinanet.errors import ModelError
from retinanet.model.backbone import OFFLINE_BACKBONE, Backbone


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    def fail(*arguments: object, **options: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(socket, "getaddrinfo", fail)


@pytest.mark.usefixtures("no_network")
def test_a_download_without_a_network_names_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(ModelError) as caught:
        Backbone("resnet18", pretrained=True)
    assert sum(waits) < 5  # between one try and the next
    message = str(caught.value)
    assert "\n" not in message
    for remedy in (OFFLINE_BACKBONE, "--model.weights", "--model.no-pretrained"):
        assert remedy in message


@pytest.mark.usefixtures("no_network")
def test_an_earlier_download_is_used_without_a_network(tmp_path: Path) -> None:
    weights = timm.create_model("resnet18").state_dict()
    config: Any = timm.get_pretrained_cfg("resnet18")
    repository = tmp_path / "hub" / f"models--{config.hf_hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / "0000"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0000", encoding="utf-8")
    save_file(weights, snapshot / "model.safetensors")
    body = Backbone("resnet18", pretrained=True).body.state_dict()
    assert torch.equal(body["layer4.1.conv2.weight"], weights["layer4.1.conv2.weight"])


@pytest.mark.usefixtures("no_network")
def test_the_bundled_weights_need_no_network() -> None:
    assert Backbone(OFFLINE_BACKBONE, pretrained=True).channels == (40, 112, 320)
