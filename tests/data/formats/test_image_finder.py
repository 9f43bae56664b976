"""Images are found by one order of rules, and what was done is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from retinanet.data.dataset import DatasetBuilder
from retinanet.data.formats.image_finder import ImageFinder, image_folders
from retinanet.errors import DataError
from retinanet.read_options import ReadOptions


def images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(folder / name, "jpeg")


def finder(root: Path, options: ReadOptions | None = None) -> tuple[ImageFinder, DatasetBuilder]:
    builder = DatasetBuilder("toy", root, ["box"], options=options or ReadOptions())
    return ImageFinder(builder, root / "train.json", image_folders(root / "train.json", "train")), builder


@pytest.mark.parametrize(
    ("written", "stored", "rule"),
    [
        ("images/a.jpg", "images/a.jpg", None),
        ("a.jpg", "images/train/a.jpg", None),
        ("../../media/upload/1/a.jpg", "images/a.jpg", "by the end of its path"),
        ("..\\..\\media\\a.jpg", "images/a.jpg", "by the end of its path"),
        ("C:\\Users\\me\\a.jpg", "images/a.jpg", "by the end of its path"),
        ("/content/data/day1/a.jpg", "images/day1/a.jpg", "by the end of its path"),
        ("https://labels.example.org/data/a.jpg", "images/a.jpg", "by the end of its path"),
        ("https://labels.example.org/a.jpg?token=12", "images/a.jpg", "by the name in its address"),
        ("/data/local-files/?d=day1%2Fa.jpg", "photos/day1/a.jpg", "by the name in its address"),
        ("a.JPG", "images/a.jpg", "by its name in another case"),
        ("my%20photo.jpg", "images/my photo.jpg", "by its name, percent-decoded"),
        ("cb0618f0-a.jpg", "images/a.jpg", "by its name without the prefix of an upload"),
        ("a", "images/a.jpg", "by its name without a suffix"),
        ("a.png", "images/a.jpg", "by its name with another suffix"),
        ("a\u0308.jpg", "\u00e4.jpg", "by its name in another case"),  # as macOS writes an umlaut
    ],
)
def test_rules(tmp_path: Path, written: str, stored: str, rule: str | None) -> None:
    images(tmp_path, stored, "images/other.jpg")
    search, builder = finder(tmp_path)
    found = search.find(written, "train.json: image 0")
    assert found is not None
    assert (builder.root / found) == tmp_path / stored
    if rule is None:
        assert not builder.problems
    else:
        [problem] = builder.problems
        assert problem.code == "image-found"
        assert problem.message.startswith(rule)


def test_one_note_counts_the_images_of_a_rule(tmp_path: Path) -> None:
    images(tmp_path, "images/a.jpg", "images/b.jpg")
    search, builder = finder(tmp_path)
    for name in ("x/a.jpg", "x/b.jpg"):
        search.find(name, name)
    assert [(problem.code, problem.count) for problem in builder.problems] == [("image-found", 2)]


def test_the_longest_equal_end_of_the_path_decides(tmp_path: Path) -> None:
    images(tmp_path, "images/day1/a.jpg", "images/day2/a.jpg")
    search, _ = finder(tmp_path)
    assert search.find("/mnt/disk/day2/a.jpg", "here") == "images/day2/a.jpg"


def test_a_name_of_several_files_is_not_guessed(tmp_path: Path) -> None:
    images(tmp_path, "photos/day1/a.jpg", "photos/day2/a.jpg")
    search, _ = finder(tmp_path)
    assert search.find("a.jpg", "here") is None
    with pytest.raises(DataError, match=r"1 have the name of several files"):
        search.check()


def test_the_named_folder_is_searched_first(tmp_path: Path) -> None:
    images(tmp_path, "data/a.jpg", "elsewhere/deep/a.jpg")
    search, builder = finder(tmp_path / "data", ReadOptions(images=str(tmp_path / "elsewhere" / "deep")))
    assert (builder.root / (search.find("a.jpg", "here") or "")) == tmp_path / "elsewhere" / "deep" / "a.jpg"


def test_a_named_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data\.images .*gone: no such folder"):
        finder(tmp_path, ReadOptions(images=str(tmp_path / "gone")))


def test_missing_images_are_one_line_with_the_folders_and_the_option(tmp_path: Path) -> None:
    images(tmp_path, "images/a.jpg")
    search, builder = finder(tmp_path)
    assert search.find("a.jpg", "here") == "images/a.jpg"
    builder.add_image("images/a.jpg", 4, 3)
    for number in range(3):
        assert search.find(f"gone{number}.jpg", f"line {number}") is None
    with pytest.raises(DataError) as caught:
        search.check()
    message = str(caught.value)
    assert "3 of 4 images not found, first 'gone0.jpg' (line 0)" in message
    assert str(tmp_path / "images") in message
    assert "--data.images DIR" in message
    assert "--data.skip-broken" in message
    assert "\n" not in message


def test_missing_images_are_left_out_on_request_but_never_all(tmp_path: Path) -> None:
    images(tmp_path, "images/a.jpg")
    search, builder = finder(tmp_path, ReadOptions(skip_broken=True))
    assert search.find("gone.jpg", "here") is None
    with pytest.raises(DataError, match="1 of 1 images not found"):
        search.check()
    builder.add_image("images/a.jpg", 4, 3)
    search.check()
    assert [problem.code for problem in builder.problems] == ["skipped-image"]


def test_images_lie_beside_a_folder_of_annotations(tmp_path: Path) -> None:
    images(tmp_path, "images/a.jpg", "annotations/train.csv")
    assert tmp_path / "images" in image_folders(tmp_path / "annotations" / "train.csv")
    assert tmp_path / "images" not in image_folders(tmp_path / "other" / "train.csv")


def test_files_that_are_no_images_are_never_taken_from_outside(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "data").mkdir()
    search, _ = finder(tmp_path / "data")
    assert search.find("../secret.txt", "here") is None
    assert search.find(str(tmp_path / "secret.txt"), "here") is None
