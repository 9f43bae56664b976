from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retinanet.cli import main
from retinanet.evaluation.coco_ap import SUMMARY
from retinanet.zoo.weights import load_weights, save_weights

CPU = ("--precision", "fp32", "--device", "cpu")


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinanet.evaluation.compare.RESAMPLES", 50)


class Eval:
    """Runs `retinanet eval` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> str:
        """Run a command that succeeds, and return its output."""
        assert main(["eval", *map(str, words)]) == 0
        return self._capsys.readouterr().out

    def fails(self, *words: object, code: int = 1) -> str:
        """Run a command that fails, and return its only line of error output."""
        assert main(["eval", *map(str, words)]) == code
        [line] = self._capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ")
        return line


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Eval:
    return Eval(capsys)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def peer_file(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Detections of a torchvision RetinaNet with random weights on val, in COCO's results format."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
        )
        sizes = tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in (8, 16, 32, 64, 128))
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
        model = RetinaNet(
            backbone, 5, anchor_generator=anchors, min_size=96, max_size=96, detections_per_img=300
        ).eval()
        head = model.head.classification_head.cls_logits
        torch.nn.init.normal_(head.weight, std=0.05)
        torch.nn.init.constant_(head.bias, -2.0)
        torch.nn.init.normal_(model.head.regression_head.bbox_reg.weight, std=0.01)
    content = read(parts / "instances_val.json")
    found = []
    for image in content["images"]:
        pixels = np.asarray(Image.open(parts / "images" / image["file_name"]).convert("RGB"))
        with torch.inference_mode():
            [result] = model([torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255])
        for box, score, label in zip(*(result[key].tolist() for key in ("boxes", "scores", "labels")), strict=True):
            if label:  # torchvision's class 0 is background
                bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
                found.append({"image_id": image["id"], "category_id": label, "bbox": bbox, "score": score})
    file = tmp_path_factory.mktemp("peer") / "torchvision.json"
    file.write_text(json.dumps(found))
    return file


def pycocotools_numbers(truth: Path, found: Path) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **read(truth)}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(str(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def annotate_with(parts: Path, found: Path, every: int = 9) -> None:
    """Use some detections, slightly moved, as annotations: otherwise an untrained detector has an AP of 0."""
    content = read(parts / "instances_val.json")
    content["annotations"] = []
    for number, row in enumerate(read(found)[::every]):
        x, y, width, height = (float(np.float32(v)) for v in row["bbox"])
        if width < 2 or height < 2:
            continue
        box = [x, y, width, height * (1 - (number % 5) / 17.9)]
        object_ = {"id": number + 1, "image_id": row["image_id"], "category_id": row["category_id"], "bbox": box}
        content["annotations"].append({**object_, "area": box[2] * box[3], "iscrowd": int(number % 11 == 1)})
    for key in ("info", "licenses"):
        content.pop(key, None)
    (parts / "instances_val.json").write_text(json.dumps(content))


@pytest.fixture
def own_parts(parts: Path, peer_file: Path, tmp_path: Path) -> Path:
    """A copy of the sample dataset, annotated with some of the detections, without info and licenses."""
    folder = Path(shutil.copytree(parts, tmp_path / "own parts"))
    annotate_with(folder, peer_file)
    return folder


@pytest.fixture(scope="session")
def other_weights(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The detector of ``weights`` with a little noise."""
    model, info = load_weights(weights)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.classification.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    save_weights(path, dict(model.state_dict()), info)
    return path


def test_torchvision_file_has_pycocotools_numbers(run: Eval, own_parts: Path, peer_file: Path, tmp_path: Path) -> None:
    said = run("--detections", peer_file, own_parts, "--out", tmp_path / "out")
    assert len(read(peer_file)) > 300
    metrics = read(tmp_path / "out" / "metrics.json")
    assert list(metrics) == [*SUMMARY, "per_class", "voc", "diagnosis"]
    assert [metrics[name] for name in SUMMARY] == pytest.approx(
        pycocotools_numbers(own_parts / "instances_val.json", peer_file), abs=1e-9
    )
    assert 0.02 < metrics["AP"] < metrics["AP50"] < 0.98
    assert 0.02 < metrics["voc"]["mAP"] < 0.98
    assert f"Pascal VOC: mAP {metrics['voc']['mAP']:.3f}, by 11 points {metrics['voc']['mAP11']:.3f}" in said
    assert f"{peer_file} on own parts [val]" in (tmp_path / "out" / "report.html").read_text()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["metrics.json", "report.html"]
    assert said.strip().splitlines()[-1].startswith("next: retinanet train ")


