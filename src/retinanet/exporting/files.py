"""Write exported models to files, with their metadata inside."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retinanet.exporting.options import SUFFIXES, Target
from retinanet.files import not_written
from retinanet.interrupts import interrupted_once
from retinanet.runtime.exported import METADATA_KEY, ExportedModel


def write_model(target: Target, model: Any, description: ExportedModel, path: Path) -> None:
    """Write an ``onnx.ModelProto``, an ``openvino.Model`` or a ``torch.export.ExportedProgram``.

    Raises:
        OSError: the file cannot be written.
    """
    text = description.to_json()
    match target:
        case "onnx":
            del model.metadata_props[:]
            entry = model.metadata_props.add()
            entry.key, entry.value = METADATA_KEY, text
            path.write_bytes(model.SerializeToString())
        case "openvino":
            import openvino

            model.set_rt_info(text, METADATA_KEY)
            try:
                openvino.save_model(model, str(path), compress_to_fp16=False)
            except RuntimeError as error:  # its text does not name the cause
                reason = (str(error).strip().splitlines() or ["unknown reason"])[-1].strip()[:120]
                raise OSError(errno.ENOSPC, f"OpenVINO: {reason}; is the disk full?") from error
        case "torch":
            import torch

            buffer = io.BytesIO()  # PyTorch's own writer of files aborts the process if the disk is full
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # buffers that share memory are stored once
                torch.export.save(model, buffer, extra_files={f"{METADATA_KEY}.json": text})
            path.write_bytes(buffer.getbuffer())


def companions(path: Path) -> list[Path]:
    """The files of an exported model: ``path``, and before it the file of weights that an ``.xml`` file needs."""
    return [path.with_suffix(".bin"), path] if path.suffix == SUFFIXES["openvino"] else [path]


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Let the block write and verify the files of ``path`` in a temporary folder; then move them to ``path``.

    If the block fails or is interrupted (Ctrl-C, SIGTERM), nothing remains of the new files, and older ones are
    untouched.

    Raises:
        RetinaNetError: the folder cannot be written.
    """
    folder = path.absolute().with_name(f".{path.stem}.{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        with interrupted_once():
            yield folder / path.name
        for file in companions(folder / path.name):
            with file.open("rb") as written:
                os.fsync(written.fileno())
        for file in companions(folder / path.name):
            file.replace(path.absolute().with_name(file.name))
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
