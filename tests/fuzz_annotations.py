"""Ways to spoil a file of annotations; each takes a seeded generator and the file, and writes over it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fuzz_datasets import CLASSES

Corruption = Callable[[np.random.Generator, Path], object]
_NUMBERS = (
    "nan",
    "NaN",
    "inf",
    "-Infinity",
    "-7",
    "0",
    "1e30",
    "1e-30",
    "9" * 400,
    "1e999",
    "",
    "x",
    "0x1F",
    "３",
    "1 2",
)
_PATHS = (
    "../../../../etc/passwd",
    "/etc/passwd",
    "C:\\photos\\a.jpg",
    "images\\..\\..\\a.jpg",
    "n" * 300 + ".jpg",
    "d/" * 3000 + "a.jpg",
    "a\0.jpg",
    "\\ud800.jpg",
    "",
    ".",
    "[/red].jpg",
    "-rf.jpg",
    "http://localhost/a.jpg",
    "PHOTO_0.JPG",
)
_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2.5, 10**30, 10**400, float("nan"), float("inf"), 1e30, "", "7", "nan", "\ud800", [], [1], {},
    {"id": 0}, [[[[]]]],
)  # fmt: skip


def one_of(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


# --- text -------------------------------------------------------------------------------------------------------------


def _replace_one(rng: np.random.Generator, file: Path, pattern: str, options: tuple[str, ...]) -> None:
    text = file.read_text()
    matches = list(re.finditer(pattern, text))
    if matches:
        start, end = one_of(rng, matches).span()
        text = text[:start] + one_of(rng, options) + text[end:]
    file.write_text(text)


def number(rng: np.random.Generator, file: Path) -> None:
    _replace_one(rng, file, r"(?<![\w.])-?\d+(\.\d+)?(?![\w.])", _NUMBERS)


def path(rng: np.random.Generator, file: Path) -> None:
    _replace_one(rng, file, r"(images/)?(photo.\d\.(jpg|png)|train\b|photo.\d)", _PATHS)


def class_name(rng: np.random.Generator, file: Path) -> None:
    _replace_one(rng, file, "|".join(CLASSES), ("zebra", "", "ignore", "CAT", " dog ", "\u202ecat", "c" * 5000))


def lines(rng: np.random.Generator, file: Path) -> None:
    """Dropped, doubled or swapped."""
    found = file.read_text().splitlines() or [""]
    first, second = (int(i) for i in rng.integers(len(found), size=2))
    what = rng.integers(3)
    if what == 0:
        del found[first]
    elif what == 1:
        found.insert(first, found[first])
    else:
        found[first], found[second] = found[second], found[first]
    file.write_text("\n".join(found) + "\n")


def quote(rng: np.random.Generator, file: Path) -> None:
    text = file.read_text()
    place = int(rng.integers(len(text) + 1))
    file.write_text(
        text[:place] + one_of(rng, ('"', "'", ",", "\t", "<", "&", "{", ":", "#", "\n", "\\")) + text[place:]
    )


def encoding(rng: np.random.Generator, file: Path) -> None:
    text = file.read_text().replace("cat", "chaté") if rng.random() < 0.3 else file.read_text()
    file.write_bytes(text.encode(one_of(rng, ("utf-16", "utf-16-le", "latin-1", "utf-8-sig", "utf-32"))))


def line_ends(rng: np.random.Generator, file: Path) -> None:
    file.write_text(file.read_text().replace("\n", one_of(rng, ("\r\n", "\r", "\n\n", "\x0b", "\u2028"))), newline="")


def deep(rng: np.random.Generator, file: Path) -> None:
    """Brackets or elements without end, at a number or at the end of a line."""
    opened, closed = ("<a>", "</a>") if file.suffix == ".xml" else ("[", "]")
    depth = 100_000 if file.suffix in (".xml", ".json") else 2000
    text = file.read_text()
    place = one_of(rng, [m.start() for m in re.finditer(r"\d|$", text)])
    file.write_text(text[:place] + opened * depth + (closed * depth if rng.random() < 0.7 else "") + text[place:])


TEXTS: tuple[Corruption, ...] = (number, path, class_name, lines, quote, encoding, line_ends, deep)


# --- trees: JSON and YAML ---------------------------------------------------------------------------------------------


def _load(file: Path) -> Any:
    return json.loads(file.read_text()) if file.suffix == ".json" else yaml.safe_load(file.read_text())


def _save(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content) if file.suffix == ".json" else yaml.safe_dump(content))


def _places(node: Any, depth: int = 0) -> list[tuple[Any, Any, int]]:
    """Every value of a tree, as its container, its key and its depth."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    return [place for key in keys for place in [(node, key, depth), *_places(node[key], depth + 1)]]


def _place(rng: np.random.Generator, content: Any) -> tuple[Any, Any]:
    # By depth first: most values are deep down, and those at the top would hardly ever be met.
    places = _places(content)
    depth = one_of(rng, sorted({place[2] for place in places}))
    node, key, _ = one_of(rng, [place for place in places if place[2] == depth])
    return node, key


