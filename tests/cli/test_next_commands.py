"""The command that a command prints at its end works as printed, also with spaces and umlauts in all names."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from commands import Command, Said

SMALL = """
recipe: modern
model: {backbone: test_efficientnet, pretrained: false, channels: 32, subnet_depth: 1}
data: {size: 64, workers: 0}
train: {epochs: 1, batch: 4, precision: fp32, device: cpu}
"""


@pytest.fixture
def folder(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a dataset and a recipe."""
    place = tmp_path / "meine Bilder für 'heute'"
    shutil.copytree(parts, place / "große Teile")
    (place / "kleines Rezept.yaml").write_text(SMALL)
    monkeypatch.chdir(place)
    return place


DATA, RECIPE = "große Teile", ("--recipe", "kleines Rezept.yaml")


def followed(run: Command, said: Said) -> tuple[list[str], Said]:
    """Run the command that is printed last; it has to work."""
    assert said.code == 0, said
    last = said.out.strip().splitlines()[-1]
    assert last.startswith("next: retinanet "), last
    words = shlex.split(last.removeprefix("next: retinanet "))
    after = run(*words)
    assert after.code == 0, (words, after)
    return words, after


def test_from_inspection_to_detections(run: Command, folder: Path) -> None:
    """data inspect → train → eval → detect, each as printed."""
    words, said = followed(run, run("data", "inspect", DATA, *RECIPE, "--data.flip", "0", "--train.epochs", "2"))
    assert words[:2] == ["train", DATA]
    assert " ".join(words[2:]) == "--recipe kleines Rezept.yaml --data.flip 0.0 --train.epochs 2"
    assert "This training uses 9 images in train and 3 images in val" in said.out
    words, said = followed(run, said)
    assert words[0] == "eval"
    words, said = followed(run, said)
    assert words[0] == "detect"
    assert (folder / "detections" / "detections.json").is_file()
    assert "PHOTO" not in said.out


def test_a_second_training_is_told_to_use_another_folder(run: Command, folder: Path) -> None:
    (folder / "runs" / "retinanet").mkdir(parents=True)
    (folder / "runs" / "retinanet" / "best.safetensors").touch()
    words, _ = followed(run, run("data", "inspect", DATA, *RECIPE))
    assert words[-2:] == ["--out", "runs/retinanet-2"]


def test_images_that_cannot_be_read_are_repaired_first(run: Command, folder: Path) -> None:
    image = sorted((folder / DATA / "images").iterdir())[0]
    image.write_bytes(b"")
    words, said = followed(run, run("data", "inspect", DATA, *RECIPE))
    assert words[-2:] == ["--recipe", "kleines Rezept.yaml"]
    assert words[words.index("--fix") + 1] == f"{DATA}-repaired"
    words, _ = followed(run, said)
    assert words[:2] == ["train", f"{DATA}-repaired"]
    words, _ = followed(run, run("data", "inspect", DATA, *RECIPE, "--data.skip-broken"))
    assert words[0] == "train"
    assert "--data.skip-broken" in words


def test_data_that_no_command_can_mend_gets_none(run: Command, folder: Path) -> None:
    for split in ("train", "val"):
        (folder / DATA / f"instances_{split}.json").write_text("[]")
    said = run("data", "inspect", DATA, *RECIPE)
    assert "next: retinanet train" not in said.out


def none_is_printed(said: Said) -> bool:
    assert said.code == 0, said
    return "next:" not in said.out


def test_data_without_a_train_split_gets_no_training(run: Command, folder: Path) -> None:
    (folder / DATA / "instances_train.json").unlink()
    assert none_is_printed(run("data", "inspect", DATA, *RECIPE))
    assert none_is_printed(run("data", "inspect", DATA, *RECIPE, "--fix", "repariert"))
    words, _ = followed(run, run("data", "inspect", DATA, *RECIPE, "--data.train", "val"))
    assert words[0] == "train"


