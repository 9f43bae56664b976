from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retinanet.errors import RetinaNetError
from retinanet.files import claimed, new_folder, refuse_filled, special_file, write_atomically, write_json, write_text


def full_disk(path: Path) -> None:
    path.write_text("half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    write_text(path, "ä\n")
    write_text(path, "ö\n")
    assert path.read_bytes() == "ö\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_json_keeps_letters_of_all_languages(tmp_path: Path) -> None:
    value = {"Größe": [1, 2.5, None], "名": "螺丝"}
    write_json(tmp_path / "a.json", value, indent=2)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "螺丝" in text
    assert text.endswith("}\n")


def test_file_names_that_are_no_text_survive_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xe4.jpg")
    write_json(tmp_path / "a.json", {"file": name})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"file": name}


def test_temporary_file_keeps_the_suffix(tmp_path: Path) -> None:
    seen: list[Path] = []

    def write(path: Path) -> None:
        seen.append(path)
        path.write_bytes(b"x")

    write_atomically(tmp_path / "curve.png", write)
    assert [p.suffix for p in seen] == [".png"]
    assert seen[0].parent == tmp_path
    assert not seen[0].exists()


def test_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RetinaNetError, match=r"a\.json: cannot be written \(No space left on device\)"):
        write_atomically(path, full_disk)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_other_failures_pass_through_and_clean_up(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        write_atomically(tmp_path / "a.txt", fail)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(RetinaNetError, match=r"a\.txt: cannot be written"):
        write_text(tmp_path / "out" / "a.txt", "x")
    with pytest.raises(RetinaNetError, match=r"a\.txt: cannot be written"):
        write_text(tmp_path / "out" / "deeper" / "a.txt", "x")
    assert (tmp_path / "out").read_text() == "in the way"


def test_target_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(RetinaNetError, match="cannot be written"):
        write_text(tmp_path / "a.txt", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RetinaNetError, match="Permission denied"):
            write_text(tmp_path / "a.txt", "x")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)  # empty: as good as none
    with new_folder(out) as folder:
        (folder / "a.txt").write_text("a")
        assert not any(out.iterdir())
    assert [p.name for p in out.iterdir()] == ["a.txt"]
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no")])
def test_a_folder_that_fails_is_gone(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "a.txt").write_text("a")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert not any(tmp_path.iterdir())


def test_a_folder_that_another_filled_meanwhile_is_kept(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "out"):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").touch()

    with pytest.raises(RetinaNetError, match="not an empty folder"):
        write()
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "theirs"]


def test_what_is_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "dangling", "."):
        with pytest.raises(RetinaNetError, match="not an empty folder"):
            refuse_filled(tmp_path / name)
    refuse_filled(tmp_path / "new")


def test_what_is_no_ordinary_file_is_told_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    expected = {"pipe": "a named pipe", "file": None, "link": None, "loop": None, "gone": None, ".": "a folder"}
    assert {name: special_file(tmp_path / name) for name in expected} == expected
    assert special_file("/dev/null") == "a device"
    assert special_file("a\0b") is None


def test_lists_of_numbers_are_one_line(tmp_path: Path) -> None:
    value = {
        "a": [1, 2.5, -3e-5, None],
        "b": [{"c": [1]}, "[\n 1,\n 2\n]"],
        "d": [],
        "e": [[1, 2], [3]],
        "f": ["1", "2"],
    }
    write_json(tmp_path / "a.json", value, indent=2)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == value
    assert '"a": [1, 2.5, -3e-05, null],' in text
    assert '"c": [1]' in text
    assert "\n    [1, 2],\n" in text
    write_json(tmp_path / "b.json", value)
    assert (tmp_path / "b.json").read_text() == json.dumps(value) + "\n"


def test_a_folder_is_claimed_by_one_process_at_a_time(tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    code = (
        "import os, time; from pathlib import Path; from retinanet.files import claimed\n"
        f"with claimed(Path(r'{run}')):\n"
        "    if os.fork() == 0:  # a process that loads images, say, and outlives the claim\n"
        f"        Path(r'{tmp_path}', str(os.getpid())).touch(); time.sleep(60); os._exit(0)"
    )
    ask = [sys.executable, "-c", code]
    with claimed(run):
        refused = subprocess.run(ask, stderr=subprocess.PIPE, text=True)
        assert f"run: process {os.getpid()} is writing to it; wait until it has ended" in refused.stderr
    subprocess.run(ask, check=True)
    subprocess.run(ask, check=True)  # what the last one left does not keep others out
    for path in tmp_path.glob("[0-9]*"):
        os.kill(int(path.name), signal.SIGKILL)


def test_a_folder_that_cannot_be_claimed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RetinaNetError, match="file/run: cannot be written"), claimed(tmp_path / "file" / "run"):
        pass
