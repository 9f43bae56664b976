"""The command line as users meet it: what each verb leaves behind, and one line for everything that goes wrong."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file, save_file
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import retinanet
from retinanet import cli
from retinanet.cli import detect, evaluate, train
from retinanet.cli.terminal import parse
from retinanet.data.synthetic import CLASSES
from retinanet.training.log import Log
from retinanet.zoo import weights as zoo

# A network and pictures small enough that an epoch takes a second. 64 channels, because group norm needs more than one
# number per group, and a 64-pixel picture has one position on P7.
SMALL = [
    *("--data.size", "64", "--data.workers", "0", "--train.precision", "fp32", "--train.device", "cpu"),
    *("--model.channels", "64", "--model.subnet-depth", "1", "--train.batch", "4"),
]
SUMMARY = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


class Said(NamedTuple):
    code: int
    out: str
    err: str


class Command:
    """Runs the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *argv: object) -> Said:
        try:
            code = cli.main([str(word) for word in argv])
        except SystemExit as stop:  # how the parser ends
            code = int(stop.code or 0)
        return Said(code, *self.capsys.readouterr())

    def fails(self, *argv: object, code: int = 1) -> str:
        """The one line an unusable command answers with."""
        said = self(*argv)
        assert said.code == code, said
        lines = said.err.strip().splitlines()
        assert len(lines) == 1, said.err
        assert lines[0].startswith("error: ")
        return lines[0]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="session")
