from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import skimage.data
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from retinanet.anchors import AnchorSpec
from retinanet.config import ModelConfig
from retinanet.errors import ModelError
from retinanet.model import RetinaNet
from retinanet.model.backbone import OFFLINE_BACKBONE, Backbone, Structure, lite0_state_dict
from retinanet.model.fpn import FeaturePyramid


@pytest.fixture(scope="module")
def imagenet() -> dict[str, Tensor]:
    return lite0_state_dict()


def classify(classifier: Any, photo: Any) -> list[int]:
    """The five best ImageNet classes by the usual protocol: shorter side 256, central 224 × 224, mean = std = 0.5."""
    image = Image.fromarray(np.asarray(photo))
    factor = 256 / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float32) / 255
    x = torch.from_numpy((pixels - 0.5) / 0.5).permute(2, 0, 1)[None]
    with torch.no_grad():
        best: list[int] = classifier(x)[0].topk(5).indices.tolist()
    return best


def test_bundled_weights_recognise_photos(imagenet: dict[str, Tensor]) -> None:
    assert len(imagenet) == 296
    classifier: Any = timm.create_model(OFFLINE_BACKBONE)
    classifier.load_state_dict(imagenet, strict=True)
    classifier.eval()
    photos: Any = skimage.data  # its functions are not annotated
    assert classify(classifier, photos.chelsea())[0] in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
    assert classify(classifier, photos.coffee())[0] == 967  # espresso


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
    reason = "not a complete safetensors file" if suffix == ".safetensors" else "it holds objects that could run code"
    path.write_bytes(pickle.dumps({"conv1.weight": _Payload(proof)}))
    with pytest.raises(ModelError, match=reason):
        Backbone("resnet18", weights=str(path))
    assert not proof.exists()
    torch.save({"conv1.weight": _Payload(proof)}, path)
    with pytest.raises(ModelError, match=reason):
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
    with pytest.raises(
        ModelError,
        match=f"cut{suffix}: (not a complete safetensors file|cannot be read: it is damaged or)",
    ) as caught:
        Backbone("mobilenetv3_small_050", weights=str(path))
    assert "\n" not in str(caught.value)


def test_a_pickle_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([torch.zeros(3)], path)
    with pytest.raises(ModelError, match="expected a state dict"):
        Backbone("resnet18", weights=str(path))


# torchvision's classifiers, whose ImageNet weights many people have as a file


def classifier(name: str, norm_eps: float = 1e-5) -> nn.Module:
    """A torchvision network with random weights and statistics."""
    torch.manual_seed(0)
    network: nn.Module = getattr(torchvision.models, name)(norm_layer=partial(nn.BatchNorm2d, eps=norm_eps))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


def saved(network: nn.Module, folder: Path) -> str:
    path = folder / "torchvision.pth"
    torch.save(network.state_dict(), path)
    return str(path)


