"""Datasets that hypothesis draws, with odd names of files and classes, and what was read of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder

ODD_NAMES = ["cat", "big dog", "naïve 日本", "a,b", 'say "x"', "it's", "<b>&amp;</b>", "7", "null", "yes", "# no", "-1"]
ODD_NAMES += ["a;b;c;d;e;f", "tab\u00a0less", "{x}: [y]", "x\\y", "ignored", "path", "%s", "cat 1"]
ODD_STEMS = ["a", "b", "photo 1", "ä'\"&<", "x,y;z", "a.b", "images", "-2", "100%", "#1"]


@dataclass(frozen=True)
class Box:
    label: int
    corners: tuple[float, float, float, float]
    ignore: bool
    area: float | None


@dataclass(frozen=True)
class Drawn:
    name: str
    number: int
    size: tuple[int, int]
    boxes: list[Box]


@st.composite
def drawings(draw: st.DrawFn, classes: int) -> list[Drawn]:
    folders = st.sampled_from(["", "", "sub/", "sub/images/", "other/deep/", "train/"])
    stems, suffixes = st.sampled_from(ODD_STEMS), st.sampled_from([".png", ".jpg"])
    names = draw(st.lists(st.builds("{}{}{}".format, folders, stems, suffixes), min_size=1, max_size=4, unique=True))
    numbers = draw(st.lists(st.integers(0, 10**12), min_size=len(names), max_size=len(names), unique=True))
    return [Drawn(name, number, *draw(contents(classes))) for name, number in zip(names, numbers, strict=True)]


@st.composite
def contents(draw: st.DrawFn, classes: int) -> tuple[tuple[int, int], list[Box]]:
    width, height = draw(st.tuples(st.integers(1, 700), st.integers(1, 50)))
    boxes = []
    for _ in range(draw(st.integers(0, 3))):
        (x1, x2), (y1, y2) = draw(st.tuples(sides(width), sides(height)))
        label = draw(st.integers(NO_CLASS, classes - 1))
        area = draw(st.none() | st.floats(0.5, 1e5, width=32))
        boxes.append(Box(label, (x1, y1, x2, y2), label == NO_CLASS or draw(st.booleans()), area))
    return (width, height), boxes


def sides(length: int) -> st.SearchStrategy[list[float]]:
    number = st.floats(0, length, width=32).map(lambda v: 0.0 if v < 1e-3 else v) | st.integers(0, length).map(float)
    return st.lists(number, min_size=2, max_size=2, unique=True).map(sorted)


@st.composite
def datasets(draw: st.DrawFn) -> tuple[list[str], list[int], dict[str, list[Drawn]]]:
    letters = st.characters(exclude_categories=["C", "Z"])
    names = st.sampled_from(ODD_NAMES) | st.text(letters, min_size=1, max_size=6)
    classes = draw(st.lists(names.filter(lambda n: n.lower() != "ignore"), min_size=1, max_size=4, unique=True))
    ids = sorted(draw(st.sets(st.integers(0, 10**6), min_size=len(classes), max_size=len(classes))))
    splits = draw(
        st.lists(st.sampled_from(["train", "val", "test", "night shift"]), min_size=1, max_size=3, unique=True)
    )
    return classes, ids, {split: draw(drawings(len(classes))) for split in splits}


def build(root: Path, classes: list[str], ids: list[int], splits: dict[str, list[Drawn]]) -> dict[str, Dataset]:
    """The datasets with images on disk, all with different bytes."""
    result, count = {}, 0
    for split, images in splits.items():
        builder = DatasetBuilder(split, root / split, classes, ids)
        for image in images:
            path = root / split / image.name
            path.parent.mkdir(parents=True, exist_ok=True)
            count += 1
            Image.new("L", image.size, count).save(path, "png")
            builder.add_image(image.name, *image.size, image.number)
            for box in image.boxes:
                builder.add_box(box.corners, box.label, image.name, ignore=box.ignore, area=box.area)
        result[split] = builder.build()
        assert not result[split].problems
    return result


def by_image(data: Dataset) -> dict[bytes, dict[str, Any]]:
    """What is known of each image, by the bytes of its file."""
    found = {}
    for i in data:
        rows = data.rows(i)
        found[data.path(i).read_bytes()] = {
            "file": data.files[i],
            "id": int(data.image_ids[i]),
            "size": tuple(data.sizes[i].tolist()),
            "boxes": data.boxes[rows],
            "areas": data.areas[rows],
            "labels": data.labels[rows].tolist(),
            "ignore": data.ignore[rows].tolist(),
        }
    return found


def short_name(split: str, data: Dataset, file: str) -> str:
    """The name without the folders that only say which split it is."""
    own = [p for p in (f"{split}/", "images/") if all(f.startswith(p) for f in data.files)]
    return file.removeprefix(own[0]) if own else file


CROWDED = (
    ["b", "a"],
    [3, 9],
    {
        "train": [
            Drawn("a.jpg", 7, (40, 30), [Box(1, (0.1, 0.2, 12.3, 30), True, 5.5), Box(-1, (1, 2, 3, 4), True, None)]),
            Drawn("a.png", 6, (40, 30), [Box(0, (1 / 3, 2 / 3, 39.9, 29.9), False, None)]),
        ],
        "val": [Drawn("a.jpg", 7, (9, 9), []), Drawn("sub/a.jpg", 8, (9, 9), [])],
    },
)
# images/train/a.jpg is train's a.jpg, not val's train/a.jpg
MISLEADING = (
    ["a"],
    [1],
    {"train": [Drawn("a.jpg", 1, (9, 9), [])], "val": [Drawn("train/a.jpg", 1, (9, 9), [])]},
)
