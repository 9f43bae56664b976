"""The code of the documentation runs, and its links and names exist.

Every ``python`` block and every ``retinanet`` line of a ``bash``, ``sh`` or ``console`` block is run, page by page and
from top to bottom. The working folder contains ``photo.jpg``, the folder ``photos``, the video ``clip.mp4``, the data
``parts`` and ``BCCD`` (tiny replacements), ``runs/parts/best.safetensors``, and a torchvision detector. Outputs of a
command (``data sample OUT``, ``train --out RUN``) are removed before it runs. ``PLACEHOLDERS`` replaces words in
capitals. ``torchrun`` lines run in their own processes. ``pip`` and ``make`` lines are not run, but their extras and
targets must exist. ``git`` and ``cd`` are skipped. Any other command fails the test, so that no command is unchecked.
Blocks marked ``text`` or ``py`` (excerpts of files) are not run.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from clips import write_clip
from retinanet import cli
from retinanet.data.images import read_image
from retinanet.model import RetinaNet as RetinaNetOfOurs
from retinanet.object_sizes import ObjectSizes
from retinanet.zoo.importers import detectron2, mmdet, odtk
from retinanet.zoo.weights import load_weights, save_weights

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ALL_PAGES = [*PAGES, ROOT / "CHANGELOG.md"]
SHELLS = ("bash", "sh", "shell", "console")
PLACEHOLDERS = {
    "DATA": "parts",
    "RUN": "runs/parts",
    "WEIGHTS": "runs/parts/best.safetensors",
    "SOURCE": "photo.jpg",
    "OUT": "out",
    "PHOTO.jpg": "photo.jpg",
    "IN.pth": "torchvision.pth",
    "OUT.safetensors": "out.safetensors",
}

# Appended to commands that would take minutes. Of two equal flags, the last one counts.
SHORTER = {
    "train": "--train.epochs 1 --data.size 64 --data.workers 0 --train.precision fp32 "
    "--model.channels 64 --model.subnet-depth 1 --model.no-pretrained",
    "data sample": "--images 12 --size 96",
    "reproduce": "--report",
}


class Block(NamedTuple):
    """A fenced block: its first line, its language and its text."""

    line: int
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    start, fence, language = 0, "", ""
    for number, line in enumerate(lines, start=1):
        mark = re.match(r"\s*(`{3,})(\w*)", line)
        if not mark:
            continue
        if not fence:
            start, (fence, language) = number, mark.groups()
        elif mark[1] == fence:
            yield Block(start + 1, language, "\n".join(lines[start : number - 1]))
            fence = ""
    assert not fence, f"{page}:{start}: the block is not closed"


def commands(block: Block) -> list[list[str]]:
    """The words of each command. In a ``console`` block, commands start with ``$`` and other lines are output."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    found = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [words for words in found if words]


def make_world(folder: Path, parts: Path, weights: Path) -> None:
    for name in ("parts", "BCCD"):
        shutil.copytree(parts, folder / name)
    (folder / "runs" / "parts").mkdir(parents=True)
    model, info = load_weights(weights)
    sizes = ObjectSizes.of(np.array([[0, 0, 10, 20], [0, 0, 5, 4]]), np.array([1.0, 1.0]))  # as a training stores them
    path = folder / "runs" / "parts" / "best.safetensors"
    save_weights(path, dict(model.state_dict()), replace(info, objects=sizes, metrics={"threshold": 0.3}))
    (folder / "photos").mkdir()
    for number in range(2):
        shutil.copy(parts / "images" / f"{number:06d}.jpg", folder / "photos" / f"{number}.jpg")
    shutil.copy(folder / "photos" / "0.jpg", folder / "photo.jpg")
    write_clip(folder / "clip.mp4", [read_image(path) for path in sorted((parts / "images").glob("*.jpg"))])


def save_torchvision_model(path: Path) -> None:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    torch.save(RetinaNet(backbone, 2).state_dict(), path)


def save_peer_models(folder: Path) -> None:
    """Small RetinaNets in the formats of detectron2, mmdetection and odtk."""
    model = RetinaNetOfOurs("resnet18", 3, channels=64)
    for origin, name, key in (
        (detectron2.ORIGIN, "model_final.pth", "model"),
        (mmdet.ORIGIN, "epoch_12.pth", "state_dict"),
        (odtk.ORIGIN, "odtk.pth", "state_dict"),
    ):
        named = {origin.theirs(own).replace("*", "ResNet18FPN"): value for own, value in model.state_dict().items()}
        torch.save({key: named}, folder / name)
    (folder / "config.yaml").write_text("MODEL: {META_ARCHITECTURE: RetinaNet}\nINPUT: {FORMAT: BGR}\n")


