"""Remember which files of an output folder runs of ``retinanet detect`` have written, and refuse to replace others."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from retinanet.detection.record import RECORD, SETTINGS
from retinanet.detection.write import OutputFormat, Outputs, OverwriteError
from retinanet.files import write_json

FAILED = "failed.txt"

# Hidden file with the names of the files and folders that runs have written. It grows with runs of other formats.
_WRITTEN = ".detections.written.json"

# Files of each format, and folders with a file for each image, in the output folder.
_NAMES: dict[OutputFormat, tuple[str, ...]] = {
    "coco": ("detections.json",),
    "csv": ("detections.csv",),
    "yolo": ("labels", "labels.csv", "classes.txt"),
    "voc": ("annotations",),
    "jsonl": (RECORD,),
    "geojson": ("geojson",),
    "parquet": ("detections.parquet",),
}


def refuse_replacing_files(outputs: Outputs) -> None:
    """Check that result files replace only those of earlier runs in the output folder. Drawings are not checked.

    Raises:
        OverwriteError: a file is there, or a folder with files, that no run has written.
    """
    written = _written(outputs.out)
    for name in _names(outputs.formats):
        path = outputs.out / name
        if name not in written and _is_filled(path):
            what = "a folder with files" if path.is_dir() else "a file"
            raise OverwriteError(
                f"--out {outputs.out}: {path} is {what} that no run of 'retinanet detect' has written there, and would "
                "be replaced; choose another --out"
            )


def remember_files(outputs: Outputs) -> None:
    """Note in the output folder that a run writes the files of ``outputs``.

    Raises:
        RetinaNetError: it cannot be written.
    """
    write_json(outputs.out / _WRITTEN, sorted({*_written(outputs.out), *_names(outputs.formats)}))


def _names(formats: Sequence[OutputFormat]) -> list[str]:
    return [RECORD, FAILED, *(name for each in formats for name in _NAMES[each])]


def _written(out: Path) -> set[str]:
    """Return the names that earlier runs have written, from their note, or from the settings that older versions
    store."""
    try:
        return set(json.loads((out / _WRITTEN).read_bytes()))
    except (OSError, ValueError, TypeError):
        pass
    try:
        formats = json.loads((out / SETTINGS).read_bytes())["formats"]
        return set(_names([*_NAMES.keys() & formats, "coco", "csv", "parquet"]))
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def _is_filled(path: Path) -> bool:
    """Whether ``path`` is a file, or a folder in which something is not hidden."""
    try:
        return any(not name.startswith(".") for name in os.listdir(path)) if path.is_dir() else os.path.lexists(path)
    except OSError:
        return True
