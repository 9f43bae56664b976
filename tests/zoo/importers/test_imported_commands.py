"""A converted detectron2 model through the commands: eval, detect, export, verify, INT8 and fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

import retinanet
from commands import Command
from labelled import labelled_by
from peer_vectors import SMALL, Load, Vectors, assert_equal_detections
from retinanet.config import Config
from retinanet.data.formats.open_dataset import read_split
from retinanet.data.images import read_image
from retinanet.data.synthetic import CLASSES
from retinanet.exporting import api, verification
from retinanet.exporting.agreement import EXACT, compare_detections
from retinanet.exporting.options import ExportOptions
from retinanet.exporting.sample_images import sample_images
from retinanet.model import RetinaNet
from retinanet.zoo.conversion import convert_weights
from retinanet.zoo.importers import ImportOptions
from retinanet.zoo.importers.detectron2 import ORIGIN, load_detectron2
from retinanet.zoo.importers.mmdet import load_mmdet
from retinanet.zoo.importers.odtk import load_odtk
from retinanet.zoo.weights import save_weights

# As in detectron2's file of a training; everything that its state dict does not tell.
CONFIG = """
MODEL:
  META_ARCHITECTURE: RetinaNet
  PIXEL_MEAN: [103.53, 116.28, 123.675]
  PIXEL_STD: [1.0, 1.0, 1.0]
  RESNETS: {STRIDE_IN_1X1: true}
  ANCHOR_GENERATOR: {SIZES: [[16, 20], [32, 40], [64, 80], [128, 160], [256, 320]], ASPECT_RATIOS: [[0.5, 1.0, 2.0]]}
  RETINANET: {SCORE_THRESH_TEST: 0.2}