def wrong_type(rng: np.random.Generator, file: Path) -> None:
    content = {"": _load(file)}
    node, key = _place(rng, content)
    node[key] = deepcopy(one_of(rng, _VALUES))
    _save(file, content[""])


def lost_key(rng: np.random.Generator, file: Path) -> None:
    content = _load(file)
    node, key = _place(rng, content)
    del node[key]
    _save(file, content)


def swapped(rng: np.random.Generator, file: Path) -> None:
    """Two values of one object or list."""
    content = _load(file)
    node, key = _place(rng, content)
    other = one_of(rng, list(node) if isinstance(node, dict) else range(len(node)))
    node[key], node[other] = node[other], node[key]
    _save(file, content)


def wrong_value(rng: np.random.Generator, file: Path) -> None:
    """A leaf: of an annotation or an image, most likely."""
    content = _load(file)
    node, key, _ = one_of(
        rng, [place for place in _places(content) if not isinstance(place[0][place[1]], (dict, list))]
    )
    node[key] = deepcopy(one_of(rng, _VALUES))
    _save(file, content)


def doubled_key(rng: np.random.Generator, file: Path) -> None:
    """A key twice in one object, the second time with another value; parsers keep the last."""
    content = _load(file)
    nodes = [node for node, key, _ in _places(content) if isinstance(node, dict)]
    node = one_of(rng, nodes)
    key = one_of(rng, list(node))
    value, other = node[key], one_of(rng, ([], "dog", 3, None))
    node[key] = "@"
    _save(file, content)
    here = (json.dumps(key) if file.suffix == ".json" else str(key)) + ": "
    first, second = (json.dumps(v) for v in (value, other))
    between = ", " if file.suffix == ".json" else "\n" + " " * (2 if node is not content else 0)
    pattern = re.escape(here) + "[\"']@[\"']"
    file.write_text(re.sub(pattern, lambda _: here + first + between + here + second, file.read_text()))


def swapped_corners(rng: np.random.Generator, file: Path) -> None:
    content = _load(file)
    boxes = [a["bbox"] for a in content.get("annotations", []) if "bbox" in a]
    if boxes:
        box = one_of(rng, boxes)
        x, y, width, height = box
        box[:] = [x + width, y + height, -width, -height]
    _save(file, content)


TREES: tuple[Corruption, ...] = (wrong_type, lost_key, swapped, wrong_value, doubled_key, swapped_corners)


# --- one format alone -------------------------------------------------------------------------------------------------


def entities(rng: np.random.Generator, file: Path) -> None:
    declared = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(9))
    file.write_text(f'<!DOCTYPE a [<!ENTITY e0 "ha">{declared}]>' + file.read_text().replace("dog", "&e9;"))


def doubled_element(rng: np.random.Generator, file: Path) -> None:
    _replace_line(rng, file, r"(?m)^<(name|xmin|ymax|width|filename|difficult)>.*\n", r"\g<0><\1>33</\1>\n")


def _replace_line(rng: np.random.Generator, file: Path, pattern: str, replacement: str) -> None:
    text = file.read_text()
    matches = list(re.finditer(pattern, text))
    if matches:
        match = one_of(rng, matches)
        text = text[: match.start()] + match.expand(replacement) + text[match.end() :]
    file.write_text(text)


def declared_encoding(rng: np.random.Generator, file: Path) -> None:
    name = one_of(rng, ("klingon", "utf-16", "ascii", "utf-7", "latin-1", "rot13", "hex"))
    file.write_text(f'<?xml version="1.0" encoding="{name}"?>' + file.read_text())


def many_classes(rng: np.random.Generator, file: Path) -> None:
    count = one_of(rng, (10**9, 10**400, -1, "true", 1e30, ".inf", "[2]"))
    file.write_text(re.sub(r"nc: .*\nnames:\n(  .*\n)*", f"nc: {count}\n", file.read_text()))


def aliases(rng: np.random.Generator, file: Path) -> None:
    """Lists of lists of lists, a few lines that are gigabytes when written out; or a list that holds itself."""
    bomb = ["l0: &l0 [ha]", *(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 9))]
    target = one_of(rng, ("train", "val", "names", "path"))
    value = one_of(rng, ("*l8", "&own [*own]", "{*l8 : 1}"))
    text = re.sub(r"names:\n(  .*\n)*", "names: [cat, dog]\n", file.read_text())
    text = re.sub(f"(?m)^{target}:.*\n", "", text)
    file.write_text("\n".join([*bomb, text + f"{target}: {value}\n"]))


SPECIAL: dict[str, tuple[Corruption, ...]] = {
    ".json": TREES,
    ".xml": (entities, doubled_element, declared_encoding),
    ".yaml": (*(kind for kind in TREES if kind is not swapped_corners), many_classes, aliases),
}