def test_broken_images_without_a_train_split_are_repaired(run: Command, folder: Path) -> None:
    (folder / DATA / "instances_train.json").unlink()
    content = json.loads((folder / DATA / "instances_val.json").read_text())
    next((folder / DATA).rglob(content["images"][0]["file_name"])).write_bytes(b"")
    words, said = followed(run, run("data", "inspect", DATA, *RECIPE))
    assert "--fix" in words
    assert none_is_printed(said)


def test_a_train_split_of_one_image_without_val_gets_no_training(run: Command, folder: Path) -> None:
    (folder / DATA / "instances_val.json").unlink()
    file = folder / DATA / "instances_train.json"
    content = json.loads(file.read_text())
    first = content["annotations"][0]["image_id"]
    content["images"] = [image for image in content["images"] if image["id"] == first]
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] == first]
    file.write_text(json.dumps(content))
    assert none_is_printed(run("data", "inspect", DATA, *RECIPE))


def test_after_the_anchors_a_training(run: Command, folder: Path) -> None:
    words, _ = followed(run, run("data", "anchors", DATA, "--out", "neue Anker.yaml", *RECIPE, "--data.size", "96"))
    assert words[:2] == ["train", DATA]
    assert words[2:4] in (["--recipe", "neue Anker.yaml"], ["--recipe", "kleines Rezept.yaml"])


def test_after_a_conversion_an_inspection(run: Command, folder: Path) -> None:
    for form in ("voc", "yolo", "csv", "coco"):
        words, _ = followed(run, run("data", "convert", DATA, f"als {form}", "--to", form))
        assert words == ["data", "inspect", f"als {form}"]


def test_after_a_sample_a_training(run: Command, folder: Path) -> None:
    (folder / "runs" / "sample").mkdir(parents=True)
    (folder / "runs" / "sample" / "best.safetensors").touch()
    words, _ = followed(run, run("data", "sample", "mein Beispiel", "--images", "6", "--size", "64"))
    assert words[:4] == ["train", "mein Beispiel", "--out", "runs/sample-2"]


def test_a_val_split_of_another_name_is_evaluated(run: Command, folder: Path) -> None:
    (folder / DATA / "instances_val.json").rename(folder / DATA / "instances_zum Prüfen.json")
    splits = ("--data.val", "zum Prüfen", "--data.skip-broken")
    words, said = followed(run, run("train", DATA, *RECIPE, *splits))
    assert words[2:] == [DATA, "--split", "zum Prüfen", "--data.skip-broken"]
    assert "3 images" in said.out


def test_a_val_split_held_out_of_another_split_is_not_evaluated(run: Command, folder: Path) -> None:
    (folder / DATA / "instances_val.json").unlink()
    (folder / DATA / "instances_train.json").rename(folder / DATA / "instances_alle.json")
    words, _ = followed(run, run("train", DATA, *RECIPE, "--data.train", "alle"))
    assert words[0] == "detect"


def test_a_val_split_held_out_of_train_is_evaluated(run: Command, folder: Path) -> None:
    (folder / DATA / "instances_val.json").unlink()
    words, said = followed(run, run("train", DATA, *RECIPE, "--data.val-fraction", "0.4"))
    assert words[0] == "eval"
    assert "4 images" in said.out


def test_after_a_file_of_detections_a_training(run: Command, folder: Path, weights: Path) -> None:
    assert run("eval", weights, DATA, "--out", "Ergebnisse von uns").code == 0
    file = "Ergebnisse von uns/detections.json"
    said = run("eval", "--detections", file, DATA)
    last = said.out.strip().splitlines()[-1]
    assert last == "next: retinanet train 'große Teile' --out 'runs/große Teile'"
    words, _ = followed(run, run("eval", weights, "--detections", file, DATA, "--out", "Vergleich"))
    assert words[0] == "eval"
    (folder / DATA / "instances_train.json").unlink()
    assert none_is_printed(run("eval", "--detections", file, DATA))


def test_after_perfect_detections_nothing(run: Command, folder: Path) -> None:
    content = json.loads((folder / DATA / "instances_val.json").read_text())
    perfect = [{**each, "score": 0.9} for each in content["annotations"] if not each.get("iscrowd")]
    (folder / "found.json").write_text(json.dumps(perfect))
    assert none_is_printed(run("eval", "--detections", "found.json", DATA))
