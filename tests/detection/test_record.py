from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from retinanet.detection.record import Entry, Found, Record
from retinanet.errors import CheckpointError, DataError, RetinaNetError

CLASSES = ("nut", "screw")
SETTINGS = {"weights": "1234", "score": 0.3, "formats": ["yolo"], "max-detections": None}
ENTRIES = [
    Entry("a.jpg", "a", (10, 20), (Found((1.0, 2.0, 3.25, 4.0), 0.5, 1),), limited=True),
    Entry("caf\udce9 ü.jpg", "b", None, error="b.jpg: no image"),
    Entry("c.jpg", "trip/c", (1, 1), nonfinite=True),
]


def started(out: Path) -> Path:
    record = Record.start(out, CLASSES, SETTINGS)
    for entry in ENTRIES:
        record.append(entry)
    record.close()
    return record.path


def resumed(out: Path, **changed: Any) -> Record:
    return Record.resume(out, CLASSES, {**SETTINGS, **changed})


def test_entries_are_read_back(tmp_path: Path) -> None:
    started(tmp_path)
    record = resumed(tmp_path)
    assert list(record.entries()) == list(record.earlier()) == ENTRIES
    record.append(ENTRIES[0])
    assert list(record.earlier()) == ENTRIES
    assert list(record.entries()) == [*ENTRIES, ENTRIES[0]]
    record.close()


def test_torn_line_is_dropped_at_every_byte(tmp_path: Path) -> None:
    path = started(tmp_path)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        record = resumed(tmp_path)
        complete = sum(len(b"".join(lines[:count])) <= length for count in (1, 2, 3))
        assert list(record.entries()) == ENTRIES[:complete]
        record.append(ENTRIES[2])
        record.close()
        assert list(record.entries()) == [*ENTRIES[:complete], ENTRIES[2]]


def test_zeros_that_a_power_failure_leaves_are_dropped(tmp_path: Path) -> None:
    path = started(tmp_path)
    path.write_bytes(path.read_bytes() + bytes(200_000))
    assert list(resumed(tmp_path).entries()) == ENTRIES


def test_zeros_in_a_torn_line_are_dropped(tmp_path: Path) -> None:
    path = started(tmp_path)
    path.write_bytes(path.read_bytes()[:-20] + bytes(5000))
    assert list(resumed(tmp_path).entries()) == ENTRIES[:2]


@pytest.mark.parametrize(
    "end",
    [
        b"edited by hand",
        b"edited by hand\n",
        b"{}\n",
        b"5\n",
        b"\n",
        b'{"path": "d.jpg", "na\n',
        b'edited\n{"path": "d.jpg", "na',
        b"\x89PNG\r\n\x1a\n\0\0\0",
    ],
)
@pytest.mark.parametrize("empty", [False, True])
def test_a_file_that_does_not_end_with_entries_is_left_as_it_is(tmp_path: Path, end: bytes, empty: bool) -> None:
    path = started(tmp_path)
    content = (b"" if empty else path.read_bytes()) + end
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"detections\.jsonl ends with a line that no run of .* without --resume$"
    ):
        resumed(tmp_path)
    assert path.read_bytes() == content


def test_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = started(tmp_path)
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:5] + b"\n" + third)
    with pytest.raises(DataError, match=r"detections\.jsonl:2: damaged line"):
        list(resumed(tmp_path).entries())


def test_other_settings_are_refused(tmp_path: Path) -> None:
    started(tmp_path)
    with pytest.raises(CheckpointError, match=r"has formats yolo \(now unset\), score 0\.3 \(now 0\.5\); repeat"):
        resumed(tmp_path, score=0.5, formats=None)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no record of an earlier run; leave --resume out"):
        resumed(tmp_path)
    started(tmp_path).unlink()
    with pytest.raises(CheckpointError, match="holds no record"):
        resumed(tmp_path)


def test_new_run_replaces_the_record(tmp_path: Path) -> None:
    path = started(tmp_path)
    Record.start(tmp_path, CLASSES, SETTINGS).close()
    assert path.read_bytes() == b""


class FullDisk:
    """A file on a disk without space."""

    def write(self, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    record = Record(tmp_path / "detections.jsonl", CLASSES, 0, FullDisk())  # type: ignore[arg-type]
    with pytest.raises(RetinaNetError, match=r"detections\.jsonl: cannot be written \(No space left on device\); free"):
        record.append(ENTRIES[0])


def test_lines_are_plain_json(tmp_path: Path) -> None:
    first, second, _ = map(json.loads, started(tmp_path).read_text().splitlines())
    assert first == {
        "path": "a.jpg",
        "name": "a",
        "width": 20,
        "height": 10,
        "detections": [{"box": [1.0, 2.0, 3.25, 4.0], "score": 0.5, "label": 1, "class": "screw"}],
        "limited": True,
    }
    assert second == {"path": "caf\udce9 ü.jpg", "name": "b", "error": "b.jpg: no image"}