def trained(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a training of one epoch, and what it said. Tests leave it as it is."""
    out = tmp_path_factory.mktemp("trained") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main(["train", str(parts), "--out", str(out), "--train.epochs", "1", *SMALL]) == 0
    return out, said.getvalue()


@pytest.fixture
def own_parts(parts: Path, tmp_path: Path) -> Path:
    """A copy of the sample dataset, to be damaged."""
    return Path(shutil.copytree(parts, tmp_path / "own parts"))


def next_command(said: str) -> list[str]:
    """The words of the ``next:`` line a command ends with; their flags parse."""
    last = said.strip().splitlines()[-1]
    assert last.startswith("next: retinanet ")
    words = shlex.split(last.removeprefix("next: "))[1:]
    kinds: dict[str, type] = {"train": train.Arguments, "eval": evaluate.Arguments, "detect": detect.Arguments}
    parse(kinds[words[0]], words[1:], f"retinanet {words[0]}")
    return words


# What needs no torch


def fresh_python(code: str, *argv: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    return done.stdout


HEAVY = "heavy = {'torch', 'torchvision', 'timm', 'supervision', 'matplotlib', 'hotcoco', 'numpy'} & set(sys.modules)"


def test_import_is_light() -> None:
    assert fresh_python(f"import sys, retinanet; retinanet.RetinaNetError; {HEAVY}; print(heavy)") == "set()\n"


@pytest.mark.parametrize(
    "argv",
    [
        *(["--help"], ["--version"], [], ["data"]),
        *([verb, "--help"] for verb in ("train", "eval", "detect", "convert")),
    ],
)
def test_help_is_light(argv: list[str]) -> None:
    code = f"""
import sys
from retinanet.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code
{HEAVY}
print("heavy:", heavy)
"""
    said = fresh_python(code, *argv)
    assert len(said.splitlines()) > 1
    assert said.endswith("heavy: set()\n")


def test_installed_command_answers() -> None:
    command = Path(sys.executable).with_name("retinanet")
    if not command.exists():
        pytest.skip("the package is not installed with its command")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"retinanet {retinanet.__version__}\n"


def test_help_names_every_verb(run: Command) -> None:
    said = run("--help")
    assert said.code == 0
    assert said.err == ""
    assert all(verb in said.out for verb in cli.VERBS)


def test_help_of_a_verb_names_settings_and_defaults(run: Command) -> None:
    said = run("train", "--help")
    assert said.code == 0
    for flag in ("--recipe", "--resume", "--data.size", "--train.epochs", "--model.backbone", "--loss.gamma"):
        assert flag in said.out
    paper = run("train", "--recipe", "paper", "--help")
    assert "resnet50" in paper.out


# data sample


def test_data_sample(run: Command, tmp_path: Path) -> None:
    out = tmp_path / "my parts"
    said = run("data", "sample", out, "--images", 7, "--size", 64)
    assert said.code == 0
    assert len(list((out / "images").glob("*.jpg"))) == 7
    assert next_command(said.out)[:2] == ["train", str(out)]
    assert str(out) in run.fails("data", "sample", out)
    assert "images is 1" in run.fails("data", "sample", tmp_path / "other", "--images", 1)


# train


def test_train_leaves_weights_metrics_and_curves(trained: tuple[Path, str], parts: Path) -> None:
    out, said = trained
    files = {path.name for path in out.iterdir()}
    assert files == {".lock", "best.safetensors", "last.safetensors", "metrics.jsonl", "curves.png", "config.yaml"}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps, evaluations = [x for x in lines if "loss" in x], [x for x in lines if "AP" in x]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert [line["epoch"] for line in evaluations] == [1]
    assert all({"classification", "box", "lr", "grad_norm", "foreground"} <= set(line) for line in steps)
    with Image.open(out / "curves.png") as curves:
        assert min(curves.size) > 200
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert settings["data"]["size"] == 64
    assert next_command(said) == ["eval", str(out / "best.safetensors"), str(parts)]


def test_written_settings_are_a_recipe(run: Command, trained: tuple[Path, str], parts: Path, tmp_path: Path) -> None:
    recipe = trained[0] / "config.yaml"
    assert run("train", parts, "--out", tmp_path / "run", "--recipe", recipe).code == 0
    assert (tmp_path / "run" / "config.yaml").read_text() == recipe.read_text()
    first, second = (load_file(folder / "best.safetensors") for folder in (trained[0], tmp_path / "run"))
    assert all(torch.equal(first[name], second[name]) for name in first), "same settings and seed, other weights"


def test_train_refuses_to_overwrite_a_run(run: Command, trained: tuple[Path, str], parts: Path) -> None:
    before = (trained[0] / "last.safetensors").read_bytes()
    assert "--resume" in run.fails("train", parts, "--out", trained[0], *SMALL)
    assert (trained[0] / "last.safetensors").read_bytes() == before


def test_train_refuses_to_overwrite_best_weights_alone(run: Command, parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "best.safetensors").write_bytes(b"precious")
    assert "best.safetensors" in run.fails("train", parts, "--out", out, *SMALL)
    assert "best.safetensors" in run.fails("train", parts, "--out", out, "--resume", *SMALL)
    assert (out / "best.safetensors").read_bytes() == b"precious"


def test_resume_with_another_recipe_is_refused(run: Command, trained: tuple[Path, str], parts: Path) -> None:
    line = run.fails("train", parts, "--out", trained[0], "--resume", "--recipe", "paper", code=1)
    assert "cannot resume with other settings" in line


def test_resume_with_other_settings_is_refused(run: Command, trained: tuple[Path, str], parts: Path) -> None:
    line = run.fails("train", parts, "--out", trained[0], "--resume", "--data.size", 96, "--loss.gamma", 1)
    assert "data.size 64 → 96" in line
    assert "loss.gamma 2.0 → 1.0" in line


def test_resume_with_other_data_is_refused(run: Command, trained: tuple[Path, str], tmp_path: Path) -> None:
    assert run("data", "sample", tmp_path / "other", "--images", 10, "--size", 64, "--seed", 5).code == 0
    assert "data has changed" in run.fails("train", tmp_path / "other", "--out", trained[0], "--resume")


def test_stopped_and_resumed_is_as_if_never_stopped(
    run: Command, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*SMALL, "--train.epochs", "2"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run("train", parts, "--out", whole, *flags).code == 0

    write = Log.write

    def write_and_interrupt(log: Log, **values: Any) -> None:
        write(log, **values)
        if values["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", write_and_interrupt)
        said = run("train", parts, "--out", halves, *flags)
    assert said.code == 130
    assert "--resume" in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert [json.loads(x)["step"] for x in (halves / "metrics.jsonl").read_text().splitlines()][-2:] == [1, 2]
    assert run("train", parts, "--out", halves, "--resume").code == 0

    for name in ("last.safetensors", "best.safetensors"):
        first, second = load_file(whole / name), load_file(halves / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    kept = [[json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()] for out in (whole, halves)]
    assert [{**line, "seconds": 0, "data_wait": 0} for line in kept[0]] == [
        {**line, "seconds": 0, "data_wait": 0} for line in kept[1]
    ]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for single processes")
def test_ctrl_c_saves_and_says_how_to_go_on(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "retinanet", "train", parts, "--out", out, "--train.epochs", "1000", *SMALL]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        metrics, deadline = out / "metrics.jsonl", time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert len(err.strip().splitlines()) == 1, err
    assert "--resume" in err
    assert zoo.read_info(out / "last.safetensors").progress["step"] >= 1
    retinanet.load(out / "last.safetensors", device="cpu")


def test_full_disk_leaves_the_last_weights_intact(
    run: Command, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    kept: dict[str, bytes] = {}

    write_bytes = Path.write_bytes

    def write(self: Path, content: bytes) -> int:
        if (out / "last.safetensors").exists():  # the first epoch is saved
            kept.update({p.name: p.read_bytes() for p in out.glob("[!.]*.safetensors")})
            write_bytes(self, b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(self, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    line = run.fails("train", parts, "--out", out, "--train.epochs", 2, *SMALL)
    assert "No space left on device" in line
    assert "safetensors" in line
    assert sorted(kept) == ["best.safetensors", "last.safetensors"]
    assert {p.name: p.read_bytes() for p in out.glob("*.safetensors")} == kept
    assert not list(out.glob(".*.*"))
    retinanet.load(out / "best.safetensors", device="cpu")


# eval


@pytest.fixture(scope="session")
def evaluated(weights: Path, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("evaluated") / "eval"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        words = ["eval", weights, parts, "--out", out, "--precision", "fp32", "--device", "cpu"]
        assert cli.main(list(map(str, words))) == 0
    return out, said.getvalue()


def test_eval_writes_metrics_and_report(evaluated: tuple[Path, str], weights: Path) -> None:
    out, said = evaluated
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics) == [*SUMMARY, "per_class", "voc", "diagnosis"]
    assert all(isinstance(metrics[name], float) for name in SUMMARY)
    assert set(metrics["per_class"]) == set(CLASSES)
    diagnosis = metrics["diagnosis"]
    assert diagnosis["AP"] == pytest.approx(metrics["AP"], abs=1e-6)
    page = (out / "report.html").read_text()
    assert 'src="http' not in page
    assert 'href="http' not in page
    words = next_command(said)
    assert words[:2] == ["detect", str(weights)]
    assert Path(words[2]).is_file()


def annotate_with_its_own_detections(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    """Make most of what the detector finds, a little smaller, the truth: the numbers of an untrained one are zeros."""
    assert run("eval", weights, parts, "--out", tmp_path / "first", "--precision", "fp32", "--device", "cpu").code == 0
    file = parts / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"] = []
    for number, found in enumerate(json.loads((tmp_path / "first" / "detections.json").read_text())):
        x, y, width, height = found["bbox"]
        if number % 3 == 0 or min(width, height) < 4:
            continue
        cut = (number % 7) / 21.3 * width
        box = [x + cut, y, width - cut, height * (1 - (number % 5) / 17.9)]  # IoUs far from 0.5, 0.55, …
        row = {"id": number + 1, "image_id": found["image_id"], "category_id": found["category_id"], "bbox": box}
        content["annotations"].append({**row, "area": box[2] * box[3], "iscrowd": int(number % 11 == 1)})
    file.write_text(json.dumps(content))


def test_eval_numbers_are_those_of_pycocotools(run: Command, weights: Path, own_parts: Path, tmp_path: Path) -> None:
    annotate_with_its_own_detections(run, weights, own_parts, tmp_path)
    out = tmp_path / "second"
    said = run("eval", weights, own_parts, "--out", out, "--precision", "fp32", "--device", "cpu")
    assert said.code == 0
    metrics = json.loads((out / "metrics.json").read_text())
    diagnosis = metrics["diagnosis"]
    assert f"best threshold: {diagnosis['threshold']:.2f} (F1 {diagnosis['f1']:.3f})" in said.out
    costs = {kind: diagnosis["errors"]["costs"][kind] for kind in ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")}
    worst = max(costs, key=lambda kind: costs[kind])
    assert f"({worst}) cost the most: {costs[worst]:.3f} AP50" in said.out
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(own_parts / "instances_val.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(out / "detections.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert 0.1 < metrics["AP"] < metrics["AP50"] < 1
    for name, value in zip(SUMMARY, evaluation.stats, strict=True):
        assert metrics[name] == pytest.approx(value, abs=1e-6), name


def test_eval_goes_beside_the_weights_and_knows_splits(
    run: Command, weights: Path, parts: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copy(weights, tmp_path / "w.safetensors"))
    said = run("eval", own, parts, "--split", "train")
    assert said.code == 0
    assert "9 images" in said.out
    assert (tmp_path / "eval" / "metrics.json").is_file()
    assert "no split 'nowhere'" in run.fails("eval", own, parts, "--split", "nowhere")


def test_eval_of_a_detector_that_finds_nothing(
    run: Command, trained: tuple[Path, str], parts: Path, tmp_path: Path
) -> None:
    untrained = tmp_path / "w.safetensors"
    model, info = zoo.load_weights(trained[0] / "best.safetensors")
    torch.nn.init.constant_(model.classification.predict.bias, -20.0)  # type: ignore[arg-type]
    zoo.save_weights(untrained, dict(model.state_dict()), info)
    assert run("eval", untrained, parts).code == 0
    assert json.loads((tmp_path / "eval" / "detections.json").read_text()) == []
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["AP"] == 0


def test_eval_of_unknown_classes(run: Command, weights: Path, own_parts: Path) -> None:
    file = own_parts / "instances_val.json"
    file.write_text(file.read_text().replace('"gear"', '"sprocket"'))
    line = run.fails("eval", weights, own_parts)
    assert "'sprocket'" in line
    assert "gear" in line


def test_eval_matches_classes_by_name(
    run: Command, evaluated: tuple[Path, str], weights: Path, own_parts: Path, tmp_path: Path
) -> None:
    file = own_parts / "instances_val.json"
    content = json.loads(file.read_text())
    numbers = {c["id"]: 90 - c["id"] for c in content["categories"]}  # other ids, in another order
    for category in content["categories"]:
        category["id"] = numbers[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = numbers[annotation["category_id"]]
    file.write_text(json.dumps(content))
    assert run("eval", weights, own_parts, "--out", tmp_path / "e", "--precision", "fp32", "--device", "cpu").code == 0
    renumbered, expected = (json.loads((p / "metrics.json").read_text()) for p in (tmp_path / "e", evaluated[0]))
    assert {k: renumbered[k] for k in SUMMARY} == {k: expected[k] for k in SUMMARY}
    assert renumbered["per_class"] == expected["per_class"]


# detect


def test_detect_in_a_file(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    picture = tmp_path / "wide.png"
    with Image.open(parts / "images" / "000000.jpg") as image:
        image.resize((150, 70)).save(picture)
    said = run("detect", weights, picture, "--out", tmp_path / "out")
    assert said.code == 0
    assert said.out.startswith("1 picture: ")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["detections.csv", "detections.json", "wide.jpg"]
    with Image.open(tmp_path / "out" / "wide.jpg") as drawn:
        assert drawn.size == (150, 70)
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": str(picture), "width": 150, "height": 70}]
    assert all(0.3 <= a["score"] <= 1 for a in content["annotations"])
    with (tmp_path / "out" / "detections.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(content["annotations"]) > 0


def test_detect_in_folder_pattern_and_several(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    images = parts / "images"
    for sources, count in (
        ([images], 12),
        ([images / "00000[0-4].jpg"], 5),
        ([images / "000003.jpg", images / "000001.jpg", images / "00000[12].jpg"], 3),
    ):
        out = tmp_path / str(count)
        said = run("detect", weights, *sources, "--out", out, "--format", "csv")
        assert said.code == 0
        assert said.out.startswith(f"{count} pictures: ")
        assert len(list(out.glob("*.jpg"))) == count


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("coco", "detections.json"),
        ("csv", "detections.csv"),
        ("yolo", "labels/000000.txt"),
        ("voc", "annotations/000000.xml"),
    ],
)
def test_detect_formats(run: Command, weights: Path, parts: Path, tmp_path: Path, name: str, file: str) -> None:
    picture = parts / "images" / "000000.jpg"
    assert run("detect", weights, picture, "--out", tmp_path, "--format", name, "--no-draw").code == 0
    found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {file} | ({"classes.txt", "labels.csv"} if name == "yolo" else set())
    assert (tmp_path / file).stat().st_size > 20


def test_detect_score(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    counts = []
    for score in (0.1, 0.3, 0.6):
        run("detect", weights, parts / "images", "--out", tmp_path, "--score", score, "--format", "coco", "--no-draw")
        scores = [a["score"] for a in json.loads((tmp_path / "detections.json").read_text())["annotations"]]
        assert min(scores) >= score
        counts.append(len(scores))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] > 0


def test_detect_in_a_file_whose_name_is_no_text(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    picture = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    try:
        shutil.copy(parts / "images" / "000000.jpg", picture)
    except OSError:
        pytest.skip("this file system has text names only")
    assert run("detect", weights, picture, "--out", tmp_path / "out").code == 0
    assert json.loads((tmp_path / "out" / "detections.json").read_text())["images"][0]["file_name"] == str(picture)
    picture.write_bytes(b"no picture")
    assert "caf\\udce9.jpg" in run.fails("detect", weights, picture, "--out", tmp_path / "out")


def test_terminal_that_cannot_show_every_letter(weights: Path, parts: Path, tmp_path: Path) -> None:
    picture = parts / "images" / "000000.jpg"
    code = "import sys; from retinanet.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "detect", weights, picture, "--out", tmp_path],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"},
    )
    assert b"score \\u2265 0.3" in done.stdout


def test_detect_in_one_pixel(run: Command, weights: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    assert run("detect", weights, tmp_path / "dot.png", "--out", tmp_path / "out").code == 0
    with Image.open(tmp_path / "out" / "dot.jpg") as drawn:
        assert drawn.size == (1, 1)


def test_detect_refuses_giants_and_goes_on(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    giant = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "giant.png").write_bytes(giant)
    picture = parts / "images" / "000000.jpg"
    line = run.fails("detect", weights, tmp_path / "giant.png", picture, "--out", tmp_path / "out")
    assert "giant.png" in line
    assert "1 of 2" in line
    assert (tmp_path / "out" / "000000.jpg").is_file()
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())["images"]) == 1


def test_detect_beside_its_sources_is_refused(run: Command, weights: Path, own_parts: Path) -> None:
    assert "would replace a picture" in run.fails(
        "detect", weights, own_parts / "images", "--out", own_parts / "images"
    )


# What goes wrong: one line, no traceback, nothing else written


def test_wrong_data(run: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert "nowhere: no such file or folder" in run.fails("train", tmp_path / "nowhere", "--out", out)
    (tmp_path / "empty").mkdir()
    line = run.fails("train", tmp_path / "empty", "--out", out)
    assert "the folder is empty" in line
    assert all(name in line for name in ("COCO", "Pascal VOC", "YOLO", "CSV"))
    (tmp_path / "list.json").write_text("[1, 2]")
    assert "not of annotations" in run.fails("train", tmp_path / "list.json", "--out", out)
    (tmp_path / "other.json").write_text('{"name": "x"}')
    assert "not COCO" in run.fails("train", tmp_path / "other.json", "--out", out)
    (tmp_path / "cut.json").write_text('{"images": [')
    assert "cut.json:1:" in run.fails("train", tmp_path / "cut.json", "--out", out)
    assert not out.exists()


def test_images_that_are_all_missing(run: Command, own_parts: Path) -> None:
    shutil.rmtree(own_parts / "images")
    assert "000000.jpg" in run.fails("train", own_parts, "--out", own_parts / "run")


def test_annotated_image_that_is_missing(run: Command, own_parts: Path, tmp_path: Path) -> None:
    (own_parts / "images" / "000004.jpg").unlink()
    line = run.fails("train", own_parts, "--out", tmp_path / "run", *SMALL)
    assert "000004.jpg: no such image file" in line


def test_annotation_of_an_image_that_is_not_listed(run: Command, own_parts: Path, tmp_path: Path) -> None:
    file = own_parts / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["image_id"] = 4711
    file.write_text(json.dumps(content))
    line = run.fails("train", own_parts, "--out", tmp_path / "run", "--train.epochs", 1, *SMALL)
    assert "image_id 4711" in line
    assert str(file) in line


def test_broken_image_is_named_before_training(run: Command, own_parts: Path, tmp_path: Path) -> None:
    broken = own_parts / "images" / "000002.jpg"
    broken.write_bytes(broken.read_bytes()[:500])
    arguments = ["train", own_parts, "--out", tmp_path / "run", "--train.epochs", 1, *SMALL]
    line = run.fails(*arguments)
    assert str(broken) in line
    assert "--data.skip-broken" in line
    assert not (tmp_path / "run").exists()
    said = run(*arguments, "--data.skip-broken")
    assert said.code == 0
    assert "8 images" in said.out
    assert f"note: left out: {broken}" in said.out


def test_broken_image_at_eval_is_one_line(run: Command, weights: Path, own_parts: Path, tmp_path: Path) -> None:
    # Two batches, so that a worker process meets it; its traceback must stay there.
    broken = own_parts / "images" / "000002.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    line = run.fails("eval", weights, own_parts, "--split", "train", "--out", tmp_path / "eval")
    assert str(broken) in line
    assert "Traceback" not in line
    assert "worker" not in line


def test_nothing_to_learn_from(run: Command, own_parts: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        file = own_parts / f"instances_{split}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    assert "no box to learn from" in run.fails("train", own_parts, "--out", tmp_path / "run", *SMALL)


def test_wrong_weights(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        first = run.fails("eval", path, parts)
        assert run.fails("detect", path, parts / "images" / "000000.jpg", "--out", tmp_path / "o") == first
        return first

    assert "no such weights file" in refused(tmp_path / "none.safetensors")
    assert "best.safetensors" in refused(weights.parent)
    torch.save({"w": torch.zeros(2)}, tmp_path / "model.pth")
    assert "pickled" in refused(tmp_path / "model.pth")
    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors", {"format": "pt"})
    assert "not a retinanet/1 weights file" in refused(tmp_path / "other.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "plain.safetensors")
    assert "by another program" in refused(tmp_path / "plain.safetensors")
    content = weights.read_bytes()
    for length in (0, 5, 4000, len(content) - 1):
        (tmp_path / "cut.safetensors").write_bytes(content[:length])
        assert "not a complete safetensors file" in refused(tmp_path / "cut.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, I am a text file")
    assert "not a complete safetensors file" in refused(tmp_path / "text.safetensors")


def test_wrong_sources(run: Command, weights: Path, tmp_path: Path) -> None:
    assert "nowhere.jpg: no such file" in run.fails("detect", weights, tmp_path / "nowhere.jpg")
    assert "matches no picture" in run.fails("detect", weights, tmp_path / "*.jpg")
    (tmp_path / "empty").mkdir()
    assert "holds no picture" in run.fails("detect", weights, tmp_path / "empty")
    assert "name pictures" in run.fails("detect", weights, "--out", tmp_path / "out", code=2)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian", "x"], "'retinanet train'"),
        (["evaluate"], "'retinanet eval'"),
        (["data", "samples"], "'retinanet data sample'"),
        (["quux"], "train, eval, detect"),
    ],
)
def test_unknown_verb(run: Command, words: list[str], hint: str) -> None:
    assert hint in run.fails(*words, code=2)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["train", "parts", "--data.siez", "64"], "--data.size"),
        (["train", "parts", "--train.epoch", "3"], "--train.epochs"),
        (["detect", "w", "p", "--scroe", "0.2"], "--score"),
        (["eval", "w", "p", "--splitt", "val"], "--split"),
        (["train", "parts", "--data.size", "large"], "--data.size"),
        (["train", "parts", "--train.optimizer", "adam"], "adamw"),
        (["detect", "w", "p", "--format", "pascal"], "voc"),
        (["eval", "w", "p", "--precision", "int8"], "bf16"),
        (["train"], "DATA"),
    ],
)
def test_unknown_flags_and_values(run: Command, words: list[str], hint: str) -> None:
    said = run(*words)
    assert said.code == 2
    assert hint in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("flag", "value", "hint"),
    [
        ("--data.size", "3", "32 to 8192"),
        ("--train.epochs", "0", "at least 1"),
        ("--train.lr", "-1", "positive"),
        ("--loss.alpha", "3", "between 0 and 1"),
        ("--model.channels", "33", "multiple of 32"),
        ("--data.workers", "-2", "negative"),
    ],
)
def test_values_out_of_range(run: Command, tmp_path: Path, flag: str, value: str, hint: str) -> None:
    line = run.fails("train", tmp_path, "--out", tmp_path / "run", flag, value, code=2)
    assert hint in line
    assert flag.removeprefix("--") in line


@pytest.mark.parametrize("score", ["-0.1", "1", "7"])
def test_score_out_of_range(run: Command, weights: Path, score: str) -> None:
    assert "--score" in run.fails("detect", weights, "x.jpg", f"--score={score}", code=2)


def test_unknown_model_and_device(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    line = run.fails("train", parts, "--out", tmp_path / "run", *SMALL, "--model.backbone", "resnet500")
    assert "did you mean 'resnet50'" in line
    assert "quantum" in run.fails("eval", weights, parts, "--device", "quantum", code=2)


def test_recipes(run: Command, parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = run.fails("train", parts, "--out", out, "--recipe", "modren", code=2)
    assert "modern, paper" in line
    recipe = tmp_path / "mine.yaml"
    for text, hint in (
        ("train: {epoch: 3}", "did you mean 'epochs'"),
        ("trian: {epochs: 3}", "did you mean 'train'"),
        ("train: {epochs: many}", "expected int"),
        ("train: 3", "group of settings"),
        ("- train", "mapping"),
        ("train: {epochs: [", "not a readable YAML file"),
        ("train: {epochs: 0}", "at least 1"),
    ):
        recipe.write_text(text)
        assert hint in run.fails("train", parts, "--out", out, "--recipe", recipe, code=2)
    assert not out.exists()


@pytest.mark.parametrize("verb", ["train", "eval", "detect"])
def test_output_folder_that_is_a_file(
    run: Command, weights: Path, parts: Path, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before the work is done, not after."""
    target = tmp_path / "out"
    target.write_text("in the way")
    arguments: dict[str, list[object]] = {
        "train": [parts, *SMALL],
        "eval": [weights, parts],
        "detect": [weights, parts / "images"],
    }

    def never(*_: object) -> None:
        raise AssertionError("the work was begun")

    monkeypatch.setattr("retinanet.model.RetinaNet.forward", never)
    line = run.fails(verb, *arguments[verb], "--out", target)
    assert str(target) in line
    assert "choose another" in line
    assert target.read_text() == "in the way"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_output_folder_without_permission(run: Command, weights: Path, parts: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "choose another" in run.fails("eval", weights, parts, "--out", tmp_path / "out")
        assert "choose another" in run.fails("eval", weights, parts, "--out", tmp_path)
    finally:
        tmp_path.chmod(0o700)


def fail_with(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_recipe_without_a_name(run: Command, parts: Path) -> None:
    assert "no recipe ''; there are modern, paper" in run.fails("train", parts, "--recipe", "", code=2)


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore"), "--train.batch"),
        (MemoryError(), "--data.size"),
        (RuntimeError("DataLoader worker (pid(s) 4711) exited unexpectedly"), "--data.workers 0"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x/metrics.jsonl"), "x/metrics.jsonl: No space left"),
    ],
)
def test_failures_of_the_machine(
    run: Command, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, hint: str
) -> None:
    monkeypatch.setattr("retinanet.training.api.train_job", fail_with(error))
    assert hint in run.fails("train", parts, "--out", tmp_path / "run", *SMALL)


def test_bugs_are_not_hidden(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinanet.training.api.train_job", fail_with(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.main(["train", str(parts), "--out", str(tmp_path / "run"), *SMALL])


def test_ctrl_c_without_anything_to_save(run: Command, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinanet.training.api.read_train_val", fail_with(KeyboardInterrupt()))
    assert run("train", parts) == Said(130, "", "stopped\n")


# convert


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
    assert next_command(said.out) == ["detect", str(out), "PHOTO.jpg"]
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    detector = retinanet.load(out, device="cpu")
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
        assert line.startswith(f"error: {source}: expected the state dict of torchvision's retinanet_resnet50_fpn")
    torch.save([torch.zeros(2)], source)
    assert "found a list" in run.fails("convert", source, out)
    assert not out.parent.exists()


def test_convert_needs_both_names(run: Command, tmp_path: Path) -> None:
    said = run("convert", tmp_path / "in.pth")
    assert said.code == 2
    assert "OUT.safetensors" in said.err
    assert "Traceback" not in said.err


def _has_huge_pages() -> bool:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    tells = Path("/proc/self/smaps")  # what was asked of a program's memory
    return setting.is_file() and "[never]" not in setting.read_text() and "VmFlags" in tells.read_text()


@pytest.mark.skipif(not _has_huge_pages(), reason="no transparent huge pages, or none that are told of")
def test_large_tensors_ask_for_huge_pages() -> None:
    """The system may have none left to give: the test is for what was asked, the flag `hg` of the tensor's memory."""
    code = """
from pathlib import Path
from retinanet import cli
cli.main(["data", "inspect", "/nowhere"])  # any verb
import torch
tensor = torch.ones(64 << 20, dtype=torch.uint8)
middle = tensor.data_ptr() + (32 << 20)
inside = False
for line in Path("/proc/self/smaps").read_text().splitlines():
    first, *others = line.split()
    if not first.endswith(":"):
        begin, end = (int(address, 16) for address in first.split("-"))
        inside = begin <= middle < end
    elif inside and first == "VmFlags:":
        print(*others)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "hg" in done.stdout.splitlines()[-1].split()