@torch.no_grad()
def largest_difference(backbone: Backbone, network: nn.Module) -> float:
    """Between C3–C5 of both, relative to the largest value of the level."""
    x = torch.randn(1, 3, 72, 104, generator=torch.Generator().manual_seed(1))
    expected = create_feature_extractor(network, ["layer2", "layer3", "layer4"])(x).values()
    found = backbone.eval()(x)
    assert [f.shape for f in found] == [e.shape for e in expected]
    return max(float((f - e).abs().max() / e.abs().max()) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_torchvisions_imagenet_weights_give_the_same_features(name: str, tmp_path: Path) -> None:
    network = classifier(name)
    assert largest_difference(Backbone(name, pretrained=True, weights=saved(network, tmp_path)), network) < 1e-4
    assert largest_difference(Backbone(name), network) > 0.1


def test_norm_eps_is_added_to_the_variance(tmp_path: Path) -> None:
    network = classifier("resnet18", norm_eps=0.1)
    path = saved(network, tmp_path)
    assert largest_difference(Backbone("resnet18", weights=path, norm_eps=0.1), network) < 1e-4
    assert largest_difference(Backbone("resnet18", weights=path), network) > 0.01
    assert largest_difference(Backbone("resnet18", weights=path, norm_eps=0.0), network) > 0.01


def eps_of(module: nn.Module) -> set[float]:
    return {m.eps for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


@pytest.mark.parametrize(("name", "own"), [("resnet18", 1e-5), (OFFLINE_BACKBONE, 1e-3)])
def test_norm_eps_of_every_layer(name: str, own: float) -> None:
    with torch.device("meta"):
        assert eps_of(Backbone(name)) == {own}
        [least] = eps_of(Backbone(name, norm_eps=0.0))
        assert 0 < least < 1e-37  # PyTorch 2.11 refuses 0; in float32, this is 0 beside any variance
        assert eps_of(Backbone(name, norm_eps=0.25, trained_norm=True)) == {0.25}
        config = ModelConfig(backbone=name, pretrained=False, norm_eps=0.5)
        assert eps_of(RetinaNet.from_config(config, AnchorSpec(), num_classes=2)) == {0.5}


def test_residual_branches_learn_where_nothing_is_pre_trained() -> None:
    """timm starts them with a norm weight of 0, which frozen norm would keep for ever."""
    backbone = Backbone("resnet50", pretrained=False).train()
    sum(feature.sum() for feature in backbone(torch.randn(1, 3, 64, 64))).backward()
    learning = [p for p in backbone.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learning)
    trained = Backbone("resnet50", pretrained=False, trained_norm=True)
    norms = [m for m in trained.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert any(bool((m.weight == 0).all()) for m in norms)  # trained norm keeps the initialisation of timm


# The pyramid's named options against torchvision's


@pytest.mark.parametrize("p6_from", ["c5", "p5"])
@pytest.mark.parametrize("size", [(16, 24), (20, 12)])
def test_pyramid_equals_torchvisions(p6_from: Literal["c5", "p5"], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = FeaturePyramid((4, 6, 10), 8, p6_from)
    theirs = FeaturePyramidNetwork([4, 6, 10], 8, LastLevelP6P7(10 if p6_from == "c5" else 8, 8))
    assert theirs.extra_blocks.use_P5 == (p6_from == "p5")
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    parts = [*(block[0] for block in theirs.inner_blocks), *(block[0] for block in theirs.layer_blocks)]
    parts += [theirs.extra_blocks.p6, theirs.extra_blocks.p7]
    own = [*ours.lateral, *ours.output, ours.p6, ours.p7]
    for target, source in zip(own, parts, strict=True):
        target.load_state_dict(source.state_dict())
    h, w = size
    features = [torch.randn(2, c, h // s, w // s) for c, s in ((4, 1), (6, 2), (10, 4))]
    with torch.no_grad():
        expected = list(theirs({str(i): feature for i, feature in enumerate(features)}).values())
        found = ours(features)
        assert (expected[3] < 0).any()  # so that ReLU matters
        for our, their in zip(found, expected, strict=True):
            torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4 * float(their.abs().max()))
        ours.relu_before_p7 = False
        assert (ours(features)[4] - expected[4]).abs().max() > 0.01 * expected[4].abs().max()


def test_no_epsilon_needs_variances() -> None:
    with pytest.raises(ModelError, match=r"norm-eps is 0, but \d+ channels"):
        Backbone(OFFLINE_BACKBONE, pretrained=True, norm_eps=0.0)
    Backbone("resnet18", norm_eps=0.0)


def test_a_deeper_network_of_the_family_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet34.pth"
    torch.save(timm.create_model("resnet34").state_dict(), path)
    with pytest.raises(ModelError, match=r"of a deeper one; it has no 'layer1\.2\.conv1\.weight'"):
        Backbone("resnet18", weights=str(path))


def test_the_stride_of_a_bottleneck_is_where_the_setting_says() -> None:
    for stride_in, first, second in (("3x3", 1, 2), ("1x1", 2, 1)):
        structure = Structure(stride_in, (4, 8, 16, 32))  # type: ignore[arg-type]
        backbone = Backbone("resnet50", structure=structure)
        block = backbone.body.get_submodule("layer2.0")
        assert (block.conv1.stride[0], block.conv2.stride[0]) == (first, second)  # type: ignore[index]
        assert [feature.shape[1:] for feature in backbone(torch.zeros(1, 3, 64, 64))] == [
            (32, 8, 8),
            (64, 4, 4),
            (128, 2, 2),
        ]


def test_a_network_without_bottlenecks_has_no_stride_to_move() -> None:
    with pytest.raises(ModelError, match="no bottleneck blocks"):
        Backbone("resnet18", structure=Structure("1x1"))
