"""Everything a training needs to resume as if it had never stopped, in one safetensors file.

``last.safetensors`` holds the weights for inference (the EMA, if there is one) under their plain names, so that it
loads as a model. The prefix ``train.`` marks the raw weights and the optimizer's tensors. Image order, augmentation,
learning rate and random numbers are functions of the seed and the step, so the file stores only the step number.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.errors import CheckpointError
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.training.state import TrainingState
from retinanet.zoo.weights import TRAINING_PREFIX, read_all_tensors, read_info, save_weights

# Settings that may differ on resuming. They change how a run proceeds, but not what its steps compute.
_FREE = {"data.workers", "data.verify"} | {
    f"train.{name}"
    for name in (
        "accumulate",
        "checkpoint_minutes",
        "device",
        "eval_every",
        "find_lr",
        "patience",
        "images_every",
        "track",
    )
}


@dataclass(frozen=True)
class Progress:
    """The progress of a training.

    Attributes:
        step: number of steps done.
        epoch: number of epochs done, with a fraction inside an epoch.
        best_ap: the best AP on val so far; −∞ before the first evaluation.
        best_epoch: the epoch of ``best_ap``.
        finished: why the training ended; None while it goes on.
        data: description of the training data, see :func:`describe_data`; None in old checkpoints.
        val: description of the validation data.
    """

    step: int = 0
    epoch: float = 0.0
    best_ap: float = -math.inf
    best_epoch: int = 0
    finished: str | None = None
    data: Mapping[str, Any] | None = None
    val: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the progress as a weight file stores it."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "data": self.data,
            "val": self.val,
            "best_ap": self.best_ap if math.isfinite(self.best_ap) else None,
            "best_epoch": self.best_epoch,
            "finished": self.finished,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read the progress that a weight file stores; older files lack some values."""
        best_ap = values.get("best_ap")
        return cls(
            step=int(values["step"]),
            epoch=float(values["epoch"]),
            best_ap=-math.inf if best_ap is None else float(best_ap),
            best_epoch=int(values.get("best_epoch", 0)),
            finished=values.get("finished"),
            data=values.get("data"),
            val=values.get("val"),
        )


