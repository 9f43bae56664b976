"""``retinanet convert``: weights of torchvision become files of this package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import retinanet
from commands import Command
from retinanet.detection.pytorch import load_pytorch


@pytest.fixture(scope="session")
def torchvision_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as training scripts write it, of torchvision's RetinaNet with three outputs on a ResNet-18."""
    extra = LastLevelP6P7(256, 256)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=extra
        )
        network = RetinaNet(backbone, num_classes=3)
    path = tmp_path_factory.mktemp("torchvision") / "my model.pth"
    torch.save({"model": network.state_dict(), "epoch": 7}, path)
    return path


def test_convert_writes_a_file_that_loads(run: Command, torchvision_weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "my model.safetensors"
    said = run("convert", torchvision_weights, out)
    assert said.code == 0
    assert said.err == ""
    assert "resnet18" in said.out
    assert "P6 from P5" in said.out
    assert "3 outputs (class 0, class 1, class 2)" in said.out
    assert "--classes" in said.out  # a note on how to name them
    assert said.out.strip().endswith(f"retinanet detect '{out}' IMAGE")
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    detector = load_pytorch(out, device="cpu")
    assert detector.classes == ("class 0", "class 1", "class 2")
    theirs = torch.load(torchvision_weights, weights_only=True)["model"]
    ours = detector.model.state_dict()
    for name, key in (
        ("backbone.body.layer4.1.conv2.weight", "backbone.body.layer4.1.conv2.weight"),
        ("fpn.p7.weight", "backbone.fpn.extra_blocks.p7.weight"),
        ("classification.predict.weight", "head.classification_head.cls_logits.weight"),
        ("regression.predict.weight", "head.regression_head.bbox_reg.weight"),
    ):
        assert torch.equal(ours[name], theirs[key])


def test_convert_reads_safetensors_and_says_what_it_assumes(
    run: Command, torchvision_weights: Path, tmp_path: Path
) -> None:
    """Names and file as DeepForest has them; batch norm that counts no batches is frozen."""
    state = torch.load(torchvision_weights, weights_only=True)["model"]
    source, out = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    frozen = {f"model.{key}": value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    save_file(frozen, source)
    for flags, epsilon in (([], 0.0), (["--norm-eps", "1e-5"], 1e-5)):
        said = run("convert", source, out, *flags)
        assert (said.code, said.err) == (0, "")
        assert ("--norm-eps 1e-5" in " ".join(said.out.split())) == (not flags)
        assert retinanet.load(out, device="cpu").info.config.model.norm_eps == epsilon
        out.unlink()


def test_convert_names_the_classes(run: Command, torchvision_weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "named.safetensors"
    said = run("convert", torchvision_weights, out, "--classes", "nothing", "cat", "guinea pig")
    assert said.code == 0
    assert "3 outputs (nothing, cat, guinea pig)" in said.out
    assert "--classes" not in said.out
    assert retinanet.load(out, device="cpu").classes == ("nothing", "cat", "guinea pig")
    other = tmp_path / "other.safetensors"
    for names in (["cat"], ["cat", "dog", "cat"]):
        line = run.fails("convert", torchvision_weights, other, "--classes", *names)
        assert str(torchvision_weights) in line
        assert f"{len(names)} class names for 3 outputs" in line
    assert not other.exists()


@pytest.mark.parametrize("name", ["out.pth", "out", "out.safetensor"])
def test_convert_writes_safetensors_only(run: Command, torchvision_weights: Path, tmp_path: Path, name: str) -> None:
    line = run.fails("convert", torchvision_weights, tmp_path / name, code=2)
    assert str(tmp_path / name) in line
    assert "OUT.safetensors" in line
    assert not list(tmp_path.iterdir())


def test_convert_overwrites_nothing(run: Command, torchvision_weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    line = run.fails("convert", torchvision_weights, out)
    assert f"{out} already exists" in line
    assert out.read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


class Hostile:
    """Unpickling it makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f'echo ran > "{self.proof}"',)


def test_convert_runs_no_code(run: Command, tmp_path: Path) -> None:
    source, out, proof = tmp_path / "hostile.pth", tmp_path / "out.safetensors", tmp_path / "ran"
    torch.save({"model": {"head.classification_head.cls_logits.weight": torch.zeros(9)}, "x": Hostile(proof)}, source)
    line = run.fails("convert", source, out, code=1)
    assert str(source) in line
    assert "could run code" in line
    assert not out.exists()
    assert not proof.exists()
    torch.load(source, weights_only=False)
    assert proof.exists()  # it would have


def test_convert_refuses_what_is_no_such_model(run: Command, tmp_path: Path) -> None:
    source, out = tmp_path / "source.pth", tmp_path / "out" / "out.safetensors"
    assert f"{source}: no such weights file" in run.fails("convert", source, out)
    others: list[dict[str, Any]] = [{"conv1.weight": torch.zeros(64, 3, 7, 7)}, {}, {"model": {}}]
    for content in others:
        torch.save(content, source)
        line = run.fails("convert", source, out)
        assert line.startswith(f"error: {source}: expected a RetinaNet of torchvision, detectron2, mmdetection or odtk")
    torch.save([torch.zeros(2)], source)
    assert "found a list" in run.fails("convert", source, out)
    assert not out.parent.exists()


def test_convert_needs_both_names(run: Command, tmp_path: Path) -> None:
    said = run("convert", tmp_path / "in.pth")
    assert said.code == 2
    assert "OUT.safetensors" in said.err
    assert "Traceback" not in said.err
