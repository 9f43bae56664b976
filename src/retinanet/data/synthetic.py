"""Synthetic sample dataset: drawings of washers, nuts, screws and gears on a cluttered workbench, as COCO JSON.

Every image has its own random generator, seeded with (seed, index), so image 7 is the same in a set of ten and in a set
of a thousand. Parts are placed front to back: each new part lies under the earlier parts. So the visible region of a
part never changes after the part is placed, its box is exact, and a part that would be mostly hidden can be left out.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from rich.console import Console
from rich.progress import track

from retinanet.data.workbench import Array, ngon, workbench
from retinanet.errors import DataError
from retinanet.files import new_folder

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in half-open pixels
Layer = tuple[NDArray[np.float64], int | None, int]  # outline in the unit disc; mask (None: keep); tone (128: neutral)

CLASSES = ("washer", "nut", "screw", "gear")
CLASS_ODDS = (0.35, 0.27, 0.26, 0.12)  # gears are three times as rare as washers
# Images with a given number of objects: distance of neighboring objects in pixels, unless the size is given; smallest
# distance; largest number, for 8192×8192 pixels; parts that are drawn for an image, and placed repeatedly.
PITCH, LEAST_PITCH, MOST_OBJECTS, STOCK = 40.96, 12, 40_000, 160
LOOKALIKES = ("disc", "plate", "arc", "rod", "shard")  # drawn with the same metal and light, but not objects
EDGE = 0.3  # a pixel belongs to a part if the part covers at least this fraction of the pixel
SUPERSAMPLE = 3
CROWD_IMAGES = (3, 11)  # an image of each split
TINTS = ((186, 190, 196), (150, 158, 172), (205, 170, 88), (192, 122, 84), (70, 70, 76), (168, 62, 54), (62, 104, 150))
# Usual colors of each class, as rows of TINTS. One part in four has another color, so color does not give the class.
USUAL_TINTS = {"washer": (0, 1), "nut": (2,), "screw": (4, 6), "gear": (3, 5)}


class Part(NamedTuple):
    """One drawn part before it is placed: coverage of each pixel, brightness, and shadow."""

    alpha: Array
    tone: Array
    shadow: Array


def extent(mask: NDArray[np.bool_]) -> Box | None:
    """Smallest half-open pixel box around the true pixels; None if there are none."""
    xs, ys = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1) if len(xs) else None


def _rings(*rings: tuple[float, int | None, int]) -> list[Layer]:
    return [(ngon(40, radius), mask, tone) for radius, mask, tone in rings]


def _rect(x0: float, x1: float, half: float) -> NDArray[np.float64]:
    return np.array([(x0, -half), (x1, -half), (x1, half), (x0, half)])


def _shape(kind: str, rng: np.random.Generator) -> list[Layer]:
    tone = int(rng.integers(100, 150))
    match kind:
        case "washer":
            hole = rng.uniform(0.56, 0.7)
            return _rings((1, 255, 128), (hole + 0.09, None, 108), (hole, 0, 128))
        case "nut":
            hole = rng.uniform(0.3, 0.4)
            return [(ngon(6), 255, 116), *_rings((0.82, None, 142), (hole + 0.1, None, 84), (hole, 0, 0))]
        case "gear":
            teeth, root = int(rng.integers(8, 13)), rng.uniform(0.7, 0.78)
            turn = (np.arange(teeth)[:, None] + (-0.3, -0.16, 0.16, 0.3)).ravel() * (2 * math.pi / teeth)
            rim = np.stack([np.cos(turn), np.sin(turn)], axis=1) * np.tile([root, 1.0, 1.0, root], teeth)[:, None]
            return [(rim, 255, 128), *_rings((0.58, None, 98), (0.36, None, 140), (rng.uniform(0.15, 0.24), 0, 0))]
        case "screw":
            head, shaft, neck = rng.uniform(0.34, 0.44), rng.uniform(0.14, 0.2), rng.uniform(-0.66, -0.56)
            cap = np.array([(-1, -0.6), (-0.88, -1), (neck, -1), (neck, 1), (-0.88, 1), (-1, 0.6)]) * (1, head)
            body = np.array([(neck, -1), (0.78, -1), (1, 0), (0.78, 1), (neck, 1)]) * (1, shaft)
            thread = np.array([(0, -shaft), (0.06, -shaft), (0, shaft), (-0.06, shaft)])
            turns: list[Layer] = [(np.add(thread, (x, 0)), None, 76) for x in np.arange(neck + 0.2, 0.8, 0.14)]
            return [(body, 255, 120), (cap, 255, 138), (_rect(-1, -0.84, 0.07), None, 60), *turns]
        case "disc":
            return _rings((1, 255, 128), (rng.uniform(0.6, 0.85), None, tone))
        case "arc":
            arc = ngon(24, turns=rng.uniform(0.24, 0.45))
            return [(np.concatenate([arc, rng.uniform(0.55, 0.75) * arc[::-1]]), 255, 128)]
        case "shard":
            return [(ngon(7) * rng.uniform(0.35, 1.0, (7, 1)), 255, 128)]
        case _:  # a rod or a plate
            half = rng.uniform(0.05, 0.14) if kind == "rod" else rng.uniform(0.25, 0.6)
            return [(_rect(-0.9, 0.9, half), 255, 128), (_rect(-0.8, 0.8, half / 2), None, tone)]


def render_part(kind: str, side: float, rng: np.random.Generator, light: float = 0.0) -> Part:
    """Draw one part, about `side` pixels wide, with a random rotation, lit from the direction `light` (radians)."""
    pad = math.ceil(0.2 * side) + 4  # room for the shadow, so that np.roll never wraps it around
    pixels = math.ceil(side) + 2 * pad
    grid = pixels * SUPERSAMPLE
    mask, tone = Image.new("L", (grid, grid)), Image.new("L", (grid, grid), 128)
    draw_mask, draw_tone = ImageDraw.Draw(mask), ImageDraw.Draw(tone)
    turn = rng.uniform(0, 2 * math.pi)
    spin = np.array([(math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn))]) * (side * SUPERSAMPLE / 2)
    center = grid / 2 + rng.uniform(0, SUPERSAMPLE, 2)
    for outline, value, shade in _shape(kind, rng):
        points = (outline @ spin + center).ravel().tolist()
        if value is not None:
            draw_mask.polygon(points, fill=value)
        draw_tone.polygon(points, fill=shade)
    small = mask.reduce(SUPERSAMPLE)
    alpha = np.asarray(small, np.float32) / np.float32(255)
    towards = np.array([math.sin(light), math.cos(light)])
    away, shift = (tuple(round(v) for v in towards * -far) for far in (1 + 0.02 * side, 1.5 + 0.06 * side))
    bevel = alpha - np.roll(alpha, away, (0, 1))  # positive on edges that face the light
    ramp = np.linspace(-1, 1, pixels, dtype=np.float32)
    sheen = rng.uniform(-0.25, 0.25, 2).astype(np.float32)
    shading = np.asarray(tone.reduce(SUPERSAMPLE), np.float32) / 128 * (1 + sheen[0] * ramp + sheen[1] * ramp[:, None])
    blurred = np.asarray(small.filter(ImageFilter.BoxBlur(1 + 0.04 * side)), np.float32)
    shadow = np.roll(blurred, shift, (0, 1)) * np.float32(rng.uniform(0.35, 0.6) / 255)
    return Part(alpha, shading + np.float32(0.4) * bevel, shadow)


class Scene:
    """An image composed front to back: each part lies under earlier parts, and the background under all of them."""

    def __init__(self, background: Array, light: float = 0.0) -> None:
        self.background, self.light, self.size = background, light, len(background)
        self.colour: Array = np.zeros_like(background)
        self.through: Array = np.ones(background.shape[:2], np.float32)  # light that parts and shadows let through
        self.free: Array = np.ones(background.shape[:2], np.float32)  # fraction of each pixel that no part covers

    def place(self, part: Part, x: int, y: int, tint: Array, min_visible: float = 0.3) -> Box | None:
        """Place a part centered at (x, y) under the others. Returns its visible box, or None if it would be hidden."""
        side = len(part.alpha)
        top, left = y - side // 2, x - side // 2
        y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + side, self.size), min(left + side, self.size)
        if y0 >= y1 or x0 >= x1:
            return None
        there, here = np.s_[y0:y1, x0:x1], np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        alpha = part.alpha[here]
        seen = alpha * self.free[there]
        box = extent(seen >= EDGE)
        if box is None or min(box[2] - box[0], box[3] - box[1]) < 4 or seen.sum() < min_visible * part.alpha.sum():
            return None
        self.colour[there] += (self.through[there] * alpha * part.tone[here])[..., None] * tint
        self.through[there] *= (1 - alpha) * (1 - part.shadow[here])
        self.free[there] *= 1 - alpha
        return box[0] + x0, box[1] + y0, box[2] + x0, box[3] + y0

    def tint(self, rng: np.random.Generator, kind: str = "") -> Array:
        """Random metal or paint color for a kind of part, with some contrast to the background."""
        rows = USUAL_TINTS.get(kind, ()) if rng.random() < 0.75 else ()
        tint = np.array(TINTS[rng.choice(rows or range(len(TINTS)))], np.float32) * np.float32(rng.uniform(0.75, 1.15))
        behind = float(self.background[::8, ::8].mean())
        if abs(float(tint.mean()) - behind) < 28:
            tint += np.float32((behind + 38 if behind < 130 else behind - 38) - float(tint.mean()))
        return tint


def _side(rng: np.random.Generator, kind: str, size: int) -> float:
    least, stretch = (32, 1.35) if kind in ("screw", "rod") else (18, 1.0)  # thin parts must be long to be visible
    return max(float(np.clip(stretch * rng.lognormal(math.log(44), 0.42), least, 110)) * size / 320, 9.0)


def _pile(rng: np.random.Generator, scene: Scene) -> Box | None:
    """Place a heap of washers on an empty scene. Returns one box around all of them."""
    side = max(rng.uniform(18, 26) * scene.size / 320, 9.0)
    middle = rng.uniform(0.3, 0.7, 2) * scene.size
    for _ in range(26):
        x, y = (int(v) for v in rng.normal(middle, 0.75 * side))
        scene.place(render_part("washer", side, rng, scene.light), x, y, scene.tint(rng, "washer"), min_visible=0.1)
    return extent(scene.free <= 1 - EDGE)


def _scatter(rng: np.random.Generator, scene: Scene, kinds: list[str]) -> list[tuple[str, Box]]:
    """Place parts of these kinds at random, some next to an earlier one. Returns the placed parts with their boxes."""
    placed: list[tuple[str, Box]] = []
    for kind in kinds:
        side = _side(rng, kind, scene.size)
        part = render_part(kind, side, rng, scene.light)
        for _ in range(8):
            x, y = (int(v) for v in rng.uniform(0.3 * side, scene.size - 0.3 * side, 2))
            if placed and rng.random() < 0.35:
                x0, y0, x1, y1 = placed[rng.integers(len(placed))][1]
                reach, turn = 0.3 * (side + max(x1 - x0, y1 - y0)), rng.uniform(0, 2 * math.pi)
                x, y = int((x0 + x1) / 2 + reach * math.cos(turn)), int((y0 + y1) / 2 + reach * math.sin(turn))
            if box := scene.place(part, x, y, scene.tint(rng, kind), min_visible=0.5):
                placed.append((kind, box))
                break
    return placed


def _fill(rng: np.random.Generator, scene: Scene, objects: int) -> list[tuple[str, Box]]:
    """Place exactly ``objects`` small parts, each in another cell of a square grid. Returns them with their boxes."""
    across = math.ceil(math.sqrt(objects))
    pitch = scene.size / across
    stock = []
    for kind in rng.choice(CLASSES, STOCK, p=CLASS_ODDS).tolist():
        side = max(pitch * rng.uniform(0.5, 0.8), 9.0)
        stock.append((kind, render_part(kind, side, rng, scene.light), scene.tint(rng, kind)))
    spare = "washer", render_part("washer", max(0.6 * pitch, 9.0), rng, scene.light), scene.tint(rng, "washer")
    placed: list[tuple[str, Box]] = []
    for cell in rng.permutation(across**2)[:objects].tolist():
        middle = (np.array([cell % across, cell // across]) + 0.5) * pitch
        for reach in (0.15, 0.1, 0.0):
            kind, part, tint = stock[rng.integers(STOCK)] if reach else spare
            x, y = (int(v) for v in middle + reach * pitch * rng.uniform(-1, 1, 2))
            if box := scene.place(part, x, y, tint, min_visible=0.5 if reach else 0.0):
                placed.append((kind, box))
                break
    return placed


def _bench(rng: np.random.Generator, size: int, objects: int | None) -> Array:
    """Draw the background. Behind many objects it is drawn at up to 1024 pixels and enlarged, which is faster."""
    if objects is None or size <= 1024:
        return workbench(rng, size)
    small = workbench(rng, 1024)
    channels = [Image.fromarray(small[..., k]).resize((size, size), Image.Resampling.BILINEAR) for k in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def draw_scene(
    seed: int, index: int, size: int, objects: int | None = None
) -> tuple[Image.Image, list[tuple[str, Box]], Box | None]:
    """Draw image `index` of the set `seed`. Returns the image, its parts as (class, box), and the box of any crowd.

    With `objects`, the image holds exactly that many small parts, no crowd and nothing that only looks like a part.
    """
    rng = np.random.default_rng([seed, index])
    scene = Scene(_bench(rng, size, objects), rng.uniform(0, 2 * math.pi))
    crowd = _pile(rng, scene) if index in CROWD_IMAGES and objects is None else None
    # Every 19th image has no parts. The step must not be a multiple of 5: val is every fifth image, so all empty images
    # would be in the same split.
    wanted = 0 if index % 19 == 8 else int(rng.integers(2, 13))
    kinds = rng.choice(CLASSES, wanted, p=CLASS_ODDS).tolist() + rng.choice(LOOKALIKES, rng.integers(2, 8)).tolist()
    rng.shuffle(kinds)
    placed = _scatter(rng, scene, kinds) if objects is None else _fill(rng, scene, objects)
    pixels = scene.colour + scene.through[..., None] * scene.background
    pixels = pixels * np.float32(rng.uniform(0.8, 1.15)) + np.float32(rng.uniform(-12, 12))
    pixels += np.float32(rng.uniform(1, 6)) * rng.standard_normal((size, size, 1), np.float32)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(rng.uniform(0, 0.5)))
    return image, [(kind, box) for kind, box in placed if kind in CLASSES], crowd


def fitting_size(objects: int | None) -> int:
    """Side in pixels of an image in which `objects` parts are about 25 pixels wide; 320 if their number is random."""
    return 320 if objects is None else max(320, math.ceil(PITCH * math.ceil(math.sqrt(objects))))


def write_sample(
    out: Path, images: int = 300, seed: int = 0, size: int | None = None, objects: int | None = None
) -> None:
    """Write the sample dataset as COCO JSON: `instances_train.json`, `instances_val.json` and `images/*.jpg`.

    Every fifth image belongs to val. The same arguments give the same bytes, and each image depends only on its index,
    `seed`, `size` and `objects`.

    Args:
        out: folder to make.
        images: number of images, at least 2.
        seed: seed of all random choices.
        size: side of the images in pixels, at least 64; default: see :func:`fitting_size`.
        objects: number of objects in each image; default: a random number from 0 to 12.

    Raises:
        DataError: an argument is out of range.
        RetinaNetError: `out` is not empty or cannot be written; nothing is left behind.
    """
    if objects is not None and not 1 <= objects <= MOST_OBJECTS:
        raise DataError(f"sample data: objects is {objects}; give 1 to {MOST_OBJECTS}")
    size = fitting_size(objects) if size is None else size
    for name, value, least in (("images", images, 2), ("seed", seed, 0), ("size", size, 64)):
        if value < least:
            raise DataError(f"sample data: {name} is {value}; give at least {least}")
    needed = 0 if objects is None else LEAST_PITCH * math.ceil(math.sqrt(objects))
    if size < needed:
        raise DataError(
            f"sample data: {objects} objects do not fit into {size}×{size} pixels; give a size of at least {needed}, "
            "or fewer objects"
        )
    with new_folder(out) as folder:
        _write(folder, images, seed, size, objects)


def _write(out: Path, images: int, seed: int, size: int, objects: int | None) -> None:
    (out / "images").mkdir(parents=True)
    head = {
        "info": {"description": "retinanet sample data", "version": "1.0", "seed": seed},
        "categories": [{"id": i, "name": name, "supercategory": "part"} for i, name in enumerate(CLASSES, start=1)],
    }
    splits: dict[str, dict[str, Any]] = {name: {**head, "images": [], "annotations": []} for name in ("train", "val")}
    console, annotation = Console(stderr=True), 0
    quiet = (images < 120 and objects is None) or not console.is_terminal  # a short run ends before the bar can be read
    for index in track(range(images), "Drawing", console=console, transient=True, disable=quiet):
        image, parts, crowd = draw_scene(seed, index, size, objects)
        name, content = f"{index:06d}.jpg", splits["val" if index % 5 == 1 else "train"]
        image.save(out / "images" / name, quality=90)
        content["images"].append({"id": index + 1, "file_name": name, "width": size, "height": size})
        found = [(kind, box, 0) for kind, box in parts] + ([("washer", crowd, 1)] if crowd else [])
        for kind, (x0, y0, x1, y1), iscrowd in found:
            annotation += 1
            row = {"id": annotation, "image_id": index + 1, "category_id": CLASSES.index(kind) + 1, "iscrowd": iscrowd}
            content["annotations"].append({**row, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)})
    for split, content in splits.items():
        (out / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
