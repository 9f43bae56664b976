"""The memory of decoded images only saves time: whatever happens to its file, the same images are found broken."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from retinanet.data import image_memory
from retinanet.data.dataset import Dataset
from retinanet.data.formats.open_dataset import read_split
from retinanet.data.image_memory import Decoded, ImageMemory, Stamp
from retinanet.data.verify import verify_images
from retinanet.errors import DataError
from retinanet.inspection.duplicates import find_pairs, scan


@pytest.fixture
def dataset(parts: Path, tmp_path: Path) -> Dataset:
    """Nine images that have not changed for an hour."""
    shutil.copytree(parts, tmp_path / "parts")
    dataset = read_split(tmp_path / "parts", "train")
    for index in dataset:
        age(dataset.path(index), 3600)
    return dataset


def age(path: Path, seconds: float) -> None:
    now = path.stat().st_mtime
    os.utime(path, (now - seconds, now - seconds))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def taken(dataset: Dataset, folder: Path, trusted: bool = True) -> int:
    """Verify all images; return how many were not decoded."""
    memory = ImageMemory(trusted, folder)
    verify_images(dataset, memory=memory)
    return memory.used


def test_unchanged_images_are_decoded_once(dataset: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [taken(dataset, folder) for _ in range(2)] == [0, 9]
    monkeypatch.setattr("retinanet.data.verify.read_image", None)  # would fail
    assert taken(dataset, folder) == 9


def test_distrust_decodes_all_images_again(dataset: Dataset, folder: Path) -> None:
    assert [taken(dataset, folder, trusted=False) for _ in range(2)] == [0, 0]
    assert taken(dataset, folder) == 9


@pytest.mark.parametrize("change", ["bytes", "time"])
def test_a_changed_image_is_decoded_again(dataset: Dataset, folder: Path, change: str) -> None:
    taken(dataset, folder)
    path, before = dataset.path(2), dataset.path(2).stat()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if change == "bytes" else bytes(len(content)))
    if change == "bytes":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match=path.name):
        taken(dataset, folder)


def test_a_broken_image_is_named_in_every_run(dataset: Dataset, folder: Path) -> None:
    dataset.path(2).write_bytes(b"")
    age(dataset.path(2), 3600)
    for _ in range(2):
        with pytest.raises(DataError, match="1 of 9 images"):
            taken(dataset, folder)
    assert ImageMemory(folder=folder).recall([dataset.path(i) for i in dataset]).keys() == {0, 1, 3, 4, 5, 6, 7, 8}


def test_an_image_of_another_size_gets_its_remark_in_every_run(dataset: Dataset, folder: Path) -> None:
    wrong = dataset.subset(range(len(dataset)))
    wrong.sizes[3] = (50, 40)
    for _ in range(2):
        _, remarks = verify_images(wrong, memory=ImageMemory(folder=folder))
        assert len(remarks) == 1


def test_a_file_that_has_just_changed_is_not_remembered(dataset: Dataset, folder: Path) -> None:
    """A second change could leave its time and size as they are."""
    dataset.path(2).touch()
    assert [taken(dataset, folder) for _ in range(2)] == [0, 8]


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000] + bytes(2000) + path.read_bytes()[5000:])


def other_columns(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE images (path TEXT, used TEXT)")
    connection.close()


def other_types(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE images SET width = 'wide', digest = 3, height = NULL")
    connection.close()


def numbers_out_of_range(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE images SET width = -5")
    connection.close()


@pytest.mark.parametrize(
    "spoil",
    [
        damage,
        other_columns,
        other_types,
        numbers_out_of_range,
        lambda path: path.write_bytes(b"no database " * 500),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
)
def test_a_damaged_file_is_ignored_and_made_anew(
    dataset: Dataset, folder: Path, spoil: Callable[[Path], object]
) -> None:
    taken(dataset, folder)
    [path] = folder.iterdir()
    spoil(path)
    assert taken(dataset, folder) == 0
    assert taken(dataset, folder) == 9


def test_a_folder_that_cannot_be_used_costs_a_note(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    memory = ImageMemory(folder=tmp_path / "file")
    for _ in range(2):
        verify_images(dataset, memory=memory)
    assert memory.used == 0
    [note] = memory.notes(9)
    assert note.startswith("checked images cannot be remembered for the next run (")


def test_a_file_that_another_program_locks_costs_a_note(
    dataset: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_memory, "_PATIENCE", 0.05)
    taken(dataset, folder)
    [path] = folder.iterdir()
    connection = sqlite3.connect(path)
    connection.execute("BEGIN EXCLUSIVE")
    memory = ImageMemory(folder=folder)
    verify_images(dataset, memory=memory)
    connection.close()
    assert "locked" in memory.notes(9)[-1]
    assert taken(dataset, folder) == 9


def test_the_oldest_are_forgotten(dataset: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_memory, "_IMAGES", 5)
    taken(dataset, folder)
    assert len(ImageMemory(folder=folder).recall([dataset.path(i) for i in dataset])) == 5


def test_a_name_that_is_not_text_is_decoded_again(tmp_path: Path, folder: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    try:
        path.touch()
    except OSError:
        pytest.skip("this file system has no such names")
    age(path, 3600)
    stamp = Stamp.of(path)
    assert stamp is not None
    memory = ImageMemory(folder=folder)
    memory.store([(path, Decoded(stamp, (5, 5)))])
    assert memory.recall([path]) == {}
    assert memory.notes(1) == []


WRITER = """
import sys
from pathlib import Path
from retinanet.data.image_memory import Decoded, ImageMemory, Stamp
own = [Path(f"/data/{sys.argv[1]}-{number}.jpg") for number in range(300)]
for _ in range(20):
    memory = ImageMemory(folder=Path(sys.argv[2]))
    memory.store([(path, Decoded(Stamp(5, 5), (7, 8))) for path in own])
    memory.recall(own)
    assert not memory.failure, memory.failure
"""


def test_several_programs_may_write_at_once(folder: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, name, str(folder)]) for name in "abc"]
    assert [writer.wait(timeout=200) for writer in writers] == [0, 0, 0]
    [path] = folder.iterdir()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT COUNT(*) FROM images").fetchone() == (900,)
    connection.close()


def test_an_inspection_remembers_what_finds_duplicates(
    dataset: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy2(dataset.path(2), dataset.path(5))
    age(dataset.path(5), 3600)
    first = scan([dataset], memory=ImageMemory(folder=folder))
    assert taken(dataset, folder) == 9  # a training uses it, too
    monkeypatch.setattr("retinanet.inspection.duplicates.read_thumbnail", None)  # would fail
    second = scan([dataset], memory=ImageMemory(folder=folder))
    pairs = [find_pairs([dataset], scans) for scans in (first, second)]
    assert pairs[0] == pairs[1]
    assert [(pair.first, pair.second, pair.exact) for pair in pairs[0]] == [(2, 5, True)]


def test_a_training_does_not_take_the_thumbnails_of_an_inspection(dataset: Dataset, folder: Path) -> None:
    """An image that a training has checked has none; the inspection decodes it again."""
    taken(dataset, folder)
    memory = ImageMemory(folder=folder)
    scan([dataset], memory=memory)
    assert memory.used == 0
    scan([dataset], memory=memory)
    assert memory.used == 9


def test_the_folder_is_that_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert image_memory.cache_folder() == Path("/somewhere/retinanet")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr("sys.platform", "linux")
    assert image_memory.cache_folder() == Path("/home/me/.cache/retinanet")
