"""Ways to spoil a file of a dataset; each takes a seeded generator and the file, and writes over it."""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

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


def _one(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


# --- any file ---------------------------------------------------------------------------------------------------------


def truncate(rng: np.random.Generator, file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(rng.integers(len(data) + 1))])


def flip_bits(rng: np.random.Generator, file: Path) -> None:
    data = bytearray(file.read_bytes() or b"\n")
    end = len(data) if rng.random() < 0.5 else min(len(data), 200)  # half of the times in the header
    for _ in range(int(rng.integers(1, 6))):
        data[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
    file.write_bytes(data)


def empty(rng: np.random.Generator, file: Path) -> None:
    file.write_bytes(b"")


def random_bytes(rng: np.random.Generator, file: Path) -> None:
    file.write_bytes(rng.bytes(int(rng.integers(1, 3000))))


def zeros_in_the_middle(rng: np.random.Generator, file: Path) -> None:
    data = bytearray(file.read_bytes())
    start = int(rng.integers(len(data) + 1))
    data[start : start + 512] = bytes(len(data[start : start + 512]))
    file.write_bytes(data)


def missing(rng: np.random.Generator, file: Path) -> None:
    file.unlink()


def directory(rng: np.random.Generator, file: Path) -> None:
    file.unlink()
    file.mkdir()


def pipe(rng: np.random.Generator, file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def link(rng: np.random.Generator, file: Path) -> None:
    """To nothing, to itself, or to a device that never ends."""
    file.unlink()
    file.symlink_to(_one(rng, ("nowhere.bin", file.name, "/dev/zero", "/proc/self/mem")))


def harmless_link(rng: np.random.Generator, file: Path) -> None:
    moved = file.with_name(f".{file.name}")
    file.rename(moved)
    (file.symlink_to if rng.random() < 0.5 else file.hardlink_to)(moved)


def loop_of_folders(rng: np.random.Generator, file: Path) -> None:
    (file.parent / "again").symlink_to(_one(rng, (".", "..", "again")))


def litter(rng: np.random.Generator, file: Path) -> None:
    for name in ("Thumbs.db", f"._{file.name}", ".DS_Store"):
        (file.parent / name).write_bytes(rng.bytes(100))


def other_case(rng: np.random.Generator, file: Path) -> None:
    file.rename(file.with_suffix(file.suffix.upper()))


def not_utf8_name(rng: np.random.Generator, file: Path) -> None:
    os.rename(file, os.fsencode(file.parent) + b"/caf\xe9" + os.fsencode(file.suffix))


ANYWHERE: tuple[Corruption, ...] = (
    truncate, flip_bits, empty, random_bytes, zeros_in_the_middle, missing, directory, pipe, link, harmless_link,
    loop_of_folders, litter, other_case, not_utf8_name,
)  # fmt: skip

# --- images -----------------------------------------------------------------------------------------------------------


def cut_near_the_end(rng: np.random.Generator, file: Path) -> None:
    file.write_bytes(file.read_bytes()[: -int(rng.integers(1, 40))])


def one_pixel(rng: np.random.Generator, file: Path) -> None:
    Image.new("RGB", (1, 1)).save(file)


def other_size(rng: np.random.Generator, file: Path) -> None:
    Image.new("RGB", (int(rng.integers(1, 90)), int(rng.integers(1, 90)))).save(file)


def bomb(rng: np.random.Generator, file: Path) -> None:
    """A PNG whose header promises far more than its few bytes hold."""
    size = _one(rng, ((100_000, 100_000), (100_000, 1), (1, 100_000), (0, 0), (2**31 - 1, 1), (13_000, 13_000)))
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(400))) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def other_mode(rng: np.random.Generator, file: Path) -> None:
    """The same image in another kind of file, most often under the wrong suffix."""
    image = Image.open(file)
    kind, mode = _one(
        rng,
        (("PNG", "I;16"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "1"), ("JPEG", "CMYK"), ("JPEG", "L"), ("GIF", "P"),
         ("TIFF", "F"), ("TIFF", "I;16"), ("BMP", "RGB"), ("WEBP", "RGBA"), ("PPM", "RGB")),
    )  # fmt: skip
    changed = image.convert("L").convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    more: dict[str, Any] = {"save_all": True, "append_images": [changed.copy()]} if kind == "GIF" else {}
    changed.save(file, kind, **more)


def exif(rng: np.random.Generator, file: Path) -> None:
    image = Image.open(file)
    tags = image.getexif()
    tags[0x0112] = _one(rng, (0, 3, 6, 8, 9))
    data = bytearray(tags.tobytes())
    if rng.random() < 0.5:
        data[int(rng.integers(6, len(data)))] ^= 0xFF
    image.save(file, exif=bytes(data))


def web_page(rng: np.random.Generator, file: Path) -> None:
    file.write_text("<!doctype html><title>404</title>")


IMAGES: tuple[Corruption, ...] = (
    cut_near_the_end, one_pixel, other_size, bomb, other_mode, exif, web_page
)  # fmt: skip