INPUT: {FORMAT: BGR, MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 128}
"""


# AP of the model on its ten best detections of each image. Its other detections are false positives.
LEAST_AP = 0.45


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as detectron2 writes it, of a narrow random ResNet-50, and its ``config.yaml`` beside it."""
    folder = tmp_path_factory.mktemp("detectron2")
    network = {"backbone": "resnet50", "stage_channels": [4, 8, 16, 32], "channels": 32, "subnet_depth": 1}
    anchors = {"scales": [1.0, 1.25]}
    config = Config.from_dict({"model": {**network, "stride_in": "1x1"}, "anchors": anchors})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = RetinaNet.from_config(config.model, config.anchors, len(CLASSES), pretrained=False).eval()
        model.backbone.body.get_parameter("conv1.weight").div_(50)  # for pixels of ±128
        spread = torch.cat(model(torch.randn(1, 3, 64, 64) * 50).logits, dim=1).std()
        model.classification.predict.weight.mul_(4 / spread)
        torch.nn.init.normal_(model.regression.predict.weight, std=0.05)
    state = {ORIGIN.theirs(key): value for key, value in model.state_dict().items()}
    torch.save({"model": state, "iteration": 90000}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(CONFIG)
    return folder / "model_final.pth"


@pytest.fixture(scope="module")
def converted(checkpoint: Path) -> Path:
    path = checkpoint.with_name("converted.safetensors")
    convert_weights(checkpoint, path, ImportOptions(classes=CLASSES, config=checkpoint.with_name("config.yaml")))
    return path


@pytest.fixture(scope="module")
def labelled(converted: Path, sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose boxes are the detections of the converted model."""
    return labelled_by(converted, sound, tmp_path_factory.mktemp("labelled") / "data")


def test_two_commands_convert_and_detect(run: Command, checkpoint: Path, sound: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "ours.safetensors", checkpoint.with_name("config.yaml")
    said = run("convert", checkpoint, out, "--config", config, "--classes", *CLASSES)
    assert (said.code, said.err) == (0, "")
    assert "assumed" not in said.out
    image = next((sound / "images").glob("*.jpg"))
    said = run("detect", out, image, "--out", tmp_path / "found", "--score", "0.2")
    assert said.code == 0, said.err
    found = json.loads((tmp_path / "found" / "detections.json").read_text())["annotations"]
    assert len(found) == len(retinanet.load(out, device="cpu").detect([read_image(image)])[0]) > 10


def test_eval_finds_its_own_detections(run: Command, converted: Path, labelled: Path, tmp_path: Path) -> None:
    said = run("eval", converted, labelled, "--out", tmp_path, "--precision", "fp32")
    assert said.code == 0, said.err
    assert json.loads((tmp_path / "metrics.json").read_text())["AP"] > LEAST_AP


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_an_exported_file_has_the_detections_and_the_ap_of_the_converted_model(
    to: str, run: Command, converted: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = sample_images()[-3:]
    monkeypatch.setattr(verification, "sample_images", lambda: few)
    file = tmp_path / ("model.onnx" if to == "onnx" else "model.xml")
    # A network of a fixed size is traced faster.
    said = run("export", converted, "--to", to, "--out", file, "--size", "64", "--batch", "1")
    assert said.code == 0, said.err
    assert "verdict: the file agrees with the model" in said.out
    said = run("verify", file, converted, "--precision", "fp32")
    assert (said.code, said.err) == (0, "")
    dataset = read_split(labelled, "val")
    sides = [retinanet.load(path, precision="fp32", device="cpu") for path in (converted, file)]
    for index in range(3):
        image = read_image(dataset.path(index))
        theirs, ours = (side.detect([image])[0] for side in sides)
        assert len(theirs) > 10
        agreement = compare_detections(theirs, ours, image.shape[:2], EXACT, floor=0.2)
        assert agreement.differing == 0
    said = run("eval", file, labelled, "--out", tmp_path / "eval", "--precision", "fp32")
    assert said.code == 0, said.err
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["AP"] > LEAST_AP


def test_an_imported_model_is_quantized_to_int8(converted: Path, labelled: Path, tmp_path: Path) -> None:
    options = ExportOptions(int8=True, max_drop=100, size=(64,), batch=1)
    result = api.export(converted, "openvino", tmp_path / "int8.xml", data=labelled, options=options)
    [checked] = result.verifications
    assert checked.ap is not None
    assert checked.ap[0] > LEAST_AP
    assert retinanet.load(result.path).info.config.data.resize == "pillow"


def test_fine_tuning_to_other_classes_lowers_the_loss(
    run: Command, converted: Path, sound: Path, tmp_path: Path
) -> None:
    renamed = {"nut": "bolt", "screw": "pin", "gear": "wheel"}  # the washer is known to the detector
    for split in ("train", "val"):
        content = json.loads((sound / f"instances_{split}.json").read_text())
        for category in content["categories"]:
            category["name"] = renamed.get(category["name"], category["name"])
        for image in content["images"]:
            image["file_name"] = str(sound / "images" / Path(image["file_name"]).name)
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(content))
    flags = ["--data.size", "64", "--data.workers", "0", "--train.batch", "2", "--train.precision", "fp32"]
    words = ["--model.init", converted, *flags, "--train.epochs", "1", "--train.lr", "1e-2"]
    said = run("train", tmp_path, "--out", tmp_path / "run", *words)
    assert said.code == 0, said.err
    assert "keep their outputs: washer; new classes: " in " ".join(said.out.split())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) > 16
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert retinanet.load(tmp_path / "run" / "last.safetensors", device="cpu").classes == ("washer", *renamed.values())


@pytest.mark.parametrize(
    ("peer", "load", "size"),
    [
        ("detectron2", load_detectron2, (160, 448)),
        ("mmdet", load_mmdet, (160, 448)),
        ("odtk", load_odtk, (256, 512)),
    ],
)
def test_an_exported_file_has_the_detections_of_the_program(
    peer: str, load: Load, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is exported for the size of one image, which is faster than for all sizes."""
    few = sample_images()[-2:]
    monkeypatch.setattr(verification, "sample_images", lambda: few)
    vectors = Vectors.of(peer)
    model, info = load(vectors.state(), SMALL)
    save_weights(tmp_path / "a.safetensors", model.state_dict(), info)
    kind: Literal["detector", "network"] = "detector" if peer == "detectron2" else "network"
    options = ExportOptions(size=size, batch=1, graph=kind)
    result = api.export(tmp_path / "a.safetensors", "onnx", options=options)
    assert not result.notes
    (found,) = retinanet.load(result.path).detect([vectors.image("wide")])
    assert_equal_detections(found, vectors.read("expected"), "wide.default")


def test_a_fixed_size_with_another_padding_than_the_models_is_noted() -> None:
    [note] = ExportOptions(size=(256, 320)).padding_notes(128)
    assert "multiples of 128" in note
    assert "--size 256 384" in note
    assert ExportOptions(size=(256, 384)).padding_notes(128) == []
    assert ExportOptions().padding_notes(128) == []
