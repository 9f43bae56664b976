"""Read weights that other programs wrote, without running code that they may contain."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from retinanet.errors import CheckpointError
from retinanet.model.inert_pickle import AsksForCode, Skipped, read_inert

# A pickle begins with its protocol: torch.save writes 2, other programs newer ones.
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


def read_foreign(path: str | Path) -> Mapping[str, Any]:
    """Return the dictionary in a ``.safetensors`` or a pickled file (``.pth``, ``.pkl``, ``.ckpt``, …), on the CPU.

    A list or tuple of dictionaries becomes a dictionary with the keys ``"0"``, ``"1"``, ….

    Tensors, NumPy arrays (as tensors) and plain values are read. No other object is created: see
    :class:`retinanet.model.inert_pickle.Skipped`.

    Raises:
        CheckpointError: the file does not exist, is damaged, is not a dictionary, or asks to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: {'a folder, not a weights file' if path.is_dir() else 'no such weights file'}")
    if path.suffix != ".safetensors":
        return _unpickled(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        if not os.access(path, os.R_OK):  # safetensors reports "No such file"
            raise CheckpointError(f"{path}: cannot be read, permission denied") from error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CheckpointError(f"{path}: not a complete safetensors file ({reason.splitlines()[0][:120]})") from error


def _unpickled(path: Path) -> Mapping[str, Any]:
    try:
        content = _loaded(path)
    except MemoryError:
        raise
    except Exception as error:  # torch raises many types for a damaged or hostile file
        if isinstance(error, AsksForCode):
            reason = (
                f"it holds objects that could run code ({str(error)[:40]}); where it was made, save the state_dict() "
                'alone, torch.save(model.state_dict(), "weights.pth"), and convert that'
            )
        elif isinstance(error, PermissionError):
            reason = "permission denied"
        else:
            reason = "it is damaged or was not written by torch.save or pickle; export it again"
        raise CheckpointError(f"{path}: cannot be read: {reason}") from error
    if isinstance(content, list | tuple) and any(isinstance(each, Mapping) for each in content):
        content = {str(index): each for index, each in enumerate(content)}  # torch.save((state_dict, settings), …)
    if not isinstance(content, Mapping):
        kind = content.name if isinstance(content, Skipped) else f"a {type(content).__name__}"
        raise CheckpointError(f"{path}: expected a state dict, found {kind}")
    return content


def _loaded(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about the pickle's protocol; errors are raised below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # there are other objects beside the tensors
        # torch's messages about code and damaged files are similar. The first bytes show whether the file is a pickle.
        if _beginning(path) not in (b"PK", *_PICKLES):
            raise ValueError("not a pickle") from None
        return read_inert(path)


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)
