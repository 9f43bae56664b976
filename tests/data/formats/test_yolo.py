from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from retinanet.data.formats.open_dataset import read_all, read_split
from retinanet.data.formats.train_val import read_train_val
from retinanet.errors import DataError


def write_image(file: Path, size: tuple[int, int] = (40, 20)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(file)


def text(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def roboflow(root: Path, yaml: str, labels: str = "1 0.5 0.5 0.5 0.5\n") -> Path:
    for split in ("train", "valid"):
        write_image(root / split / "images" / "a.jpg")
        write_image(root / split / "images" / "b.png")
        text(root / split / "labels" / "a.txt", labels)
    text(root / "data.yaml", yaml)
    return root


YAML = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: ['cat', 'dog']\n"


def test_roboflow(tmp_path: Path) -> None:
    # A neighbour's folder that the path literally leads to must not be taken.
    write_image(tmp_path / "train" / "images" / "wrong.jpg")
    root = roboflow(tmp_path / "data", YAML)
    train, val, notes = read_train_val(root)
    assert not notes
    assert [Path(f).name for f in train.files] == ["a.jpg", "b.png"]
    assert train.classes == ("cat", "dog")
    assert train.boxes.tolist() == [[10, 5, 30, 15]]
    assert train.labels.tolist() == [1]
    assert train.offsets.tolist() == [0, 1, 1]
    assert val.path(0) == root / "valid" / "images" / "a.jpg"
    with pytest.raises(DataError, match="no such folder"):
        read_split(root, "test")
    assert len(read_split(root / "data.yaml", "val")) == 2


@pytest.mark.parametrize(
    "yaml",
    [
        "path: .\ntrain: train/images\nval: valid/images\nnames: {0: cat, 1: dog}\n",
        "path: /nowhere\ntrain: [train/images]\nval: valid\nnames:\n  0: cat\n  1: dog\n",
        "path: ../data\ntrain: train/images\nval: valid/images\nnames: [cat, dog]\n",
    ],
)
def test_yaml_variants(tmp_path: Path, yaml: str) -> None:
    root = roboflow(tmp_path / "data", yaml)
    train, val, _ = read_train_val(root)
    assert (len(train), len(val)) == (2, 2)
    assert (len(train.boxes), len(val.boxes)) == (1, 1)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: [\n", r"data\.yaml:2: not valid YAML"),
        ("train: x\nnames: 3\n", "'names' is 3; give a list"),
        ("train: x\nnames: [yes, no]\n", "in quotes"),
        ("train: {a: 1}\nnames: [a]\n", "must be text"),
        ("train: nowhere\nnames: [a]\n", "no such folder"),
    ],
)
def test_bad_yaml(tmp_path: Path, yaml: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_split(roboflow(tmp_path, yaml), "train")


def test_list_of_images(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    write_image(tmp_path / "images" / "b.jpg")
    text(tmp_path / "labels" / "a.txt", "0 0.5 0.5 1 1")
    text(tmp_path / "train.txt", f"./images/a.jpg\n\n{tmp_path}/images/b.jpg\n./images/a.jpg\n")
    text(tmp_path / "data.yaml", "train: train.txt\nnames: [cat]\n")
    data = read_split(tmp_path, "train")
    assert list(data.files) == ["images/a.jpg", "images/b.jpg"]
    assert data.boxes.tolist() == [[0, 0, 40, 20]]
    assert len(read_split(tmp_path / "train.txt", "train")) == 2


@pytest.mark.parametrize("named", [True, False])
def test_without_yaml(tmp_path: Path, named: bool) -> None:
    for split, line in (("train", "0 0.5 0.5 1 1"), ("val", "2.0 0.5 0.5 1 1")):
        write_image(tmp_path / "images" / split / "a.jpg")
        text(tmp_path / "labels" / split / "a.txt", line)
    if named:
        text(tmp_path / "classes.txt", "cat\ndog\nignore\n\n")
    train, val, _ = read_train_val(tmp_path)
    assert train.classes == val.classes == (("cat", "dog") if named else ("0", "1", "2"))
    assert val.ignore.tolist() == [named]


def test_flat_folders(tmp_path: Path) -> None:
    write_image(tmp_path / "all" / "images" / "a.jpg")
    text(tmp_path / "all" / "labels" / "a.txt", "0 0.5 0.5 1 1")
    write_image(tmp_path / "beside" / "a.jpg")
    text(tmp_path / "beside" / "a.txt", "0 0.5 0.5 1 1")
    for name in ("all", "beside"):
        assert len(read_split(tmp_path / name, "train").boxes) == 1
    # The image folder of a split, given by itself, finds the labels and the names.
    text(tmp_path / "all" / "classes.txt", "cat")
    assert read_split(tmp_path / "all" / "images", "train").classes == ("cat",)


def test_polygons_and_malformed_lines(tmp_path: Path) -> None:
    lines = ["0 0.1 0.2 0.5 0.2 0.3 0.9", "0 0.5 0.5 1", "cat 0.5 0.5 1 1", "0 0.5 0.5 1 1 3", "0.5 0.5 0.5 1 1", ""]
    lines += ["0 0.5 nan 1 1", "0 0.5 0.5 0 1", "0 0.5 0.5 0.5 0.5"]
    root = roboflow(tmp_path, YAML, "\n".join(lines))
    data = read_split(root, "train")
    assert data.boxes[0].tolist() == pytest.approx([4, 4, 20, 18])
    assert data.boxes[1:].tolist() == [[0, 0, 40, 20], [10, 5, 30, 15]]  # the first line ends with a track's number
    file = root / "train" / "labels" / "a.txt"
    places = [f"{file}:{line}" for line in (1, 2, 3, 5, 7, 8)]  # line 8 is found when all boxes are known
    assert [p.where for p in data.problems if p.where in places] == places
    assert data.problems[0].code == "shape-box"
    image = str(root / "train/images/b.png")
    assert f"{image}: no label file, treated as an image without objects" in map(str, data.problems)


def test_pose_lines_keep_only_the_box(tmp_path: Path) -> None:
    root = roboflow(tmp_path, YAML + "kpt_shape: [1, 2]\n", "0 0.5 0.5 0.5 0.5 0.9 0.9")
    assert read_split(root, "train").boxes.tolist() == [[10, 5, 30, 15]]


@pytest.mark.parametrize("number", ["2", "-1"])
def test_class_number_without_a_name(tmp_path: Path, number: str) -> None:
    root = roboflow(tmp_path, YAML, f"0 0.5 0.5 1 1\n{number} 0.5 0.5 1 1")
    with pytest.raises(DataError, match=rf"a\.txt:2: class number {number} has no name"):
        read_split(root, "train")


def test_no_label_file_at_all_is_said(tmp_path: Path) -> None:
    root = roboflow(tmp_path, YAML)
    (root / "train" / "labels" / "a.txt").unlink()
    data = read_split(root, "train")
    assert len(data.boxes) == 0
    assert "no image has a label file" in data.problems[0].message


def test_broken_images_are_named_together(tmp_path: Path) -> None:
    root = roboflow(tmp_path, YAML)
    for i in range(9):
        text(root / "train" / "images" / f"broken{i}.jpg", "no image")
    with pytest.raises(DataError) as caught:
        read_split(root, "train")
    message = str(caught.value)
    assert message.startswith("5 or more images cannot be read: ")
    assert message.count("not a readable image") == 3
    assert message.count("\n") == 0


def test_link_loops_end(tmp_path: Path) -> None:
    root = roboflow(tmp_path, YAML)
    (root / "train" / "images" / "loop").symlink_to(root)
    assert len(read_split(root, "train")) == 2


def test_splits_of_other_names_that_lead_to_their_images(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "night" / "a.jpg")
    write_image(tmp_path / "images" / "day" / "b.jpg")
    text(tmp_path / "labels" / "night" / "a.txt", "0 0.5 0.5 0.5 0.5\n")
    text(tmp_path / "day.txt", "./images/day/b.jpg\n")
    text(tmp_path / "data.yaml", "night: images/night\nday: day.txt\nlicense: images/mit\nroboflow: x\nnames: [cat]\n")
    assert list(read_all(tmp_path)) == ["night", "day"]
    assert list(read_split(tmp_path, "day").files) == ["images/day/b.jpg"]


def test_images_without_labels_and_labels_without_images_are_reported(tmp_path: Path) -> None:
    root = roboflow(tmp_path, YAML)
    labels = root / "train" / "labels"
    text(labels / "gone.txt", "0 0.5 0.5 0.5 0.5\n")
    text(labels / "gone empty.txt", "")
    text(labels / "classes.txt", "cat\ndog\n")
    assert [str(problem) for problem in read_split(root, "train").problems] == [
        f"{root / 'train/images/b.png'}: no label file, treated as an image without objects",
        f"{labels / 'gone empty.txt'}: label file without an image, left out",
        f"{labels / 'gone.txt'}: label file without an image, left out",
    ]


def test_suffix_of_labels_in_capitals(tmp_path: Path) -> None:
    root = roboflow(tmp_path, YAML)
    (root / "train" / "labels" / "a.txt").rename(root / "train" / "labels" / "a.TXT")
    assert len(read_split(root, "train").boxes) == 1


@pytest.mark.parametrize("names", ["", "nc: 2\n"])
def test_classes_without_names_are_reported(tmp_path: Path, names: str) -> None:
    root = roboflow(tmp_path, "train: train/images\nval: valid/images\n" + names)
    problems = [str(problem) for problem in read_split(root, "train").problems]
    assert f"{root / 'data.yaml'}: no file names the classes, named by their numbers" in problems


@pytest.mark.parametrize("count", ["1000000000", "9" * 400, "-1", "true", "1e30", "[2]"])
def test_impossible_numbers_of_classes_are_refused_at_once(tmp_path: Path, count: str) -> None:
    root = roboflow(tmp_path, f"train: train/images\nval: valid/images\nnc: {count}\n")
    with pytest.raises(DataError, match=r"data\.yaml: 'nc' is .*; give the number"):
        read_split(root, "train")


@pytest.mark.parametrize("key", ["train: elsewhere", "names: [cow]"])
def test_a_key_of_the_yaml_file_that_appears_twice_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match=r"data\.yaml:1: not valid YAML \(two keys"):
        read_split(roboflow(tmp_path, YAML + key + "\n"), "train")


def test_lists_of_lists_of_lists_are_refused_in_a_short_line(tmp_path: Path) -> None:
    lists = ["l0: &l0 [ha]", *(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 9))]
    root = roboflow(tmp_path, "\n".join([*lists, "train: *l8", "names: [cat, dog]"]))
    with pytest.raises(DataError, match="paths of a split must be text") as caught:
        read_split(root, "train")
    assert len(str(caught.value)) < 300 + len(str(root))