def run_retinanet(words: list[str]) -> None:
    words = [PLACEHOLDERS.get(word.removesuffix("..."), word) for word in words]
    verb = next((verb for verb in cli.VERBS if words[: len(verb.split())] == verb.split()), words[0])
    made = words[2:3] if verb == "data sample" else []
    if verb == "train" and "--out" in words and "--resume" not in words:
        made = [words[words.index("--out") + 1]]
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)
    if "--help" not in words:
        shorter = SHORTER.get(verb, "").split()
        if "--model.init" in words:  # its network is given
            shorter = shorter[: shorter.index("--model.channels")]
        words = [*words, *shorter]
    try:
        code = cli.main(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 0, f"retinanet {' '.join(words)} ended with {code}"


def check_make(words: list[str]) -> None:
    text = (ROOT / "Makefile").read_text()
    for target in words:
        assert re.search(rf"^{re.escape(target)}:", text, re.MULTILINE), f"the Makefile has no target {target!r}"


def check_pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words[1:]:
        name, _, extras = word.strip("]").partition("[")
        assert name in (".", project["name"], "-e", "--editable"), f"pip {' '.join(words)}: {name} is not this package"
        for extra in filter(None, extras.split(",")):
            assert extra in project["optional-dependencies"], f"there is no extra {extra!r}"


def run_torchrun(words: list[str]) -> None:
    """Run several processes on this machine, with the small network of ``SHORTER``."""
    words = [PLACEHOLDERS.get(word, word) for word in words]
    shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words, *SHORTER["train"].split()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr


RUNNERS: dict[str, Callable[[list[str]], None]] = {
    "retinanet": run_retinanet,
    "torchrun": run_torchrun,
    "make": check_make,
    "pip": check_pip,
    "git": lambda words: None,  # needs a network
    "cd": lambda words: None,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_runs(
    page: Path,
    parts: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_world(tmp_path, parts, weights)
    if "IN.pth" in page.read_text(encoding="utf-8"):
        save_torchvision_model(tmp_path / "torchvision.pth")
    if "epoch_12.pth" in page.read_text(encoding="utf-8"):
        save_peer_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        try:
            if block.language == "python":
                # The line numbers of a traceback are those of the page.
                exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
            elif block.language in SHELLS:
                for program, *words in commands(block):
                    assert program in RUNNERS, f"this test does not know the command {program!r}"
                    RUNNERS[program](words)
        except Exception as error:
            said = capsys.readouterr()
            raise AssertionError(f"{where}: {type(error).__name__}: {error}\n{said.out}{said.err}") from error


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {link} does not exist"
        if target.suffix == ".md":
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}: no such heading"
        else:
            assert not anchor, f"{page.name}: {link}: name a symbol instead of a line"


# Paths and names in the text, such as `training/loop.py` or `retinanet.load`.
PATHS = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|yaml|toml))`")
NAMES = re.compile(r"`(retinanet(?:\.\w+)+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_and_objects_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in PATHS.findall(text):
        places = [base / name for base in (ROOT, ROOT / "src" / "retinanet", ROOT / "src")]
        assert any(place.exists() for place in places), f"{page.name}: there is no file {name}"
    for name in NAMES.findall(text):
        assert _exists(name), f"{page.name}: there is no {name}"


def _exists(name: str) -> bool:
    import importlib

    module, *rest = name.split(".")
    found: Any = importlib.import_module(module)
    for part in rest:
        module = f"{module}.{part}"
        try:
            found = getattr(found, part)
        except AttributeError:
            try:
                found = importlib.import_module(module)
            except ModuleNotFoundError:
                return False
    return True


def test_commands_are_found_and_split(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "a\n```bash\nretinanet train DATA \\\n  --out RUN  # minutes\ncd x && make demo\n```\n"
        "```console\n$ retinanet --version\nretinanet 1\n```\n```\nplain\n```\n"
    )
    first, second, third = blocks(page)
    assert commands(first) == [["retinanet", "train", "DATA", "--out", "RUN"], ["cd", "x"], ["make", "demo"]]
    assert commands(second) == [["retinanet", "--version"]]
    assert (third.language, third.text) == ("", "plain")
    assert (first.line, second.line) == (3, 8)


def test_wrong_documentation_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no target 'everything'"):
        check_make(["everything"])
    with pytest.raises(AssertionError, match="no extra 'gold'"):
        check_pip(["install", ".[gold]"])
    with pytest.raises(AssertionError, match="ended with 2"):
        run_retinanet(["fly"])
    assert not _exists("retinanet.fly")
    page = tmp_path / "page.md"
    page.write_text("[a](missing.md)")
    with pytest.raises(AssertionError, match=r"missing\.md does not exist"):
        test_links_lead_somewhere(page)
