"""Run exported ``.pt2`` files, programs of ``torch.export``. This is the only file of the folder that needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import _pytree as pytree

from retinanet.errors import CheckpointError, ConfigError
from retinanet.hardware import resolve_device
from retinanet.machine import Precision
from retinanet.runtime.exported import Arithmetic, ExportedModel, require_file

_METADATA_FILE = "retinanet.json"


class TorchProgram:
    """A program of ``torch.export``; see :class:`retinanet.runtime.exported.ExportedNetwork`.

    Args:
        path: the ``.pt2`` file.
        precision: ``auto`` or ``fp32``; the program contains its number types.
        device: ``auto`` and ``cpu``: the processor; otherwise a device of PyTorch, such as ``cuda``.

    Raises:
        CheckpointError: the file does not exist, is damaged, or was not written by this package.
        ConfigError: a setting cannot be used.
    """

    def __init__(self, path: Path, precision: Precision = "auto", device: str = "auto") -> None:
        require_file(path)
        if precision not in ("auto", "fp32"):
            raise ConfigError(f"precision is {precision!r}; .pt2 files run in fp32 (or as auto)")
        extra = {_METADATA_FILE: ""}
        try:
            program = torch.export.load(path, extra_files=extra)
        except Exception as error:  # zip, JSON and version errors of several modules
            reason = (str(error).splitlines() or ["unknown reason"])[0][:160]
            raise CheckpointError(
                f"{path}: PyTorch cannot load the program ({reason}); export the model again with this version"
            ) from error
        text = extra[_METADATA_FILE]
        self.arithmetic: Arithmetic = "fp32"
        self.path, self.model = path, ExportedModel.from_json(str(text) if text else None, path)
        self._device = resolve_device("cpu" if device == "auto" else device)
        if self._device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, self._device)
        # Tracing notes conditions on sizes that only concern the order of memory, such as a P7 of more than one row.
        self._module = program.module(check_guards=False)

    @torch.inference_mode()
    def __call__(self, images: npt.NDArray[np.generic], sizes: npt.NDArray[np.int64]) -> Mapping[str, npt.NDArray[Any]]:
        """Compute the outputs of the file, by name; see :class:`retinanet.runtime.exported.ExportedNetwork`."""
        inputs = (torch.from_numpy(array).to(self._device) for array in (images, sizes))
        outputs = [tensor.cpu().numpy() for tensor in pytree.tree_leaves(self._module(*inputs))]
        levels = len(outputs) // 2
        names = [f"{kind}_{level}" for kind in ("logits", "deltas") for level in range(levels)]
        return dict(zip(names, outputs, strict=True))
