"""COCO JSON: ``instances_{split}.json``, Roboflow's ``{split}/_annotations.coco.json``, or one file of any name."""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.data.box_meaning import Meaning
from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder
from retinanet.data.formats.reading import (
    SPLIT_ALIASES,
    SizeReader,
    by_split,
    inside_path,
    is_ignore,
    is_split_name,
    listing,
    read_json,
    short,
    split_of,
)
from retinanet.errors import DataError

_ROBOFLOW_FILE = "_annotations.coco.json"
_OTHER_TASKS = ("captions_", "panoptic_", "stuff_", "image_info_")
_LARGEST_SIDE = 2**31 - 1
_PROBED_IMAGES = 8


def find(root: Path) -> dict[str, Path]:
    """Find the annotation file of each split of a COCO dataset. Empty if ``root`` has another format.

    Args:
        root: the dataset's folder, or one JSON file.
    """
    if not root.is_dir():
        return {split_of(root): root} if root.suffix.lower() == ".json" else {}
    folders, files = listing(root)
    roboflow = {folder.name: folder / _ROBOFLOW_FILE for folder in folders if (folder / _ROBOFLOW_FILE).is_file()}
    if roboflow:
        return roboflow
    for folder in folders:
        if folder.name.lower() in ("annotations", "annotation"):
            files = files + listing(folder)[1]
    files = [f for f in files if f.suffix.lower() == ".json" and not f.name.startswith(_OTHER_TASKS)]
    instances = [f for f in files if f.name.startswith("instances_")]
    coco = [f for f in files if _looks_like_coco(f)]
    # A val.json beside a train.json belongs to the dataset even if it is broken; reading it raises the error.
    if found := by_split(instances or [f for f in files if coco and (f in coco or is_split_name(f.stem))]):
        return found
    for folder in filter(lambda f: is_split_name(f.name), folders):
        own = [f for f in listing(folder)[1] if f.suffix.lower() == ".json"]
        if len(own) == 1 and _looks_like_coco(own[0]):
            found[folder.name] = own[0]
    return found


def read(source: Path, name: str, tolerant: bool = False) -> Dataset:
    """Read one COCO annotation file.

    Args:
        source: the JSON file.
        name: name of the dataset in messages.
        tolerant: see :class:`DatasetBuilder`.

    Raises:
        DataError: the file does not hold COCO instances, or its images are in none of the usual folders.
    """
    content = _load(source)
    images, annotations = _section(content, "images", source), _section(content, "annotations", source)
    files = [_file_name(image, f"{source}: image {i}") for i, image in enumerate(images)]
    position: dict[str, int] = {}
    for i, image in enumerate(images):
        if position.setdefault(str(image.get("id")), i) != i or image.get("id") is None:
            raise DataError(
                f"{source}: image {files[i]} has id {short(image.get('id'))}, which is missing or used twice; "
                "give each image its own id"
            )

    classes = _Classes.of(_section(content, "categories", source), annotations, source)
    folder = _image_folder(source, files) if files else source.parent
    builder = DatasetBuilder(name, folder, classes.names, classes.ids, tolerant, meaning=Meaning("xywh"))
    for note in classes.notes:
        builder.report("heading-category", str(source), note)
    numbered = all(type(image["id"]) is int and abs(image["id"]) < 2**63 for image in images)
    if not numbered:
        builder.report("image-ids", str(source), "image ids are not whole numbers")

    # Annotations come in any order. Sort them by image once, then walk through images and annotations together.
    owner = np.array([_owner(a, position, source, i) for i, a in enumerate(annotations)], dtype=np.int64)
    orphans = np.flatnonzero(owner < 0).tolist()
    if orphans and images:
        _refuse_orphans(builder, [(i, annotations[i]) for i in orphans], len(annotations), source)
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(len(images) + 1)).tolist()

    sizes = SizeReader(builder)
    for i, image in enumerate(images):
        width, height = _side(image.get("width")), _side(image.get("height"))
        if not (width and height):
            if (found := sizes.read(builder.root / files[i], f"{source}: image {i}")) is None:
                continue
            width, height = found
        builder.add_image(files[i], width, height, image["id"] if numbered else None)
        for row in order[starts[i] : starts[i + 1]].tolist():
            annotation = annotations[row]
            where = f"{source}: annotation {_id(annotation, row)} (image {files[i]})"
            _add(builder, annotation, classes, where)
    sizes.check()
    return builder.build()


@dataclass(frozen=True)
class _Classes:
    """Categories in the order of their ids. ``labels`` maps each id to its label, or to ``None`` for ignore regions."""

    names: list[str]
    ids: list[int]
    labels: dict[str, int | None]
    notes: list[str]

    @classmethod
    def of(cls, categories: list[dict[str, Any]], annotations: list[dict[str, Any]], source: Path) -> _Classes:
        for category in categories:
            name = category.get("name")
            if not (isinstance(name, str) and name.strip()) or type(category.get("id")) is not int:
                raise DataError(f"{source}: category {short(category)}; it needs a text 'name' and a whole-number 'id'")
        categories = sorted(categories, key=lambda c: int(c["id"]))
        used = {str(a.get("category_id")) for a in annotations if isinstance(a, dict)}
        result = cls([], [], {}, [])
        for category in categories:
            if str(category["id"]) in result.labels:
                raise DataError(f"{source}: category id {short(category['id'])} is used twice; ids must differ")
            name = category["name"].strip()
            if is_ignore(name):
                result.labels[str(category["id"])] = None
            elif str(category["id"]) not in used and _is_heading(category, categories):
                result.notes.append(f"category {name!r} is only the heading of the others")
            else:
                result.labels[str(category["id"])] = len(result.names)
                result.names.append(name)
                result.ids.append(category["id"])
        return result