def test_results_go_beside_the_file(run: Eval, own_parts: Path, peer_file: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(peer_file, tmp_path / "found.json"))
    run("--detections", file, own_parts)
    assert (tmp_path / "eval" / "report.html").is_file()
    run("--detections", file, "--detections", peer_file, own_parts, "--out", tmp_path / "both")
    run("--detections", peer_file, own_parts, "--detections", file)
    assert (tmp_path / "compare" / "compare.html").is_file()
    assert read(tmp_path / "both" / "compare.json")["b"] == str(peer_file)


def test_detections_of_a_voc_dataset_by_name(run: Eval, own_parts: Path, peer_file: Path, tmp_path: Path) -> None:
    """A dataset without ids: images are given by stem, classes by name."""
    assert main(["data", "convert", str(own_parts), str(tmp_path / "voc"), "--to", "voc"]) == 0
    content = read(own_parts / "instances_val.json")
    stems = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    rows = [
        {**row, "image_id": stems[row["image_id"]], "category_name": names[row["category_id"]], "category_id": 99}
        for row in read(peer_file)
    ]
    (tmp_path / "named.json").write_text(json.dumps(rows))
    run("--detections", tmp_path / "named.json", tmp_path / "voc", "--out", tmp_path / "a")
    run("--detections", peer_file, own_parts, "--out", tmp_path / "b")
    by_name, by_id = (read(tmp_path / side / "metrics.json") for side in "ab")
    for name in ("AP", "AP50", "AP75", "AR100"):  # areas, and with them the sizes, are not held by VOC
        assert by_name[name] == pytest.approx(by_id[name], abs=1e-9)
    assert by_name["voc"]["mAP11"] == pytest.approx(by_id["voc"]["mAP11"], abs=1e-9)


def test_what_detect_wrote_can_be_evaluated(run: Eval, weights: Path, parts: Path, tmp_path: Path) -> None:
    """Its ids count the given images; images are matched by name."""
    images = [parts / "images" / image["file_name"] for image in read(parts / "instances_val.json")["images"]]
    words = ["detect", weights, *reversed(images), "--out", tmp_path / "d", "--score", "0.05", *CPU]
    assert main(list(map(str, words))) == 0
    said = run("--detections", tmp_path / "d" / "detections.json", parts, "--out", tmp_path / "file")
    assert "left out" not in said
    run(weights, parts, "--out", tmp_path / "model", *CPU)
    ours, theirs = (read(tmp_path / side / "metrics.json") for side in ("file", "model"))
    assert ours["AP50"] == pytest.approx(theirs["AP50"], abs=0.02)  # boxes and scores are rounded there


