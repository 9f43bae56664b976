from __future__ import annotations

import pickle
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from retinanet.errors import ModelError
from retinanet.model.backbone import OFFLINE_BACKBONE, Backbone, lite0_state_dict


@pytest.fixture(scope="module")
def imagenet() -> dict[str, Tensor]:
    return lite0_state_dict()


def classify(classifier: Any, picture: Any) -> list[int]:
    """The five best ImageNet classes by the usual protocol: shorter side 256, central 224 × 224, mean = std = 0.5."""
    image = Image.fromarray(np.asarray(picture))
    factor = 256 / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float32) / 255
    x = torch.from_numpy((pixels - 0.5) / 0.5).permute(2, 0, 1)[None]
    with torch.no_grad():
        best: list[int] = classifier(x)[0].topk(5).indices.tolist()
    return best


def test_bundled_weights_recognise_pictures(imagenet: dict[str, Tensor]) -> None:
    assert len(imagenet) == 296
    classifier: Any = timm.create_model(OFFLINE_BACKBONE)
    classifier.load_state_dict(imagenet, strict=True)
    classifier.eval()
    pictures: Any = skimage.data  # its functions are not annotated
    assert classify(classifier, pictures.chelsea())[0] in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
    assert classify(classifier, pictures.coffee())[0] == 967  # espresso


def test_the_backbone_computes_the_classifiers_features(imagenet: dict[str, Tensor]) -> None:
    backbone = Backbone(OFFLINE_BACKBONE, pretrained=True).eval()
    own = backbone.body.state_dict()
    assert len(own) > 250
    for name, tensor in own.items():
        assert torch.equal(tensor, imagenet[name]), name
    classifier: Any = timm.create_model(OFFLINE_BACKBONE)
    classifier.load_state_dict(imagenet)
    classifier.eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = classifier.forward_intermediates(x, indices=[2, 3, 4], intermediates_only=True)
        found = backbone(x)
    assert [f.shape[-1] for f in found] == [8, 4, 2]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_without_pretraining_the_weights_are_random(imagenet: dict[str, Tensor]) -> None:
    weight = Backbone(OFFLINE_BACKBONE).body.state_dict()["conv_stem.weight"]
    assert not torch.equal(weight, imagenet["conv_stem.weight"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights_are_loaded(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(1)
    classifier: Any = timm.create_model(
        "convnext_atto", num_classes=3
    )  # whose stages timm renames in feature extractors
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(classifier.state_dict(), path)
    else:
        save_file(classifier.state_dict(), path)
    backbone = Backbone("convnext_atto", pretrained=True, weights=str(path)).eval()
    classifier.eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = classifier.forward_intermediates(x, indices=[1, 2, 3], intermediates_only=True)
        for ours, theirs in zip(backbone(x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_local_weights_win_over_the_bundled_ones(tmp_path: Path, imagenet: dict[str, Tensor]) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: torch.full_like(t, 2).contiguous() for name, t in imagenet.items()}, path)
    backbone = Backbone(OFFLINE_BACKBONE, pretrained=True, weights=str(path))
    assert backbone.body.state_dict()["conv_stem.weight"].unique().tolist() == [2.0]


@pytest.mark.parametrize(("name", "near"), [("resnet5O", "resnet50"), ("efficientnet-lite0", "efficientnet_lite0")])
def test_unknown_backbone_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ModelError, match=f"no backbone '{name}'; did you mean '.*{near}.*'"):
        Backbone(name)


def test_a_name_like_none() -> None:
    with pytest.raises(ModelError, match="no backbone 'zzqqzz'"):
        Backbone("zzqqzz")


def test_a_network_without_the_strides() -> None:
    with pytest.raises(ModelError, match=r"'vit_tiny_patch16_224'.*resnet50") as caught:
        Backbone("vit_tiny_patch16_224")
    assert "\n" not in str(caught.value)


def test_weights_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(timm.create_model("mobilenetv3_small_050").state_dict(), path)
    with pytest.raises(ModelError, match=r"other\.safetensors: not weights of this backbone") as caught:
        Backbone("resnet18", weights=str(path))
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape(tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    state = timm.create_model("resnet18").state_dict()
    state["conv1.weight"] = torch.zeros(32, 3, 7, 7)
    save_file(state, path)
    with pytest.raises(ModelError, match=r"'conv1\.weight' has shape \(32, 3, 7, 7\) instead of \(64, 3, 7, 7\)"):
        Backbone("resnet18", weights=str(path))


def test_missing_weights_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such weights file"):
        Backbone("resnet18", weights=str(tmp_path / "absent.pth"))


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, suffix: str) -> None:
    proof, path = tmp_path / "ran", tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps({"conv1.weight": _Payload(proof)}))
    with pytest.raises(ModelError, match="not a weights file"):
        Backbone("resnet18", weights=str(path))
    assert not proof.exists()
    torch.save({"conv1.weight": _Payload(proof)}, path)
    with pytest.raises(ModelError, match="not a weights file"):
        Backbone("resnet18", weights=str(path))
    assert not proof.exists()
    pickle.loads(pickle.dumps(_Payload(proof)))  # the payload itself works
    assert proof.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0.9, 0.001, 0.0])
def test_truncated_weights(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"cut{suffix}"
    state = timm.create_model("mobilenetv3_small_050").state_dict()
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ModelError, match="not a weights file") as caught:
        Backbone("mobilenetv3_small_050", weights=str(path))
    assert "\n" not in str(caught.value)


def test_a_pickle_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([torch.zeros(3)], path)
    with pytest.raises(ModelError, match="expected a state dict"):
        Backbone("resnet18", weights=str(path))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    from huggingface_hub import constants

    def fail(*arguments: object, **options: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    offline = constants.HF_HUB_OFFLINE
    yield
    assert offline == constants.HF_HUB_OFFLINE  # the switch is put back


@pytest.mark.usefixtures("no_network")
def test_a_download_without_a_network_names_the_remedies() -> None:
    began = time.monotonic()
    with pytest.raises(ModelError) as caught:
        Backbone("resnet18", pretrained=True)
    assert time.monotonic() - began < 10
    message = str(caught.value)
    assert "\n" not in message
    for remedy in (OFFLINE_BACKBONE, "--model.weights", "--model.no-pretrained"):
        assert remedy in message


@pytest.mark.usefixtures("no_network")
def test_the_bundled_weights_need_no_network() -> None:
    assert Backbone(OFFLINE_BACKBONE, pretrained=True).channels == (40, 112, 320)
