from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hotcoco
import numpy as np
import pytest
from PIL import Image

import defects
from retinanet.config import DataConfig
from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.data.formats.open_dataset import read_tolerantly, with_shared_classes
from retinanet.data.problems import PROBLEM_KINDS
from retinanet.errors import DataError
from retinanet.inspection.checks import FINDING_OF_PROBLEM, CheckResult, run_checks
from retinanet.inspection.findings import KINDS, Finding, by_kind
from retinanet.inspection.splits import without_unions


def annotation(number: int) -> str:
    """The place of an annotation, as readers report it."""
    return f"annotation {number} "


# Of each kind of finding: what its places must contain, in any order.
PLANTED: dict[str, list[str]] = {
    "broken-image": [f"images/{defects.TRUNCATED}"],
    "image-size": [f"images/{defects.OTHER_SIZE}"],
    "leak": [f"images/{defects.LEAK}"],
    "near-leak": [f"images/{defects.NEAR_LEAK}"],
    "duplicate-image": [f"images/{defects.DUPLICATE}"],
    "near-duplicate": [f"images/{defects.NEAR_DUPLICATE}"],
    "bad-box": [
        annotation(number)
        for number in (defects.ZERO_WIDTH, defects.NOT_FINITE, defects.NEGATIVE_WIDTH, defects.OUTSIDE)
    ],
    "bad-line": [annotation(defects.WITHOUT_BOX)],
    "clipped-box": [annotation(defects.CLIPPED)],
    "tiny-box": [annotation(defects.TINY)],
    "duplicate-box": [annotation(defects.TWICE_AGAIN)],
    "two-classes": [annotation(defects.OTHER_CLASS)],
    "huge-box": [annotation(defects.HUGE)],
    "unflagged-crowd": [annotation(defects.GROUP)],
    "broken-annotation": [f"annotation {defects.UNKNOWN_IMAGE}", annotation(defects.UNKNOWN_CLASS)],
    "unlisted-image": [f"images/{defects.UNLISTED}"],
    "rare-class": ["'bolt': 3 boxes"],
    "never-learnt": ["'pin'"],
    "unknown-class": ["'spring'"],
    "similar-classes": ["'gear'"],
    "never-measured": ["'bolt'", "'ge-ar'"],
    "no-boxes": ["[train]", "[val]"],
    "crowd": ["[train]", "[val]"],
}


def look(folder: Path, size: int = 256) -> tuple[dict[str, Dataset], CheckResult]:
    read, failures = read_tolerantly(folder)
    read, _ = without_unions(read)
    splits = with_shared_classes(read)
    return splits, run_checks(splits, failures, {s: d.classes for s, d in read.items()}, DataConfig(size=size))


def found(folder: Path, code: str) -> list[Finding]:
    return [finding for finding in look(folder)[1].findings if finding.code == code]


@pytest.fixture(scope="module")
def checked(planted: Path) -> CheckResult:
    return look(planted)[1]


def test_sound_data_has_no_errors_or_warnings(sound: Path) -> None:
    findings = look(sound)[1].findings
    assert {f.code for f in findings} == {"no-boxes", "crowd"}
    assert {f.kind.severity for f in findings} == {"note"}


@pytest.mark.parametrize("code", PLANTED)
def test_each_defect_is_found_once_with_its_place(checked: CheckResult, code: str) -> None:
    lines = [f"{f.where} | {f.what}" for f in checked.findings if f.code == code]
    assert len(lines) == len(PLANTED[code]), lines
    for place in PLANTED[code]:
        assert sum(place in line for line in lines) == 1, (place, lines)


def test_nothing_else_is_found(checked: CheckResult) -> None:
    assert {finding.code for finding in checked.findings} == set(PLANTED)


def test_worst_comes_first(checked: CheckResult) -> None:
    severities = [kind.severity for kind in by_kind(checked.findings)]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert sum(len(found) for found in by_kind(checked.findings).values()) == len(checked.findings)


def test_duplicates_are_those_hotcoco_finds(planted: Path, tmp_path: Path) -> None:
    import json

    content = json.loads((planted / "instances_train.json").read_text())
    known = {image["id"] for image in content["images"]}
    rows = [a | {"area": 1.0} for a in content["annotations"] if "bbox" in a and a["image_id"] in known]
    # what it finds apart from boxes that are there twice is not asked here
    content["annotations"] = [
        a for a in rows if a["id"] < defects.FIRST_PLANTED or a["id"] in (defects.TWICE, defects.TWICE_AGAIN)
    ]
    (tmp_path / "train.json").write_text(json.dumps(content))
    warnings = hotcoco.COCO(str(tmp_path / "train.json")).healthcheck()["warnings"]
    [theirs] = [w["affected_ids"] for w in warnings if w["code"] == "near_duplicate"]
    assert sorted(theirs) == [defects.TWICE, defects.TWICE_AGAIN]
    [ours] = found(planted, "duplicate-box")
    assert annotation(defects.TWICE_AGAIN) in ours.where