# --- text -------------------------------------------------------------------------------------------------------------


def _replace_one(rng: np.random.Generator, file: Path, pattern: str, options: tuple[str, ...]) -> None:
    text = file.read_text()
    matches = list(re.finditer(pattern, text))
    if matches:
        start, end = _one(rng, matches).span()
        text = text[:start] + _one(rng, options) + text[end:]
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
    file.write_text(text[:place] + _one(rng, ('"', "'", ",", "\t", "<", "&", "{", ":", "#", "\n", "\\")) + text[place:])


def encoding(rng: np.random.Generator, file: Path) -> None:
    text = file.read_text().replace("cat", "chaté") if rng.random() < 0.3 else file.read_text()
    file.write_bytes(text.encode(_one(rng, ("utf-16", "utf-16-le", "latin-1", "utf-8-sig", "utf-32"))))


def line_ends(rng: np.random.Generator, file: Path) -> None:
    file.write_text(file.read_text().replace("\n", _one(rng, ("\r\n", "\r", "\n\n", "\x0b", "\u2028"))), newline="")


def deep(rng: np.random.Generator, file: Path) -> None:
    """Brackets or elements without end, at a number or at the end of a line."""
    opened, closed = ("<a>", "</a>") if file.suffix == ".xml" else ("[", "]")
    depth = 100_000 if file.suffix in (".xml", ".json") else 2000
    text = file.read_text()
    place = _one(rng, [m.start() for m in re.finditer(r"\d|$", text)])
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
    depth = _one(rng, sorted({place[2] for place in places}))
    node, key, _ = _one(rng, [place for place in places if place[2] == depth])
    return node, key


def wrong_type(rng: np.random.Generator, file: Path) -> None:
    content = {"": _load(file)}
    node, key = _place(rng, content)
    node[key] = deepcopy(_one(rng, _VALUES))
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
    other = _one(rng, list(node) if isinstance(node, dict) else range(len(node)))
    node[key], node[other] = node[other], node[key]
    _save(file, content)


def wrong_value(rng: np.random.Generator, file: Path) -> None:
    """A leaf: of an annotation or an image, most likely."""
    content = _load(file)
    node, key, _ = _one(rng, [place for place in _places(content) if not isinstance(place[0][place[1]], (dict, list))])
    node[key] = deepcopy(_one(rng, _VALUES))
    _save(file, content)


def doubled_key(rng: np.random.Generator, file: Path) -> None:
    """A key twice in one object, the second time with another value; parsers keep the last."""
    content = _load(file)
    nodes = [node for node, key, _ in _places(content) if isinstance(node, dict)]
    node = _one(rng, nodes)
    key = _one(rng, list(node))
    value, other = node[key], _one(rng, ([], "dog", 3, None))
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
        box = _one(rng, boxes)
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
        match = _one(rng, matches)
        text = text[: match.start()] + match.expand(replacement) + text[match.end() :]
    file.write_text(text)


def declared_encoding(rng: np.random.Generator, file: Path) -> None:
    name = _one(rng, ("klingon", "utf-16", "ascii", "utf-7", "latin-1", "rot13", "hex"))
    file.write_text(f'<?xml version="1.0" encoding="{name}"?>' + file.read_text())


def many_classes(rng: np.random.Generator, file: Path) -> None:
    count = _one(rng, (10**9, 10**400, -1, "true", 1e30, ".inf", "[2]"))
    file.write_text(re.sub(r"nc: .*\nnames:\n(  .*\n)*", f"nc: {count}\n", file.read_text()))


def aliases(rng: np.random.Generator, file: Path) -> None:
    """Lists of lists of lists, a few lines that are gigabytes when written out; or a list that holds itself."""
    bomb = ["l0: &l0 [ha]", *(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 9))]
    target = _one(rng, ("train", "val", "names", "path"))
    value = _one(rng, ("*l8", "&own [*own]", "{*l8 : 1}"))
    text = re.sub(r"names:\n(  .*\n)*", "names: [cat, dog]\n", file.read_text())
    text = re.sub(f"(?m)^{target}:.*\n", "", text)
    file.write_text("\n".join([*bomb, text + f"{target}: {value}\n"]))


SPECIAL: dict[str, tuple[Corruption, ...]] = {
    ".json": TREES,
    ".xml": (entities, doubled_element, declared_encoding),
    ".yaml": (*(kind for kind in TREES if kind is not swapped_corners), many_classes, aliases),
}


def kinds_of(suffixes: set[str]) -> list[tuple[str, Corruption]]:
    """What can be done to a dataset of files with these suffixes, each with ``image`` or the suffix it is for."""
    found: list[tuple[str, Corruption]] = [("image", kind) for kind in (*ANYWHERE, *IMAGES)]
    found += [("text", kind) for kind in (*ANYWHERE, *TEXTS)]
    found += [(suffix, kind) for suffix in sorted(suffixes) for kind in SPECIAL.get(suffix, ())]
    return found
