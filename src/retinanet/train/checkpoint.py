"""Everything a training needs to go on as if it had never stopped, in one safetensors file.

``last.safetensors`` holds the weights to use (averaged, if averaging is on) under their plain names, so that it loads
as a model, and under ``train.`` the raw weights and the optimiser's tensors. Order and augmentation of the images, the
learning rate and the random numbers are functions of seed and step, so the step number stands for them.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.errors import CheckpointError
from retinanet.losses import Normalizer
from retinanet.model import RetinaNet
from retinanet.train.distributed import Processes
from retinanet.train.optim import MovingAverage
from retinanet.zoo.weights import TRAINING_PREFIX, ModelInfo, read_info, read_tensors, save_weights

# Settings that change how a run proceeds but not what it computes may differ on resuming.
_FREE = {"data.workers", "data.verify"} | {
    f"train.{name}"
    for name in (
        "accumulate",
        "checkpoint_minutes",
        "device",
        "eval_every",
        "find_lr",
        "patience",
        "pictures_every",
        "track",
    )
}


def weights_to_use(model: RetinaNet, average: MovingAverage | None) -> RetinaNet:
    """The averaged model if there is one, else the trained one."""
    if average is None:
        return model
    assert isinstance(average.module, RetinaNet)
    return average.module


def save_training(
    path: Path,
    model: RetinaNet,
    average: MovingAverage | None,
    optimizer: torch.optim.Optimizer,
    normalizer: Normalizer,
    info: ModelInfo,
    processes: Processes,
) -> None:
    """Write the state of a training after a step. All processes take part: the first writes, also what differs.

    Raises:
        RetinaNetError: the file cannot be written; the checkpoint that was there is untouched.
    """
    moving = normalizer.kind == "moving"
    averages = processes.gather(normalizer.average.item()) if moving else []
    if not processes.first:
        return
    tensors = dict(weights_to_use(model, average).state_dict())
    state: dict[str, Tensor] = {f"optimizer.{k}": v for k, v in _optimizer_tensors(model, optimizer).items()}
    if moving:
        state["foreground"] = torch.tensor(averages)
    if average is not None:
        state |= {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        state["averaged"] = average.n_averaged
    tensors |= {TRAINING_PREFIX + name: tensor for name, tensor in state.items()}
    save_weights(path, tensors, info)


def restore_training(
    path: Path,
    model: RetinaNet,
    average: MovingAverage | None,
    optimizer: torch.optim.Optimizer,
    normalizer: Normalizer,
    processes: Processes,
) -> ModelInfo:
    """Bring model, average, optimiser and normaliser to the state :func:`save_training` wrote.

    Where there were other processes then, each one's moving average of the foreground becomes the mean of all.

    Raises:
        CheckpointError: the file is not such a state, or belongs to another model.
    """
    info = read_info(path)
    state = read_tensors(path, training=True)
    weights = read_tensors(path)
    raw = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")} or weights
    try:
        model.load_state_dict(raw)
        if average is not None:
            average.module.load_state_dict(weights)
            average.n_averaged.copy_(state["averaged"])
        if normalizer.kind == "moving":
            averages = state["foreground"].reshape(-1)
            same = len(averages) == processes.count
            normalizer.average = averages[processes.rank] if same else averages.mean()
        _restore_optimizer(model, optimizer, {k.removeprefix("optimizer."): v for k, v in state.items()})
    except (RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[-1].strip()[:300]
        raise CheckpointError(f"{path}: not the state of this training ({reason})") from error
    return info


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
            # Adam's step counter is a scalar that stays where it was; the moments follow their parameter
            optimizer.state[parameter] = {
                k: v.to(parameter.device)
                if v.ndim == 0
                else v.to(parameter).contiguous(memory_format=_layout(parameter))
                for k, v in own.items()
            }


def _layout(parameter: Tensor) -> torch.memory_format:
    last = parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """What tells training data apart: two trainings with the same description saw the same."""
    counts = {"images": len(dataset), "boxes": int((~dataset.ignore).sum()), "classes": list(dataset.classes)}
    files, boxes = (hashlib.sha256() for _ in range(2))
    files.update(repr([dataset.files[i] for i in dataset]).encode("utf-8", "replace"))
    for column in (dataset.offsets, dataset.boxes, dataset.labels, dataset.ignore):
        boxes.update(column.tobytes())
    return {**counts, "files": files.hexdigest()[:16], "annotations": boxes.hexdigest()[:16]}


def refuse_other_run(out: Path, resume: bool) -> None:
    """Keep a new training from overwriting an earlier one.

    Raises:
        CheckpointError: ``out`` holds a run and ``resume`` is off, or best weights of no run that was cut short.
    """
    if (out / "last.safetensors").exists():
        if not resume:
            raise CheckpointError(f"{out} already holds a run; add --resume to go on with it, or choose another --out")
    elif (out / "best.safetensors").exists() and not (resume and (out / "config.yaml").exists()):
        # with both, a run was cut short after its first best weights and before its first checkpoint
        raise CheckpointError(
            f"{out} holds best.safetensors of an earlier run, which would be replaced; choose another --out, or move it"
        )


def check_same_settings(path: Path, info: ModelInfo, config: Config) -> None:
    """Refuse to resume with other settings than the checkpoint's.

    Raises:
        CheckpointError: naming the first differences.
    """
    before, now = _flat(info.config.to_dict()), _flat(config.to_dict())
    before["model.channels"] = now["model.channels"] if now["model.channels"] is None else before["model.channels"]
    different = [f"{k} {before[k]} → {now[k]}" for k in now if before[k] != now[k] and k not in _FREE]
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise CheckpointError(
            f"{path}: cannot resume with other settings ({'; '.join(different[:3])}{more}); "
            "leave those flags out, or start a new run with another --out"
        )


def with_found_rate(config: Config, info: ModelInfo) -> Config:
    """``config`` with the learning rate that was found before the run in ``info``, if it asks for one."""
    if not config.train.find_lr:
        return config
    return replace(config, train=replace(config.train, lr=info.config.train.lr, find_lr=False))


def check_same_data(path: Path, info: ModelInfo, dataset: Dataset, role: str = "data") -> None:
    """Refuse to resume with other training data than the checkpoint's, or other data to validate on (role ``val``).

    Raises:
        CheckpointError: the data has changed.
    """
    if role not in info.progress:
        return
    before, now = info.progress[role], describe_data(dataset)
    if before == now:
        return
    what = "training" if role == "data" else "validation"
    before = before if isinstance(before, dict) else {}
    different = [name for name in now if before.get(name) != now[name]]
    counted = [f"{before.get(name, '?')} {name} → {now[name]}" for name in ("images", "boxes") if name in different]
    if "classes" in different:
        counted.append(f"classes {', '.join(before.get('classes', '?'))} → {', '.join(now['classes'])}"[:200])
    if not counted:
        counted.append("other image files" if "files" in different else "other boxes or labels in as many images")
    raise CheckpointError(
        f"{path}: cannot resume, the {what} data has changed since ({dataset.name}: {'; '.join(counted)}); "
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