def test_no_detection_at_all(run: Eval, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("[]")
    said = run("--detections", tmp_path / "none.json", parts)
    assert "note: " in said
    assert "holds no detection" in said
    metrics = read(tmp_path / "eval" / "metrics.json")
    assert metrics["AP"] == metrics["voc"]["mAP"] == 0
    assert (tmp_path / "eval" / "report.html").is_file()


def test_crowds_alone(run: Eval, own_parts: Path, peer_file: Path, tmp_path: Path) -> None:
    content = read(own_parts / "instances_val.json")
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    (own_parts / "instances_val.json").write_text(json.dumps(content))
    said = run("--detections", peer_file, own_parts, "--out", tmp_path / "out")
    assert "Pascal VOC" not in said
    metrics = read(tmp_path / "out" / "metrics.json")
    assert [metrics[name] for name in SUMMARY] == [-1] * 12
    assert metrics["voc"] == {"mAP11": -1, "mAP": -1, "per_class": {}}
    said = run("--detections", peer_file, "--detections", peer_file, own_parts, "--out", tmp_path / "both")
    assert "There are no objects, so nothing can be measured." in said
    assert read(tmp_path / "both" / "compare.json")["AP"]["delta"] is None


def test_bad_files_take_one_line_and_leave_nothing(run: Eval, parts: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    for content, said in (
        ("", "the file is empty"),
        ("no", "not valid JSON"),
        (json.dumps(read(parts / "instances_val.json")), "has no 'score'; give a file of detections"),
        (
            '[{"image_id": 12345, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]',
            "1 of 1 detections are of images",
        ),
        ('[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": NaN}]', "detection 1 has score nan"),
    ):
        file.write_text(content)
        assert said in run.fails("--detections", file, parts)
        assert said in run.fails("--detections", file, "--detections", file, parts, "--out", tmp_path / "eval")
    assert not (tmp_path / "eval").exists()
    assert "no such file" in run.fails("--detections", tmp_path / "none.json", parts)


def test_page_without_the_images_that_cannot_be_shown(
    run: Eval, own_parts: Path, peer_file: Path, tmp_path: Path
) -> None:
    """Detections can be evaluated without the image files."""
    names = [image["file_name"] for image in read(own_parts / "instances_val.json")["images"]]
    whole = run("--detections", peer_file, own_parts, "--out", tmp_path / "whole")
    assert "cannot be shown" not in whole
    (own_parts / "images" / names[0]).unlink()
    with Image.open(own_parts / "images" / names[1]) as image:
        small = image.resize((48, 48))
    small.save(own_parts / "images" / names[1])
    text = run("--detections", peer_file, own_parts, "--out", tmp_path / "part").replace("\n", " ")
    assert "note: 2 images cannot be shown on the page; the first: " in text
    assert read(tmp_path / "whole" / "metrics.json") == read(tmp_path / "part" / "metrics.json")
    page = (tmp_path / "part" / "report.html").read_text(encoding="utf-8")
    assert "2 images cannot be shown" in page
    assert names[2] in page
    shown = re.findall(r"<figcaption>([^<]*)", page)
    assert not any(name in caption for name in names[:2] for caption in shown)


def test_two_models(run: Eval, weights: Path, other_weights: Path, parts: Path, tmp_path: Path) -> None:
    said = run(weights, "--split", "train", other_weights, parts, "--out", tmp_path / "out", *CPU)
    written = read(tmp_path / "out" / "compare.json")
    assert (written["a"], written["b"], written["data"]) == (str(weights), str(other_weights), "parts [train]")
    assert f"A: {weights}\nB: {other_weights}\n" in said
    for side, model in (("a", weights), ("b", other_weights)):
        run(model, parts, "--split", "train", "--out", tmp_path / side, *CPU)
        alone = read(tmp_path / side / "metrics.json")
        assert written["metrics"][side] == {name: alone[name] for name in SUMMARY}
        assert written["AP"][side] == pytest.approx(alone["AP"], abs=1e-12)
    assert written["AP"]["delta"] != 0
    page = (tmp_path / "out" / "compare.html").read_text()
    assert 'src="http' not in page
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["compare.html", "compare.json"]


def test_a_model_and_itself(run: Eval, weights: Path, parts: Path, tmp_path: Path) -> None:
    own = Path(shutil.copy(weights, tmp_path / "w.safetensors"))
    said = run(own, own, parts, *CPU)
    written = read(tmp_path / "compare" / "compare.json")
    for name in ("AP", "AP50"):
        change = written[name]
        assert [change[key] for key in ("delta", "low", "high", "b_better", "a_better")] == [0] * 5
    assert "There is no difference" in said


def test_a_model_and_a_file(run: Eval, weights: Path, own_parts: Path, peer_file: Path, tmp_path: Path) -> None:
    """The model is A, wherever it stands; the next command evaluates the better one."""
    said = run("--detections", peer_file, weights, own_parts, "--out", tmp_path / "out", *CPU)
    written = read(tmp_path / "out" / "compare.json")
    assert (written["a"], written["b"]) == (str(weights), str(peer_file))
    assert written["AP"]["delta"] > 0
    last = said.strip().splitlines()[-1]
    assert last == f"next: retinanet eval --detections {peer_file} '{own_parts}'"


def test_models_of_different_classes(
    run: Eval, weights: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, info = load_weights(weights)
    others = ("something", *info.classes[1:])
    renamed = tmp_path / "renamed.safetensors"
    save_weights(renamed, dict(model.state_dict()), type(info)(**{**vars(info), "classes": others}))
    said = run(weights, renamed, parts, "--split", "train", *CPU)
    assert f"note: not compared, because only A has these classes: {info.classes[0]}" in said
    written = read(tmp_path / "compare" / "compare.json")
    assert written["not_compared"] == {"only_a": [info.classes[0]], "only_b": [], "neither": []}
    assert set(written["per_class"]) == set(info.classes[1:])
    strange = tmp_path / "strange.safetensors"
    save_weights(strange, dict(model.state_dict()), type(info)(**{**vars(info), "classes": tuple("wxyz")}))

    def never(*_: object) -> None:
        raise AssertionError("the work was begun")

    monkeypatch.setattr("retinanet.model.RetinaNet.forward", never)
    assert "no class here" in run.fails(weights, strange, parts, *CPU)


def test_models_that_set_different_parts_aside(run: Eval, weights: Path, parts: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(parts, tmp_path / "p"))
    (own / "instances_val.json").unlink()
    model, info = load_weights(weights)
    data = type(info.config.data)(**{**vars(info.config.data), "val_fraction": 0.3})
    config = type(info.config)(**{**vars(info.config), "data": data})
    other = tmp_path / "other.safetensors"
    save_weights(other, dict(model.state_dict()), type(info)(**{**vars(info), "config": config}))
    line = run.fails(weights, other, own, *CPU, code=2)
    assert "(0.1 and 0.3); name a split with --split" in line
    run(weights, other, own, "--split", "train", *CPU)


def test_what_is_to_be_evaluated_must_be_clear(run: Eval, weights: Path, parts: Path, tmp_path: Path) -> None:
    assert "0 detectors before DATA" in run.fails(parts, code=2)
    file = tmp_path / "a.json"
    file.write_text("[]")
    assert "3 detectors before DATA" in run.fails(weights, weights, "--detections", file, parts, code=2)
    assert f"--detections {file}" in run.fails(file, parts, code=2)
    assert "give WEIGHTS DATA" in run.fails(code=2)
    with pytest.raises(SystemExit) as stopped:
        run(weights, weights, weights, parts)
    assert stopped.value.code == 2


@pytest.mark.parametrize("words", ["A --split train B DATA", "A B --split train DATA", "--split=train A B DATA"])
def test_flags_may_stand_anywhere(
    words: str, run: Eval, weights: Path, other_weights: Path, parts: Path, tmp_path: Path
) -> None:
    names = {"A": weights, "B": other_weights, "DATA": parts}
    run(*(names.get(word, word) for word in words.split()), "--out", tmp_path / "out", *CPU)
    written = read(tmp_path / "out" / "compare.json")
    assert (written["a"], written["b"], written["data"]) == (str(weights), str(other_weights), "parts [train]")


def test_real_data_has_pycocotools_numbers(run: Eval, shared_data: Path, tmp_path: Path) -> None:
    """Crowds, mask areas and coordinates with decimals: two imprecise detections of every object of a COCO dataset."""
    data = shared_data / "coco_person"
    rng = np.random.default_rng(0)
    rows = []
    for annotation in read(data / "instances_val.json")["annotations"]:
        x, y, width, height = annotation["bbox"]
        for score in rng.uniform(size=2):
            moved = [x + rng.normal(0, 0.08) * width, y, width * rng.uniform(0.8, 1.2), height]
            row = {"image_id": annotation["image_id"], "category_id": annotation["category_id"], "bbox": moved}
            rows.append({**row, "score": float(score)})
    (tmp_path / "found.json").write_text(json.dumps(rows))
    run("--detections", tmp_path / "found.json", data)
    metrics = read(tmp_path / "eval" / "metrics.json")
    expected = pycocotools_numbers(data / "instances_val.json", tmp_path / "found.json")
    assert [metrics[name] for name in SUMMARY] == pytest.approx(expected, abs=5e-4)  # clipped, and float32
