"""The peers of ``experiments/peers.py``: torchvision's Faster R-CNN, resumed trainings, and diverged runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from retinanet.config import DataConfig
from retinanet.data.formats.open_dataset import read_split
from retinanet.data.synthetic import CLASSES

SMALL = DataConfig(size=64, max_size=96)


@pytest.fixture
def two_stage(experiment: Any) -> Any:
    """Builds a Faster R-CNN that trains on few proposals, so that a test takes seconds."""

    def build() -> Any:
        torch.manual_seed(0)
        return experiment("torchvision_two_stage").build_two_stage(
            len(CLASSES), bf16=False, scaling=SMALL, box_batch_size_per_image=16
        )

    return build


@pytest.fixture
def tiny(experiment: Any, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of data with one more set, ``tiny``; the current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    runs, peer = experiment("runs"), experiment("torchvision_peer")
    monkeypatch.setitem(runs.SETS, "tiny", runs.Set(parts.name, "val", 1, 9, 1))
    monkeypatch.setattr(peer, "BATCH", 2)
    threads = torch.get_num_threads()
    yield parts.parent
    torch.set_num_threads(threads)


def test_faster_rcnn_has_torchvisions_defaults_and_the_pyramid_of_the_retinanets(experiment: Any) -> None:
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    model = experiment("torchvision_two_stage").build_two_stage(3, bf16=True).eval()
    features = model.backbone(torch.zeros(1, 3, 320, 416))
    assert [tuple(each.shape) for each in features.values()] == [
        (1, 128, height, width) for height, width in ((80, 104), (40, 52), (20, 26), (10, 13), (5, 7))
    ]
    assert {each.dtype for each in features.values()} == {torch.float32}  # otherwise the anchors would be rounded
    default = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    assert model.rpn.anchor_generator.sizes == default.rpn.anchor_generator.sizes
    assert model.roi_heads.box_head.module.fc6.out_features == default.roi_heads.box_head.fc6.out_features
    assert model.roi_heads.box_predictor.module.cls_score.out_features == 4
    for mode in ("training", "testing"):
        assert model.rpn._post_nms_top_n[mode] == default.rpn._post_nms_top_n[mode]
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    retinanet = experiment("torchvision_peer").build(3, bf16=True)
    theirs = {name for name, parameter in retinanet.named_parameters() if not parameter.requires_grad}
    assert frozen == {name.replace("body.body.", "body.") for name in theirs}


def test_a_faster_rcnn_without_the_level_of_stride_4_pools_from_stride_8_on(experiment: Any) -> None:
    peers = experiment("peers")
    model = peers.build_peer("faster_rcnn_stride8", 3).eval()
    features = model.backbone(torch.zeros(1, 3, 320, 416))
    assert [tuple(each.shape[2:]) for each in features.values()] == [(40, 52), (20, 26), (10, 13), (5, 7)]
    assert model.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,))
    pool = model.roi_heads.box_roi_pool
    small = [torch.tensor([[8.0, 8, 20, 20]])]
    pooled = pool(features, small, [(320, 416)])
    assert pool.scales == [1 / 8, 1 / 16, 1 / 32]
    # A small region comes from the finest level: the other levels do not matter.
    changed = {name: value if name == "0" else value + 1 for name, value in features.items()}
    assert torch.equal(pooled, pool(changed, small, [(320, 416)]))
    whole = peers.build_peer("faster_rcnn", 3)
    heads = [
        dict(each.rpn.head.named_parameters()) | dict(each.roi_heads.named_parameters()) for each in (model, whole)
    ]
    assert [(name, p.shape) for name, p in heads[0].items()] == [(name, p.shape) for name, p in heads[1].items()]
    detections = model([torch.rand(3, 64, 96)])
    assert detections[0]["boxes"].shape[1] == 4


def test_the_first_class_is_not_the_background(two_stage: Any) -> None:
    model = two_stage()
    seen: list[Any] = []
    model.roi_heads.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[3]))
    target = {"boxes": torch.tensor([[10.0, 10, 60, 50]]), "labels": torch.tensor([0])}
    losses = model.train()([torch.rand(3, 64, 96)], [target])
    assert seen[0][0]["labels"].tolist() == [1]
    assert target["labels"].tolist() == [0]
    assert all(torch.isfinite(value) for value in losses.values())
    model.roi_heads.box_predictor.module.cls_score.bias.data[1] = 20.0
    (found,) = model.eval()([torch.rand(3, 64, 96)])
    assert len(found["labels"]) > 0
    assert set(found["labels"].tolist()) == {0}


def test_a_killed_training_resumes_to_the_same_weights(
    experiment: Any, two_stage: Any, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = experiment("torchvision_peer")
    monkeypatch.setattr(peer, "BATCH", 2)
    train_set, state = read_split(parts, "train").subset(range(4)), tmp_path / "state.pt"
    whole, killed, resumed = two_stage(), two_stage(), two_stage()
    peer.train(whole, train_set, 2, 0.01, 0, SMALL)
    genuine, read = peer.load_sample, []

    def load(*arguments: Any) -> Any:
        read.append(arguments)
        if len(read) > 6:  # in the middle of the second epoch
            raise KeyboardInterrupt
        return genuine(*arguments)

    monkeypatch.setattr(peer, "load_sample", load)
    with pytest.raises(KeyboardInterrupt):
        peer.train(killed, train_set, 2, 0.01, 0, SMALL, state)
    monkeypatch.setattr(peer, "load_sample", genuine)
    torch.manual_seed(7)  # the state of the generator in the new process is another one
    peer.train(resumed, train_set, 2, 0.01, 0, SMALL, state)
    expected, start = whole.state_dict(), two_stage().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.state_dict().items())
    assert not torch.equal(start["rpn.head.module.conv.0.0.weight"], expected["rpn.head.module.conv.0.0.weight"])


def test_a_finished_training_is_only_evaluated(experiment: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peers, peer = experiment("peers"), experiment("torchvision_peer")
    spec = {"side": "torchvision", "set": "tiny", "seed": 0, "lr": 0.0025}
    first = peers.one(tiny, spec)
    assert not {"diverged", "resumed"} & set(first)
    assert [path.name for path in peers.folder_of(spec).iterdir()] == ["weights.safetensors"]
    monkeypatch.setattr(peer, "train", None)
    second = peers.one(tiny, spec)
    assert second["resumed"] is True
    assert [second[key] for key in ("AP", "AP50", "AP75")] == [first[key] for key in ("AP", "AP50", "AP75")]


@pytest.mark.parametrize("side", ["torchvision", "faster_rcnn"])
def test_a_diverged_run_is_a_result(
    experiment: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    peers = experiment("peers")
    spec = {"side": side, "set": "tiny", "seed": 0, "lr": 1e30}
    outcome = peers.one(tiny, spec)
    assert outcome["diverged"] is True
    assert "epoch 1 of 1" in outcome["error"]
    assert [outcome[key] for key in ("AP", "AP50", "AP75")] == [0, 0, 0]
    log = tmp_path / "peers.jsonl"
    log.write_text(json.dumps({"spec": {**spec, "set": "bccd", "lr": 0.02}, **outcome}) + "\n")
    monkeypatch.setattr(peers, "LOG", log)
    text = peers.report()
    assert "| bccd | – | – | – | 0.0000 (diverged) |" in text
    assert f"| bccd/val | {side} (lr 0.02), 1 of 1 diverged | 0 |" in text


def test_the_variants_of_modern_differ_in_one_thing(
    experiment: Any, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace
    from types import SimpleNamespace

    peers = experiment("peers")
    trained: list[Any] = []

    def train(config: Any, *arguments: Any, **options: Any) -> Any:
        trained.append(config)
        return SimpleNamespace(metrics={})

    monkeypatch.setattr("retinanet.training.loop.train_on", train)
    dataset = read_split(parts, "train")
    for side in ("modern", "modern_focal", "modern_flip"):
        peers.train_recipe({"side": side, "set": "bccd", "seed": 0}, dataset, dataset, epochs=2)
    modern, focal, flip = trained
    assert (focal.loss.classification, focal.loss.alpha, focal.loss.gamma) == ("focal", 0.25, 2.0)
    assert replace(focal, loss=modern.loss) == modern
    assert focal.loss.box == modern.loss.box
    assert (flip.data.scale, flip.data.color, flip.data.flip) == ((1.0, 1.0), 0.0, 0.5)
    assert replace(flip, data=replace(flip.data, scale=modern.data.scale, color=modern.data.color)) == modern