def _is_heading(category: dict[str, Any], categories: list[dict[str, Any]]) -> bool:
    # Roboflow writes the dataset's name as category 0 and as the supercategory of the real categories.
    others = [c for c in categories if c is not category]
    return category["id"] == 0 and bool(others) and all(c.get("supercategory") == category["name"] for c in others)


def _add(builder: DatasetBuilder, annotation: dict[str, Any], classes: _Classes, where: str) -> None:
    category = str(annotation.get("category_id"))
    if category not in classes.labels:
        problem = f"category_id {short(annotation.get('category_id'))} is not among the categories"
        error = f'{where}: {problem}; add it to "categories" or remove the annotation'
        builder.refuse("unknown-class-id", where, problem, error)
        return
    bbox = annotation.get("bbox")
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))):
        builder.report("malformed-box", where, "bbox is missing" if bbox is None else "bbox is not 4 numbers")
        return
    x, y, width, height = (_to_float(v) for v in bbox)
    area = annotation.get("area")
    label = classes.labels[category]
    for flag in ("iscrowd", "ignore"):
        if annotation.get(flag, 0) not in (0, 1, "0", "1", None):
            builder.report("invalid-flag", where, f"{flag} is {short(annotation[flag])}, neither 0 nor 1")
    builder.add_box(
        (x, y, x + width, y + height),
        NO_CLASS if label is None else label,
        where,
        ignore=label is None or annotation.get("iscrowd") in (1, "1") or annotation.get("ignore") in (1, "1"),
        area=_to_float(area) if area is not None and _is_number(area) else None,
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _to_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer with hundreds of digits
        return math.inf


def _id(annotation: dict[str, Any], row: int) -> str:
    number = annotation.get("id", row)
    return str(number) if type(number) is int and abs(number) < 10**20 else short(number)


def _refuse_orphans(
    builder: DatasetBuilder, orphans: list[tuple[int, dict[str, Any]]], total: int, source: Path
) -> None:
    row, first = orphans[0]
    error = (
        f"{source}: {len(orphans)} of {total} annotations belong to images that are not listed, first "
        f"annotation {_id(first, row)} with image_id {short(first.get('image_id'))}; add those images to "
        '"images" or remove the annotations'
    )
    for row, orphan in orphans:
        problem = f"annotation of an image that is not listed (image_id {short(orphan.get('image_id'))})"
        builder.refuse("annotation-without-image", f"{source}: annotation {_id(orphan, row)}", problem, error)


def _side(value: Any) -> int:
    return int(value) if _is_number(value) and 1 <= value <= _LARGEST_SIDE else 0


def _owner(annotation: Any, position: dict[str, int], source: Path, index: int) -> int:
    if not isinstance(annotation, dict):
        raise DataError(f"{source}: annotation number {index} is not an object {{…}}; export the file again")
    return position.get(str(annotation.get("image_id")), -1)


def _file_name(image: Any, where: str) -> str:
    if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
        raise DataError(f"{where}: has no 'file_name'; add the image's path")
    return inside_path(image["file_name"], where)


def _image_folder(source: Path, files: list[str]) -> Path:
    """Folder that contains most of a sample of the images."""
    here = source.parent
    bases = [here, here.parent] if here.name.lower().startswith("annotation") else [here]
    split = split_of(source)
    splits = [split, *next((group for group in SPLIT_ALIASES.values() if split.lower() in group), ())] if split else []
    names = [*(f"images/{s}" for s in splits), "images", *splits, "data", "JPEGImages", ""]
    folders = [folder for base in bases for name in names if os.path.isdir(folder := base / name)]
    probes = [files[i * len(files) // _PROBED_IMAGES] for i in range(_PROBED_IMAGES)]
    hits = [sum(os.path.isfile(folder / probe) for probe in probes) for folder in folders]
    if not any(hits):
        tried = ", ".join(dict.fromkeys(map(str, folders)))
        raise DataError(
            f"{source}: images such as {short(files[0])} are in none of {tried}; put them in {here / 'images'}"
        )
    return folders[hits.index(max(hits))]


def _looks_like_coco(file: Path) -> bool:
    # Keys come in any order and the file may be large, so search its bytes instead of parsing it.
    try:
        with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(key) >= 0 for key in (b'"images"', b'"annotations"', b'"categories"'))
    except (OSError, ValueError):  # unreadable, or empty
        return False


def _load(source: Path) -> dict[str, Any]:
    content = read_json(source, "COCO annotations")
    if isinstance(content, list):
        raise DataError(
            f"{source}: looks like a list of detections, not of annotations; "
            "give the file with 'images', 'annotations' and 'categories'"
        )
    if not isinstance(content, dict):
        raise DataError(f"{source}: not COCO; expected an object with 'images', 'annotations' and 'categories'")
    return content


def _section(content: dict[str, Any], key: str, source: Path) -> list[dict[str, Any]]:
    section = content.get(key)
    if not isinstance(section, list):
        keys = ", ".join(map(short, list(content)[:6])) or "nothing"
        raise DataError(f"{source}: not COCO annotations: no list {key!r} (found {keys}); export as COCO instances")
    if key == "categories" and not all(isinstance(c, dict) for c in section):
        raise DataError(f"{source}: a category is not an object {{…}}; export the file again")
    return section