@dataclass(frozen=True)
class Checkpoint:
    """Header of a checkpoint file: settings, metrics and progress; :func:`restore_training` reads the tensors."""

    path: Path
    info: ModelInfo
    progress: Progress

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the description of a checkpoint.

        Raises:
            CheckpointError: the file is not the checkpoint of a training.
        """
        info = read_info(path)
        try:
            return cls(path, info, Progress.from_dict(info.progress))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: it lacks the progress of its training; choose another --out") from error


def save_training(path: Path, state: TrainingState, info: ModelInfo) -> None:
    """Write the state of a training after a step. All ranks take part; the main rank writes.

    Raises:
        RetinaNetError: the file cannot be written; the checkpoint that was there is untouched.
    """
    moving = state.normalizer.kind == "moving"
    averages = state.processes.gather(state.normalizer.average.item()) if moving else []
    if not state.processes.is_main:
        return
    tensors = dict(state.best_model.state_dict())
    further: dict[str, Tensor] = {
        f"optimizer.{k}": v for k, v in _optimizer_tensors(state.model, state.optimizer).items()
    }
    if moving:
        further["foreground"] = torch.tensor(averages)
    if state.ema is not None:
        further |= {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
        further["averaged"] = state.ema.n_averaged
    tensors |= {TRAINING_PREFIX + name: tensor for name, tensor in further.items()}
    save_weights(path, tensors, info)


def restore_training(path: Path, state: TrainingState) -> None:
    """Bring model, EMA, optimizer and normalizer to the state that :func:`save_training` wrote.

    If the number of ranks has changed, each rank's moving average of the positive anchors becomes the mean over all
    stored ranks.

    Raises:
        CheckpointError: the file does not hold such a state, or belongs to another model.
    """
    weights, further = read_all_tensors(path)
    raw = {k.removeprefix("model."): v for k, v in further.items() if k.startswith("model.")} or weights
    try:
        state.model.load_state_dict(raw)
        if state.ema is not None:
            state.ema.module.load_state_dict(weights)
            state.ema.n_averaged.copy_(further["averaged"])
        if state.normalizer.kind == "moving":
            averages = further["foreground"].reshape(-1)
            same = len(averages) == state.processes.world_size
            state.normalizer.average = averages[state.processes.rank] if same else averages.mean()
        moments = {k.removeprefix("optimizer."): v for k, v in further.items()}
        _restore_optimizer(state.model, state.optimizer, moments)
    except (RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[-1].strip()[:300]
        raise CheckpointError(f"{path}: not the state of this training ({reason})") from error


def _optimizer_tensors(model: RetinaNet, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}.{key}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }


def _restore_optimizer(model: RetinaNet, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.rpartition(".")[0] == name}
        if own:
            # Adam's step counter is a scalar and stays on the CPU; the moments get the layout of their parameter.
            optimizer.state[parameter] = {
                k: v.to(parameter.device)
                if v.ndim == 0
                else v.to(parameter).contiguous(memory_format=_memory_format(parameter))
                for k, v in own.items()
            }


def _memory_format(parameter: Tensor) -> torch.memory_format:
    channels_last = parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """Return counts, classes and hashes of a dataset. They do not depend on the dataset's path."""
    counts = {"images": len(dataset), "boxes": int((~dataset.ignore).sum()), "classes": list(dataset.classes)}
    files, boxes = (hashlib.sha256() for _ in range(2))
    files.update(repr([dataset.files[i] for i in dataset]).encode("utf-8", "replace"))
    for column in (dataset.offsets, dataset.boxes, dataset.labels, dataset.ignore):
        boxes.update(column.tobytes())
    return {**counts, "files": files.hexdigest()[:16], "annotations": boxes.hexdigest()[:16]}


def check_same_settings(path: Path, stored: Config, config: Config) -> None:
    """Refuse to resume with settings other than those ``stored`` in the checkpoint ``path``.

    Raises:
        CheckpointError: the settings differ; the message names the first differences.
    """
    before, now = _flat(stored.to_dict()), _flat(config.to_dict())
    # If one of these is unset, it agrees with any stored value. The checkpoint stores the value that was used.
    for name in ("model.channels", "data.pixel_range", "decode.max_detections", "decode.top_k"):
        before[name] = None if now[name] is None else before[name]
    different = [f"{k} {before[k]} → {now[k]}" for k in now if before[k] != now[k] and k not in _FREE]
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise CheckpointError(
            f"{path}: cannot resume with other settings ({'; '.join(different[:3])}{more}); "
            "leave those flags out, or start a new run with another --out"
        )


def check_same_data(
    path: Path, before: Mapping[str, Any] | None, now: Mapping[str, Any], role: str, dataset: Dataset
) -> None:
    """Refuse to resume with data other than that of the checkpoint ``path``.

    Args:
        path: the checkpoint.
        before: the description of the data in the checkpoint. None (old checkpoints): nothing is checked.
        now: the description of ``dataset``.
        role: ``training`` or ``validation``, for the message.
        dataset: the data to resume with.

    Raises:
        CheckpointError: the data has changed; the message names the changes.
    """
    if before is None or before == now:
        return
    before = before if isinstance(before, dict) else {}
    different = [name for name in now if before.get(name) != now[name]]
    counted = [f"{before.get(name, '?')} {name} → {now[name]}" for name in ("images", "boxes") if name in different]
    if "classes" in different:
        counted.append(f"classes {', '.join(before.get('classes', '?'))} → {', '.join(now['classes'])}"[:200])
    if not counted:
        counted.append(
            "other image files" if "files" in different else "different boxes or labels in the same number of images"
        )
    raise CheckpointError(
        f"{path}: cannot resume, the {role} data has changed since ({dataset.name}: {'; '.join(counted)}); "
        "start a new run with another --out"
    )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result