def dataset(folder: Path, counts: list[int], classes: tuple[str, ...] = ("cell",)) -> Dataset:
    """Images with so many separate boxes each."""
    builder = DatasetBuilder("cells [train]", folder, classes)
    for number, count in enumerate(counts):
        small = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(small).resize((64, 64)).save(folder / f"{number}.png")
        builder.add_image(f"{number}.png", 64, 64)
        for k in range(count):
            x, y = 8 * (k % 8), 8 * (k // 8)
            builder.add_box((x, y, x + 7, y + 7), 0, f"{number}:{k}")
    return builder.build()


def test_images_with_far_fewer_boxes(tmp_path: Path) -> None:
    data = dataset(tmp_path, [12, 12, 2, 13, 4, 0, 11])
    result = run_checks({"train": data}, {}, {"train": data.classes}, DataConfig(size=64))
    assert [f.where for f in result.findings if f.code == "few-boxes"] == [str(tmp_path / "2.png")]


def test_split_without_objects(tmp_path: Path) -> None:
    data = dataset(tmp_path, [0, 0])
    result = run_checks({"train": data}, {}, {"train": data.classes}, DataConfig(size=64))
    assert "no-objects" in {f.code for f in result.findings}


def test_split_that_cannot_be_read_does_not_hide_the_other(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(sound / "images")
    (tmp_path / "instances_train.json").write_bytes((sound / "instances_train.json").read_bytes())
    (tmp_path / "instances_val.json").write_text('{"images": [')
    splits, result = look(tmp_path)
    assert list(splits) == ["train"]
    [failure] = [f for f in result.findings if f.code == "unreadable-split"]
    assert failure.split == "val"
    assert "instances_val.json:1:" in failure.where
    assert "unlisted-image" not in {f.code for f in result.findings}  # they are val's


@pytest.mark.parametrize("kind", ["csv", "yolo", "voc"])
def test_other_formats_go_on_after_broken_files(tmp_path: Path, kind: str) -> None:
    images = tmp_path / ("JPEGImages" if kind == "voc" else "train/images" if kind == "yolo" else "")
    images.mkdir(parents=True, exist_ok=True)
    for name in ("good", "bad"):
        small = np.random.default_rng(0).integers(0, 255, (9, 9), dtype=np.uint8)
        Image.fromarray(small).resize((64, 64)).save(images / f"{name}.png")
    if kind == "voc":
        (tmp_path / "Annotations").mkdir()
        xml = "<annotation><object><name>cat</name><bndbox>{}</bndbox></object></annotation>"
        box = "".join(f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), (1, 2, 9, 9), strict=True))
        (tmp_path / "Annotations" / "good.xml").write_text(xml.format(box))
        (tmp_path / "Annotations" / "bad.xml").write_text("<annotation><object>")
        expected = "broken-annotation"
    else:
        (images / "bad.png").write_bytes(b"not an image")
        expected = "broken-image"
    if kind == "csv":
        (tmp_path / "train.csv").write_text("good.png,1,2,9,9,cat\nbad.png,1,2,9,9,cat\n")
    if kind == "yolo":
        labels = tmp_path / "train" / "labels"
        labels.mkdir()
        for name in ("good", "bad"):
            (labels / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    splits, result = look(tmp_path)
    assert [len(d) for d in splits.values()] == [1]
    [failure] = [f for f in result.findings if f.kind.severity == "error"]
    assert failure.code == expected
    assert "bad." in failure.where
    assert not {"unlisted-image", "bad-box", "clipped-box"} & {f.code for f in result.findings}


def test_images_of_other_splits_are_not_called_unlisted(sound: Path) -> None:
    for named in ({"path": sound / "instances_val.json"}, {"path": sound, "train": "val", "val": "val"}):
        read, failures = read_tolerantly(**named)
        own = {split: data.classes for split, data in read.items()}
        result = run_checks(read, failures, own, DataConfig(size=256), whole=False)
        assert "unlisted-image" not in {f.code for f in result.findings}
    with pytest.raises(DataError, match="no split 'nothing'"):
        read_tolerantly(sound, val="nothing")


def test_splits_that_only_join_others_are_left_out(tmp_path: Path) -> None:
    data = dataset(tmp_path, [2, 2, 2, 2])
    splits = {"trainval": data, "val": data.subset([2, 3]), "train": data.subset([0, 1])}
    kept, unions = without_unions(splits)
    assert list(kept) == ["train", "val"]
    assert unions == {"trainval": ["val", "train"]}
    assert list(without_unions({"train": data, "val": data.subset([1])})[0]) == ["train", "val"]


def test_class_that_train_lacks_is_named_with_its_split(tmp_path: Path) -> None:
    data = dataset(tmp_path, [12], ("cell", "other"))
    other = replace(data, labels=np.ones_like(data.labels))
    own = {"train": ("cell",), "test": ("cell", "other")}
    result = run_checks({"train": data, "test": other}, {}, own, DataConfig(size=64))
    [finding] = [f for f in result.findings if f.code == "unknown-class"]
    assert (finding.split, finding.severity) == ("test", "warning")
    assert "'other'" in finding.what


def test_zero_area_boxes_of_bccd(shared_data: Path) -> None:
    if not (shared_data / "bccd" / "BCCD").is_dir():
        pytest.skip("bccd/BCCD is not among the real data sets")
    boxes = found(shared_data / "bccd" / "BCCD", "bad-box")
    assert sorted(Path(f.where.split(":")[0]).stem for f in boxes) == ["BloodImage_00338", "BloodImage_00343"]
    assert all("zero-area" in f.what for f in boxes)


def test_every_kind_of_problem_has_a_finding() -> None:
    assert set(FINDING_OF_PROBLEM) == set(PROBLEM_KINDS)
    assert set(FINDING_OF_PROBLEM.values()) <= set(KINDS)
