from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from retinanet.config import AnchorSpec, Config, ModelConfig
from retinanet.errors import CheckpointError, RetinaNetError
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.zoo.weights import load_weights, read_all_tensors, read_info, read_tensors, save_weights

CLASSES = ("cat", "dög")
CONFIG = Config(model=ModelConfig(backbone="resnet18", channels=32, subnet_depth=1), anchors=AnchorSpec(scales=(1.0,)))


def build() -> tuple[RetinaNet, ModelInfo]:
    torch.manual_seed(0)
    network = RetinaNet.from_config(CONFIG.model, CONFIG.anchors, len(CLASSES), pretrained=False)
    network.backbone.mean = (0.1, 0.2, 0.3)
    info = ModelInfo.of(network, CLASSES, CONFIG, metrics={"AP": 0.5}, progress={"epoch": 3})
    return network, info


def saved(folder: Path, **extra: Tensor) -> Path:
    network, info = build()
    path = folder / "best.safetensors"
    save_weights(path, {**network.state_dict(), **extra}, info)
    return path


def test_a_saved_model_computes_the_same(tmp_path: Path) -> None:
    network, info = build()
    path = saved(tmp_path)
    loaded, described = load_weights(path)
    assert described == info
    assert not loaded.training
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), network.std)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.to(memory_format=torch.channels_last).eval()(x)
        found = loaded(x)
    for ours, theirs in zip((*found.logits, *found.deltas), (*expected.logits, *expected.deltas), strict=True):
        assert torch.equal(ours, theirs)


def test_the_channels_are_resolved() -> None:
    config = Config(model=ModelConfig(backbone="tf_efficientnet_lite0"))
    with torch.device("meta"):
        network = RetinaNet.from_config(config.model, config.anchors, 2, pretrained=False)
    assert ModelInfo.of(network, CLASSES, config).config.model.channels == 128


def test_training_state_is_kept_apart(tmp_path: Path) -> None:
    path = saved(tmp_path, **{"train.optimizer.step": torch.tensor(7)})
    assert not any("optimizer" in name for name in read_tensors(path))
    weights, training = read_all_tensors(path)
    assert training["optimizer.step"].item() == 7
    assert weights.keys() == read_tensors(path).keys()
    load_weights(path)


def test_half_precision_files_load_as_float32(tmp_path: Path) -> None:
    network, info = build()
    path = tmp_path / "half.safetensors"
    save_weights(path, {k: t.bfloat16() if t.is_floating_point() else t for k, t in network.state_dict().items()}, info)
    loaded, _ = load_weights(path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def refused(path: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_weights(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "absent.safetensors", "no such weights file")


def test_a_name_like_that_of_a_bundled_model() -> None:
    refused(Path("Person"), "did you mean 'person'?", "blood-cells")
    refused(Path("blood-cell"), "did you mean 'blood-cells'?")
    with pytest.raises(CheckpointError, match="the name of the weights is empty"):
        read_info("")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions cannot be withdrawn from root, so the file is damaged as well."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"short")
    monkeypatch.setattr("os.access", lambda *arguments: False)
    refused(path, "permission denied")


def test_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder", "best.safetensors")


def test_a_file_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(3)}, path)
    refused(path, "another program")
    save_file({"x": torch.zeros(3)}, path, {"format": "pt"})
    refused(path, "another program")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_a_pickle_is_not_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps({"a": 1}))
    refused(path, "can run code", ".safetensors")


@pytest.mark.parametrize("keep", [0.0, 0.00001, 0.001, 0.5, 0.99])
def test_a_truncated_file(tmp_path: Path, keep: float) -> None:
    path = saved(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    refused(path, "not a complete safetensors file")


def test_text_with_the_right_name(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(path, "not a complete safetensors file")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"classes": None}, id="classes"),
        pytest.param({"config": {"train": {"epocs": 3}}}, id="unknown-key"),
        pytest.param({"config": 3}, id="config-no-mapping"),
        pytest.param({"classes": []}, id="no-classes"),
        pytest.param({"classes": [3]}, id="class-no-text"),
        pytest.param({"classes": ["cat", "cat"]}, id="class-twice"),
        pytest.param({"mean": 1.0}, id="mean"),
        pytest.param({"mean": [0.5]}, id="mean-of-one-channel"),
        pytest.param({"mean": [0, 0, float("nan")]}, id="mean-nan"),
        pytest.param({"std": ["x", "y", "z"]}, id="std-no-numbers"),
        pytest.param({"std": [1, 0, 1]}, id="std-zero"),
        pytest.param({"metrics": 3}, id="metrics"),
        pytest.param({"format": "retinanet/9"}, id="format"),
    ],
)
def test_a_description_of_another_version(tmp_path: Path, change: dict[str, Any]) -> None:
    network, info = build()
    description = {"classes": CLASSES, "config": info.config.to_dict(), "mean": [0, 0, 0], "std": [1, 1, 1]}
    description |= {"format": "retinanet/1", "metrics": {}, "progress": {}} | change
    path = tmp_path / "best.safetensors"
    save_file(network.state_dict(), path, {"retinanet": json.dumps(description)})
    refused(path, "description")


def test_a_description_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"retinanet": json.dumps({"format": "retinanet/1"})})
    refused(path, "description")


def test_tensors_that_do_not_fit_the_description(tmp_path: Path) -> None:
    network, info = build()
    state = network.state_dict()
    path = tmp_path / "best.safetensors"
    save_weights(path, {k: v for k, v in state.items() if k != "fpn.p6.weight"}, info)
    refused(path, "do not fit", "fpn.p6.weight")
    save_weights(path, state | {"fpn.p6.weight": torch.zeros(1, 1, 3, 3)}, info)
    refused(path, "do not fit", "fpn.p6.weight")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()

    def fail(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    network, info = build()
    with pytest.raises(RetinaNetError, match="No space left on device") as caught:
        save_weights(path, network.state_dict(), info)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_equal_models_are_equal_files_that_others_may_read(tmp_path: Path) -> None:
    network, info = build()
    paths = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for path in paths:
        save_weights(path, network.state_dict(), info)
    assert len({path.read_bytes() for path in paths}) == 1
    plain = tmp_path / "plain"
    plain.write_text("")
    assert paths[0].stat().st_mode == plain.stat().st_mode


def test_a_failed_write_is_a_checkpoint_error(tmp_path: Path) -> None:
    """What the docstring of ``save_weights`` promises."""
    network, info = build()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError):
        save_weights(tmp_path / "file" / "best.safetensors", network.state_dict(), info)


def test_the_description_is_readable_without_the_tensors(tmp_path: Path) -> None:
    info = read_info(saved(tmp_path))
    assert info.classes == CLASSES
    assert info.metrics == {"AP": 0.5}
    assert info.config.anchors.per_location == 3
