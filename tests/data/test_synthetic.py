"""The sample dataset: reproducible files, true boxes, and a folder that is never overwritten."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retinanet.data.synthetic import CLASSES, CROWD_IMAGES, EDGE, Scene, draw_scene, render_part, write_sample
from retinanet.errors import DataError, RetinaNetError

SIZE = 128


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _load(folder: Path, split: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"instances_{split}.json").read_text())
    return content


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "new" / "folder"
    write_sample(out, images=100, size=SIZE)
    return out


def test_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_sample(tmp_path / name, images=6, seed=seed, size=96)
    a, b, c = (_files(tmp_path / name) for name in "abc")
    assert a == b
    assert len(a) == 8
    assert all(a[name] != c[name] for name in a)


def test_an_image_does_not_depend_on_the_number_of_images(hundred: Path, tmp_path: Path) -> None:
    write_sample(tmp_path, images=14, size=SIZE)
    few, many = _files(tmp_path), _files(hundred)
    assert all(many[name] == content for name, content in few.items() if name.endswith(".jpg"))
    for split in ("train", "val"):
        part, whole = _load(tmp_path, split), _load(hundred, split)
        assert whole["images"][: len(part["images"])] == part["images"]
        assert whole["annotations"][: len(part["annotations"])] == part["annotations"]


def test_annotations_are_complete_and_valid(hundred: Path) -> None:
    contents = [_load(hundred, split) for split in ("train", "val")]
    assert [len(content["images"]) for content in contents] == [80, 20]
    images = [image for content in contents for image in content["images"]]
    rows = [row for content in contents for row in content["annotations"]]
    assert len({image["id"] for image in images}) == 100
    assert len({row["id"] for row in rows}) == len(rows)
    for image in images:
        with Image.open(hundred / "images" / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"]) == (SIZE, SIZE)
    for content in contents:
        assert set(content) == {"info", "images", "annotations", "categories"}
        names = {category["id"]: category["name"] for category in content["categories"]}
        assert tuple(names.values()) == CLASSES
        assert {names[row["category_id"]] for row in content["annotations"]} == set(CLASSES)
        assert {row["image_id"] for row in content["annotations"]} < {image["id"] for image in content["images"]}
        assert sum(row["iscrowd"] for row in content["annotations"]) == 1
    for row in rows:
        x, y, w, h = row["bbox"]
        assert 0 <= x < x + w <= SIZE
        assert 0 <= y < y + h <= SIZE
        assert min(w, h) >= 4
        assert row["area"] == w * h


def test_counts_and_imbalance(hundred: Path) -> None:
    rows = [row for split in ("train", "val") for row in _load(hundred, split)["annotations"] if not row["iscrowd"]]
    per_image = Counter(row["image_id"] for row in rows)
    assert 3 <= 100 - len(per_image) <= 8  # images without an object
    assert min(per_image.values()) >= 2
    assert max(per_image.values()) <= 15
    per_class = Counter(row["category_id"] for row in rows).most_common()
    assert 3 < per_class[0][1] / per_class[-1][1] < 8
    assert CLASSES[per_class[-1][0] - 1] == "gear"


def test_sides_at_the_default_size() -> None:
    boxes = [box for index in range(20) for _, box in draw_scene(0, index, 320)[1]]
    longest = [max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes]
    assert 30 < np.median(longest) < 50
    assert max(longest) <= 116


@pytest.mark.parametrize("kind", CLASSES)
def test_box_is_where_the_background_is_hidden(kind: str) -> None:
    # What a part hides is what stays the same on a black and on a white scene: no mask of the drawing code is used.
    # Its shadow dims the scene as well, so it is taken away first; beside and half outside the image count too.
    rng = np.random.default_rng(7)
    for side, x, y in ((14, 50, 50), (33.4, 64, 40), (70, 60, 60), (40, 5, 60), (40, 118, 122)):
        part = render_part(kind, side, rng)
        part = part._replace(shadow=np.zeros_like(part.shadow))
        images = []
        for level in (0, 255):
            scene = Scene(np.full((SIZE, SIZE, 3), level, np.float32))
            box = scene.place(part, x, y, np.array([200, 120, 60], np.float32))
            images.append(scene.colour + scene.through[..., None] * scene.background)
        hidden = 1 - (images[1] - images[0])[..., 0] / 255
        ys, xs = np.nonzero(hidden > EDGE - 1e-6)
        assert box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert max(box[2] - box[0], box[3] - box[1]) <= side + 2


def test_a_covered_part_has_its_visible_box_or_is_not_laid() -> None:
    rng = np.random.default_rng(0)
    tint = np.array([200, 200, 200], np.float32)
    disc, screw = render_part("disc", 60, rng), render_part("screw", 60, rng)
    scene = Scene(np.zeros((SIZE, SIZE, 3), np.float32))
    assert scene.place(disc, 64, 64, tint)
    before = scene.colour.copy()
    assert scene.place(render_part("gear", 30, rng), 64, 64, tint) is None
    assert scene.place(render_part("gear", 30, rng), 400, 64, tint) is None
    assert np.array_equal(scene.colour, before)
    alone = Scene(np.zeros((SIZE, SIZE, 3), np.float32)).place(screw, 94, 64, tint)
    covered = scene.place(screw, 94, 64, tint)
    assert alone is not None
    assert covered is not None
    ys, xs = np.nonzero(np.abs(scene.colour - before).max(axis=2) > EDGE * 100)  # what the screw changed in the image
    assert np.abs(np.subtract(covered, (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))).max() <= 1
    assert covered[0] > alone[0]


def test_crowd_box_holds_a_pile() -> None:
    for index in CROWD_IMAGES:
        _, _, crowd = draw_scene(0, index, 320)
        assert crowd is not None
        assert min(crowd[2] - crowd[0], crowd[3] - crowd[1]) > 40
        assert max(crowd[2] - crowd[0], crowd[3] - crowd[1]) < 160
    assert draw_scene(0, 0, 64)[2] is None


@pytest.mark.parametrize("size", [64, 65, 200])
def test_other_sizes(tmp_path: Path, size: int) -> None:
    write_sample(tmp_path, images=2, size=size)
    assert len(_load(tmp_path, "train")["images"]) == len(_load(tmp_path, "val")["images"]) == 1


@pytest.mark.parametrize(("wrong", "least"), [({"images": 1}, 2), ({"size": 63}, 64), ({"seed": -1}, 0)])
def test_refuses_values_out_of_range(tmp_path: Path, wrong: dict[str, int], least: int) -> None:
    with pytest.raises(DataError, match=f"{next(iter(wrong))} is .*at least {least}"):
        write_sample(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_refuses_a_folder_in_use_and_a_file(tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    for out in (tmp_path, kept):
        with pytest.raises(RetinaNetError, match="not an empty folder") as caught:
            write_sample(out, images=2)
        assert "\n" not in str(caught.value)
        assert str(out) in str(caught.value)
    assert _files(tmp_path) == {"kept.txt": b"mine"}
    with pytest.raises(RetinaNetError, match="cannot be written"):
        write_sample(kept / "below", images=2)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dumps", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path / "out", images=2, size=64)
    assert list(tmp_path.iterdir()) == []


def test_quiet_when_not_on_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_sample(tmp_path, images=130, size=64)
    assert capfd.readouterr() == ("", "")


def test_a_dense_scene_holds_exactly_the_given_number_of_small_objects(tmp_path: Path) -> None:
    write_sample(tmp_path / "dense", images=2, objects=700)
    for split in ("train", "val"):
        content = json.loads((tmp_path / "dense" / f"instances_{split}.json").read_text(encoding="utf-8"))
        sides = np.array([row["bbox"][2:] for row in content["annotations"]])
        assert len(sides) == 700
        assert not any(row["iscrowd"] for row in content["annotations"])
        assert {row["category_id"] for row in content["annotations"]} == {1, 2, 3, 4}
        assert sides.min() >= 4
        assert sides.max() < 60
        size = content["images"][0]["width"]
        assert size == 1106  # 41 pixels for each of 27 columns
        boxes = np.array([row["bbox"] for row in content["annotations"]])
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= size).all()


def test_dense_scenes_fit_every_size(tmp_path: Path) -> None:
    for objects, size in ((1, 64), (28, 64), (100, 120), (1000, 400)):
        image, parts, crowd = draw_scene(0, 0, size, objects)
        assert image.size == (size, size)
        assert len(parts) == objects
        assert crowd is None


@pytest.mark.parametrize(
    ("objects", "size", "message"),
    [
        (0, None, "objects is 0; give 1 to 40000"),
        (50_000, None, "objects is 50000; give 1 to 40000"),
        (10_000, 320, "10000 objects do not fit into 320×320 pixels; give a size of at least 1200"),
    ],
)
def test_too_many_objects_are_refused(tmp_path: Path, objects: int, size: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_sample(tmp_path / "dense", images=2, size=size, objects=objects)
