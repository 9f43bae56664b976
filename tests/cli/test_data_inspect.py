from __future__ import annotations

import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from retinanet.cli import main
from retinanet.data.formats.open_dataset import read_all


class Page(HTMLParser):
    """Checks that elements are closed in order; collects references."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def digests(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_planted_defects(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(planted)
    out, fixed = tmp_path / "inspect", tmp_path / "fixed"
    words = ["data", "inspect", str(planted), "--out", str(out), "--data.size", "256", "--fix", str(fixed)]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"next: retinanet train {fixed} --data.size 256"
    assert len(said) <= 45
    first = next(line for line in said if line.startswith(("error", "warning", "note")))
    assert first.startswith("error: 1 × image that cannot be read. Effect: training stops")
    assert digests(planted) == before

    content = json.loads((out / "findings.json").read_text())
    assert list(content["splits"]) == ["train", "val"]
    assert {"severity", "code", "split", "where", "what", "effect"} == set(content["findings"][0])
    assert all(finding["effect"] for finding in content["findings"])
    text = (out / "inspect.html").read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.references) > 20
    assert all(reference.startswith("data:image/") for reference in page.references)
    assert "<script" not in text
    for finding in content["findings"]:
        assert finding["where"] in text

    changes = (fixed / "changes.txt").read_text().splitlines()
    assert f"{len(changes)} changes" in said[-2]
    assert main(["data", "inspect", str(fixed), "--out", str(tmp_path / "again"), "--data.size", "256"]) == 0
    left = {f["code"] for f in json.loads((tmp_path / "again" / "findings.json").read_text())["findings"]}
    repaired = {"broken-image", "leak", "duplicate-image", "bad-box", "bad-line", "clipped-box", "duplicate-box"}
    assert not left & (repaired | {"broken-annotation", "unknown-class", "unlisted-image"})
    assert list(read_all(fixed)) == ["train", "val"]


def test_low_coverage_leads_to_anchors(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "inspect", str(sound), "--out", str(tmp_path / "out"), "--recipe", "paper", "--data.size", "96"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"next: retinanet data anchors {sound} --recipe paper --data.size 96"
    assert "warning: 1 × split with more than 10% of its boxes below IoU 0.5 with every anchor" in said
    page = (tmp_path / "out" / "inspect.html").read_text()
    [missed] = re.findall(r"(\d+) boxes are not reached", page)
    [coverage] = [c for c in json.loads((tmp_path / "out" / "findings.json").read_text())["splits"]["train"]["coverage"]
                  if c["by"] == "all"]  # fmt: skip
    assert int(missed) == round((1 - coverage["reached"]) * coverage["boxes"])


def test_only_unreadable_images(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    for split in ("train", "val"):
        name = f"instances_{split}.json"
        (tmp_path / "data" / name).write_bytes((sound / name).read_bytes())
    for image in (sound / "images").iterdir():
        (tmp_path / "data" / "images" / image.name).write_bytes(b"")
    words = ["data", "inspect", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "error: 60 × image that cannot be read" in capsys.readouterr().out
    assert main([*words, "--fix", str(tmp_path / "fixed")]) == 1
    assert "no image is left to write" in capsys.readouterr().err
    assert not (tmp_path / "fixed").exists()


def test_names_are_text_not_html(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(sound / "images")
    content = json.loads((sound / "instances_train.json").read_text())
    content["categories"][0]["name"] = "<b>&washer</i>"
    (tmp_path / "data" / "instances_train.json").write_text(json.dumps(content))
    assert main(["data", "inspect", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "inspect.html").read_text()
    assert Page(text).open == []
    assert "<b>&washer" not in text
    assert "&lt;b&gt;&amp;washer" in text


def test_refusals_take_one_line(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ([str(tmp_path / "none")], "no such file or folder"),
        ([str(sound), "--fix", str(sound)], "exists and is not an empty folder"),
        ([str(sound), "--fix", "same", "--out", "same"], "choose another"),
        ([str(sound), "--out", "/dev/null/x"], "no such folder can be made"),
    ):
        assert main(["data", "inspect", *words]) in (1, 2)
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
