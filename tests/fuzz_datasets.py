"""A small dataset in eight layouts, and what files in each of them say by a second, naive reading."""

from __future__ import annotations

import csv
import json
import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from retinanet.files import special_file

CLASSES = ("cat", "dog")

# Class, corners rounded to 0.01 pixel, ignored.
Box = tuple[str, tuple[float, ...], bool]
# Boxes of each image, by its file's name.
Content = dict[str, Counter[Box]]


@dataclass(frozen=True)
class ImageSpec:
    name: str
    split: str
    size: tuple[int, int]
    boxes: tuple[tuple[str, tuple[int, ...]], ...]  # class and corners


def image_specs() -> list[ImageSpec]:
    """Six images to train on and three to validate on; one of each shows nothing."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(9):
        width, height = ((64, 48), (48, 64), (60, 60))[i % 3]
        corners = [(rng.integers(0, 15, 2), rng.integers(20, 44, 2)) for _ in range(0 if i in (4, 7) else 1 + i % 3)]
        boxes = tuple((CLASSES[k % 2], tuple(map(int, (*low, *high)))) for k, (low, high) in enumerate(corners))
        name = f"photo {i}.png" if i % 2 else f"photo_{i}.jpg"
        found.append(ImageSpec(name, "train" if i < 6 else "val", (width, height), boxes))
    return found


def draw(spec: ImageSpec, file: Path) -> None:
    """Noise, so that a flipped bit of the file has something to spoil."""
    width, height = spec.size
    seed = int(spec.name.split(".")[0][-1])
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((width, height)).save(file)


def write_coco(root: Path, images: str = "images/{name}", file: str = "instances_{split}.json") -> None:
    for split in ("train", "val"):
        content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
        for i, spec in enumerate(p for p in image_specs() if p.split == split):
            draw(spec, root / images.format(name=spec.name, split=split))
            width, height = spec.size
            content["images"].append({"id": i, "file_name": spec.name, "width": width, "height": height})
            for name, (x1, y1, x2, y2) in spec.boxes:
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                number, category = len(content["annotations"]), CLASSES.index(name)
                content["annotations"].append({"id": number, "image_id": i, "category_id": category, **box})
        content["categories"] = [{"id": k, "name": name} for k, name in enumerate(CLASSES)]
        target = root / file.format(split=split)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content, indent=1))


def write_roboflow_coco(root: Path) -> None:
    write_coco(root, "{split}/{name}", "{split}/_annotations.coco.json")


def _write_xml(spec: ImageSpec, file: Path) -> None:
    width, height = spec.size
    lines = ["<annotation>", f"<filename>{spec.name}</filename>"]
    lines += ["<size>", f"<width>{width}</width>", f"<height>{height}</height>", "<depth>3</depth>", "</size>"]
    for name, corners in spec.boxes:
        lines += ["<object>", f"<name>{name}</name>", "<difficult>0</difficult>", "<bndbox>"]
        lines += [f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)]
        lines += ["</bndbox>", "</object>"]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*lines, "</annotation>"]))


def write_voc(root: Path) -> None:
    for spec in image_specs():
        draw(spec, root / "JPEGImages" / spec.name)
        _write_xml(spec, root / "Annotations" / f"{Path(spec.name).stem}.xml")
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split in ("train", "val"):
        stems = [Path(p.name).stem for p in image_specs() if p.split == split]
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))


def write_voc_folders(root: Path) -> None:
    for spec in image_specs():
        draw(spec, root / spec.split / spec.name)
        _write_xml(spec, root / spec.split / f"{Path(spec.name).stem}.xml")


def _write_label(spec: ImageSpec, file: Path) -> None:
    width, height = spec.size
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, (x1, y1, x2, y2) in spec.boxes:
        values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(f"{CLASSES.index(name)} {' '.join(f'{v:.8f}' for v in values)}\n")
    file.write_text("".join(lines))


def write_yolo(root: Path) -> None:
    for spec in image_specs():
        draw(spec, root / "images" / spec.split / spec.name)
        _write_label(spec, root / "labels" / spec.split / f"{Path(spec.name).stem}.txt")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnc: 2\nnames:\n  0: cat\n  1: dog\n")


def write_yolo_folders(root: Path) -> None:
    for spec in image_specs():
        draw(spec, root / spec.split / "images" / spec.name)
        _write_label(spec, root / spec.split / "labels" / f"{Path(spec.name).stem}.txt")
    (root / "classes.txt").write_text("cat\ndog\n")


def write_csv(root: Path, file: str = "{split}.csv", images: str = "images/", header: bool = False) -> None:
    for split in ("train", "val"):
        rows = ["path,x1,y1,x2,y2,class"] if header else []
        target = root / file.format(split=split)
        for spec in (p for p in image_specs() if p.split == split):
            draw(spec, target.parent / (images + spec.name))
            boxes = [",".join([images + spec.name, *map(str, box), name]) for name, box in spec.boxes]
            rows += boxes or [f"{images}{spec.name},,,,,"]
        target.write_text("".join(f"{row}\n" for row in rows))


def write_csv_folders(root: Path) -> None:
    write_csv(root, "{split}/_annotations.csv", "", header=True)


WRITERS: dict[str, Callable[[Path], None]] = {
    "coco": write_coco,
    "coco-roboflow": write_roboflow_coco,
    "voc": write_voc,
    "voc-folders": write_voc_folders,
    "yolo": write_yolo,
    "yolo-folders": write_yolo_folders,
    "csv": write_csv,
    "csv-folders": write_csv_folders,
}


class Said:
    """What files say: ``boxes`` of each image, and per image how many objects could not be understood (``odd``)."""

    def __init__(self) -> None:
        self.boxes: Content = {}
        self.odd: Counter[str] = Counter()

    def add(self, image: str, name: str, corners: list[Any], ignored: bool = False) -> None:
        values = [float(v) for v in corners]
        if all(map(math.isfinite, values)) and name.strip():
            ignored = ignored or name.strip().lower() == "ignore"
            self.boxes[image][
                box_of("ignore" if name.strip().lower() == "ignore" else name.strip(), values, ignored)
            ] += 1
        else:
            self.odd[image] += 1


def box_of(name: str, corners: list[float], ignored: bool) -> Box:
    return name, tuple(round(float(np.float32(v)), 2) for v in corners), ignored


def said_by(layout: str, root: Path) -> Said | None:
    """A naive reading of all files of a layout; ``None`` where it does not succeed."""
    reading = {"coco": _coco, "voc": _voc, "yolo": _yolo, "csv": _csv}[layout.split("-")[0]]
    said = Said()
    if any(special_file(path) not in (None, "a folder") for path in root.rglob("*")):
        return None
    try:
        for split in ("train", "val"):
            reading(said, root, split)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration, ET.ParseError, yaml.YAMLError):
        return None
    return said


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ; of equal ones, parsers keep the last without a word."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key appears twice")
    return dict(pairs)


def _coco(said: Said, root: Path, split: str) -> None:
    file = root / f"instances_{split}.json"
    file = file if file.exists() else root / split / "_annotations.coco.json"
    content = json.loads(file.read_bytes(), object_pairs_hook=_once)
    names = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
    said.boxes |= {name: Counter() for name in names.values()}
    classes = {category["id"]: category["name"] for category in content["categories"]}
    for annotation in content["annotations"]:
        image = names[annotation["image_id"]]
        try:
            x, y, width, height = annotation["bbox"]
            corners = [x, y, x + width, y + height]
            said.add(image, classes[annotation["category_id"]], corners, annotation.get("iscrowd") == 1)
        except (KeyError, TypeError, ValueError, OverflowError):
            said.odd[image] += 1


def _voc(said: Said, root: Path, split: str) -> None:
    folder, images, listed = root / split, root / split, root / "ImageSets" / "Main" / f"{split}.txt"
    if listed.exists():
        folder, images = root / "Annotations", root / "JPEGImages"
        files = [folder / f"{line.strip()}.xml" for line in listed.read_text().splitlines() if line.strip()]
    else:
        files = sorted(folder.glob("*.xml"))
    for file in files:
        tree = ET.fromstring(file.read_bytes())
        names = [tree.findtext("filename") or "", *(f"{file.stem}{suffix}" for suffix in (".jpg", ".png"))]
        image = next(name for name in names if name and (images / name).is_file())
        said.boxes[image] = Counter()
        for part in tree.findall("object"):
            try:
                corners = [float(part.findtext(f"bndbox/{c}", "?")) for c in ("xmin", "ymin", "xmax", "ymax")]
                said.add(image, part.findtext("name", ""), corners, part.findtext("difficult") == "1")
            except ValueError:
                said.odd[image] += 1


def _yolo(said: Said, root: Path, split: str) -> None:
    if (root / "data.yaml").exists():
        text = (root / "data.yaml").read_text()
        _once([(line.split(":")[0].strip(), None) for line in text.splitlines()])
        names: dict[int, str] = yaml.safe_load(text)["names"]
        folders = root / "images" / split, root / "labels" / split
    else:
        names = dict(enumerate((root / "classes.txt").read_text().splitlines()))
        folders = root / split / "images", root / split / "labels"
    for image in folders[0].iterdir():
        said.boxes[image.name] = Counter()
        with Image.open(image) as opened:
            width, height = opened.size[:: -1 if opened.getexif().get(0x0112) in (5, 6, 7, 8) else 1]
        for line in (folders[1] / f"{image.stem}.txt").read_text().splitlines():
            try:
                number, x, y, w, h = map(float, line.split())
                corners = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
                said.add(image.name, str(names[int(number)]), corners)
            except (ValueError, KeyError, OverflowError):
                said.odd[image.name] += bool(line.strip())


def _csv(said: Said, root: Path, split: str) -> None:
    file = root / f"{split}.csv"
    file = file if file.exists() else root / split / "_annotations.csv"
    with file.open(newline="", encoding="utf-8-sig") as handle:
        rows = [row for row in csv.reader(handle) if any(cell.strip() for cell in row) and row[0] != "path"]
    for path, *rest in rows:
        image = Path(path.strip()).name
        said.boxes.setdefault(image, Counter())
        if not any(rest):
            continue
        try:
            said.add(image, rest[4].strip() if len(rest) > 4 else "", rest[:4])
        except ValueError:
            said.odd[image] += 1
