"""COCO JSON: ``instances_{split}.json``, Roboflow's ``{split}/_annotations.coco.json``, or one file of any name."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.data.box_meaning import Meaning
from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder
from retinanet.data.formats.image_finder import ImageFinder, image_folders
from retinanet.data.formats.reading import by_split, is_ignore, is_split_name, listing, read_json, short, split_of
from retinanet.data.formats.shapes import (
    Box,
    box_around,
    box_of_mapping,
    box_of_rotated,
    box_of_segmentation,
    to_integer,
    to_number,
    to_numbers,
)
from retinanet.errors import DataError
from retinanet.read_options import ReadOptions

_DEFAULT_OPTIONS = ReadOptions()
_ROBOFLOW_FILE = "_annotations.coco.json"
DETECTIONS = "detections.json"  # the output of retinanet detect
_OTHER_TASKS = ("captions_", "panoptic_", "stuff_", "image_info_")
_LARGEST_SIDE = 2**31 - 1

# Keys of the name of an image, the usual one first. A script may leave out file_name, and keep the address.
_NAME_KEYS = ("file_name", "filename", "fileName", "coco_url", "flickr_url", "path", "url")


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


def read(source: Path, name: str, options: ReadOptions = _DEFAULT_OPTIONS, tolerant: bool = False) -> Dataset:
    """Read one COCO annotation file.

    Args:
        source: the JSON file.
        name: name of the dataset in messages.
        options: where the images are, and which boxes and images are left out.
        tolerant: see :class:`DatasetBuilder`.

    Raises:
        DataError: the file does not hold COCO instances, or images are missing.
    """
    content = _load(source)
    images, annotations = _section(content, "images", source), _section(content, "annotations", source)
    files = [_file_name(image, f"{source}: image {i}") for i, image in enumerate(images)]
    position: dict[Any, int] = {}
    for i, image in enumerate(images):
        if position.setdefault(_key(image.get("id")), i) != i or image.get("id") is None:
            raise DataError(
                f"{source}: image {files[i]} has id {short(image.get('id'))}, which is missing or used twice; "
                "give each image its own id"
            )

    classes = _Classes.of(_section(content, "categories", source), annotations, source)
    builder = DatasetBuilder(name, source.parent, classes.names, classes.ids, tolerant, options, Meaning("xywh"))
    for note in classes.notes:
        builder.report("heading-category", str(source), note)
    numbered = all(type(_key(image["id"])) is int and abs(_key(image["id"])) < 2**63 for image in images)
    if not numbered:
        builder.report("image-ids", str(source), "image ids are not whole numbers")

    # Annotations come in any order. Sort them by image once, then walk through images and annotations together.
    owner = np.array([_owner(a, position, source, i) for i, a in enumerate(annotations)], dtype=np.int64)
    orphans = np.flatnonzero(owner < 0).tolist()
    if orphans and images:
        _refuse_orphans(builder, [(i, annotations[i]) for i in orphans], len(annotations), source)
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(len(images) + 1)).tolist()

    finder = ImageFinder(builder, source, image_folders(source, split_of(source)))
    finder.prefer_common_folder(files)
    for i, image in enumerate(images):
        if (file := finder.find(files[i], f"{source}: image {i}", source.name == DETECTIONS)) is None:
            continue
        listed = _side(image.get("width")), _side(image.get("height"))
        size = listed if all(listed) else finder.size(file, f"{source}: image {i}")
        if size is None:
            continue
        builder.add_image(file, *size, _key(image["id"]) if numbered else None)
        for row in order[starts[i] : starts[i + 1]].tolist():
            annotation = annotations[row]
            where = f"{source}: annotation {_id(annotation, row)} (image {files[i]})"
            _add(builder, annotation, classes, where)
    finder.check()
    return builder.build()


@dataclass(frozen=True)
class _Classes:
    """Categories in the order of their ids. ``class_of`` maps an id to its name, or to ``None`` for ignore regions."""

    names: list[str]
    ids: list[int]
    class_of: dict[int, str | None]
    notes: list[str]

    @classmethod
    def of(cls, categories: list[dict[str, Any]], annotations: list[dict[str, Any]], source: Path) -> _Classes:
        for category in categories:
            name = category.get("name")
            named = type(name) in (int, float) or (isinstance(name, str) and name.strip())
            if not named or to_integer(category.get("id")) is None:
                raise DataError(f"{source}: category {short(category)}; it needs a 'name' and a whole-number 'id'")
        categories = [{**c, "id": to_integer(c["id"]), "name": str(c["name"]).strip()} for c in categories]
        categories.sort(key=lambda c: int(c["id"]))
        used = {_key(a.get("category_id")) for a in annotations if isinstance(a, dict)}
        result = cls([], [], {}, [])
        for category in categories:
            if category["id"] in result.class_of:
                raise DataError(f"{source}: category id {short(category['id'])} is used twice; ids must differ")
            name = category["name"]
            if is_ignore(name):
                result.class_of[category["id"]] = None
            elif category["id"] not in used and _is_heading(category, categories):
                result.notes.append(f"category {name!r} is only the heading of the others")
            else:
                result.class_of[category["id"]] = name
                result.names.append(name)
                result.ids.append(category["id"])
        return result


def _is_heading(category: dict[str, Any], categories: list[dict[str, Any]]) -> bool:
    # Roboflow writes the dataset's name as category 0 and as the supercategory of the real categories.
    others = [c for c in categories if c is not category]
    return category["id"] == 0 and bool(others) and all(c.get("supercategory") == category["name"] for c in others)


def _add(builder: DatasetBuilder, annotation: dict[str, Any], classes: _Classes, where: str) -> None:
    category = _key(annotation.get("category_id"))
    if category not in classes.class_of:
        problem = f"category_id {short(annotation.get('category_id'))} is not among the categories"
        error = f'{where}: {problem}; add it to "categories" or remove the annotation'
        builder.refuse("unknown-class-id", where, problem, error)
        return
    if (box := _box(builder, annotation, where)) is None:
        return
    for flag in ("iscrowd", "ignore"):
        if annotation.get(flag, 0) not in (0, 1, "0", "1", None):
            builder.report("invalid-flag", where, f"{flag} is {short(annotation[flag])}, neither 0 nor 1")
    class_name = classes.class_of[category]
    builder.add_box(
        box,
        NO_CLASS if class_name is None else builder.labels[class_name],
        where,
        ignore=class_name is None or annotation.get("iscrowd") in (1, "1") or annotation.get("ignore") in (1, "1"),
        area=to_number(annotation.get("area")),
        score=to_number(annotation.get("score")),
        derived=not annotation.get("bbox") or _is_empty(to_numbers(annotation["bbox"])),
    )


def _box(builder: DatasetBuilder, annotation: dict[str, Any], where: str) -> Box | None:
    """Corners of an object, from its bbox or else from its segmentation; ``None`` if it has neither."""
    bbox = annotation.get("bbox")
    numbers = to_numbers(bbox)
    if numbers is not None and any(isinstance(v, str) for v in (bbox if isinstance(bbox, list) else [bbox])):
        builder.report("text-box", where, "bbox is written as text")
    if numbers is None and (box := box_of_mapping(bbox)) is not None:
        builder.report("shape-box", where, "bbox has keys")
        return box
    drawn = box_of_segmentation(annotation.get("segmentation")) if not bbox or _is_empty(numbers) else None
    if numbers is not None and len(numbers) == 4 and drawn is None:
        x, y, width, height = numbers
        attributes = annotation.get("attributes")
        if rotation := to_number(attributes.get("rotation")) if isinstance(attributes, dict) else None:  # CVAT
            builder.report("shape-box", where, "bbox has a rotation")
            return box_of_rotated(x + width / 2, y + height / 2, width, height, math.radians(rotation))
        return x, y, x + width, y + height
    if numbers is not None and len(numbers) == 5:  # center, sides and an angle in degrees, as detectron2 has it
        builder.report("shape-box", where, "bbox has an angle")
        x, y, width, height, angle = numbers
        return box_of_rotated(x, y, width, height, math.radians(angle))
    if numbers is not None and len(numbers) == 8:
        builder.report("shape-box", where, "bbox has four corners")
        return box_around(numbers)
    if drawn is not None:
        mask = isinstance(annotation["segmentation"], dict)
        builder.report("shape-box", where, "a mask without a bbox" if mask else "a polygon without a bbox")
        return drawn
    builder.report("malformed-box", where, "bbox is missing" if bbox is None else "bbox is not 4 numbers")
    return None


def _is_empty(numbers: Sequence[float] | None) -> bool:
    """Whether a bbox holds only zeros, as scripts write it for objects that have only a segmentation."""
    return numbers is not None and len(numbers) == 4 and not any(numbers)


def _key(value: Any) -> Any:
    """Key of an id: a whole number, also if it is written as ``1.0`` or as text, else the text."""
    number = to_integer(value)
    return str(value) if number is None else number


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
    number = to_number(value)
    return int(number) if number is not None and 1 <= number <= _LARGEST_SIDE else 0


def _owner(annotation: Any, position: dict[Any, int], source: Path, index: int) -> int:
    if not isinstance(annotation, dict):
        raise DataError(f"{source}: annotation number {index} is not an object {{…}}; export the file again")
    return position.get(_key(annotation.get("image_id")), -1)


def _file_name(image: Any, where: str) -> str:
    for key in _NAME_KEYS if isinstance(image, dict) else ():
        if isinstance(image.get(key), str) and image[key].strip():
            return str(image[key])
    raise DataError(f"{where}: has no 'file_name'; add the image's path")


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
