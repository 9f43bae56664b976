"""Reading ``.pth`` files without running what they may contain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from retinanet.errors import CheckpointError


def read_pickled(path: Path) -> Mapping[str, Any]:
    """The dictionary a ``.pth`` file holds, on the CPU; only tensors and plain values are unpickled.

    Raises:
        CheckpointError: no such file, damaged, not a dictionary, or it holds objects that would have to run code.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged or hostile file
        text = str(error)
        if "Unsupported" in text or "GLOBAL" in text or "global" in text:
            reason = "it holds objects that could run code; save its state_dict() alone and give that"
        else:
            reason = f"not a file torch.save wrote: {(text or type(error).__name__).splitlines()[0][:120]}"
        raise CheckpointError(f"{path}: not read, {reason}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a state dict, found a {type(content).__name__}")
    return content
