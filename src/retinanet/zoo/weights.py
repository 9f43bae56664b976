"""Weight files: safetensors with the classes, settings and measured accuracy of the model.

Tensors under ``train.`` are the state of a training, see ``training/checkpoint.py``.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from retinanet._version import __version__
from retinanet.errors import CheckpointError, ConfigError, RetinaNetError
from retinanet.files import write_atomically
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo

FORMAT = "retinanet/1"
FORMAT_KEY = "retinanet"
TRAINING_PREFIX = "train."

# Models that come with the package, each with a card (a Markdown file of the same name).
BUNDLED = Path(__file__).parent / "models"


def bundled_names() -> list[str]:
    """Return the names of the models that come with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.safetensors"))


def find_weights(weights: str | Path) -> Path:
    """Return the path of a bundled model if ``weights`` is its name, else ``weights`` itself."""
    return BUNDLED / f"{weights}.safetensors" if str(weights) in bundled_names() else Path(weights)


def save_weights(path: Path, tensors: dict[str, Tensor], info: ModelInfo) -> None:
    """Write ``tensors`` and ``info`` atomically.

    Raises:
        CheckpointError: the file cannot be written; an existing file is untouched.
    """
    # safetensors writes metadata keys in random order. With a single key, equal states give equal files.
    metadata = {FORMAT_KEY: json.dumps({"format": FORMAT, "version": __version__, **info.to_dict()})}
    packed = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    # save_file is not used: a kill would leave its temporary file behind, and only the owner could read its result.
    content = save(packed, metadata)
    try:
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
    except RetinaNetError as error:
        raise CheckpointError(str(error)) from error


def read_info(path: str | Path) -> ModelInfo:
    """Read the description in a weight file, without its tensors.

    Raises:
        CheckpointError: the file does not exist, or another program wrote it.
    """
    if not str(path).strip():
        raise CheckpointError("the name of the weights is empty; give a file or the name of a bundled model")
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name the weights in it, e.g. {path / 'best.safetensors'}")
    if not path.is_file():
        names = bundled_names()
        near = difflib.get_close_matches(str(path).lower(), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CheckpointError(f"{path}: no such weights file or bundled model ({', '.join(names)}){hint}")
    if path.suffix in (".pth", ".pt", ".ckpt", ".pkl", ".bin"):
        raise CheckpointError(
            f"{path}: pickled checkpoints are not loaded, because they can run code; if it is a RetinaNet of another "
            f"program, "
            f"run 'retinanet convert {path} {path.with_suffix('.safetensors').name}' first"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        if not os.access(path, os.R_OK):  # safetensors reports "No such file"
            raise CheckpointError(f"{path}: cannot be read, permission denied") from error
        raise CheckpointError(f"{path}: not a complete safetensors file ({str(error)[:100]})") from error
    if FORMAT_KEY not in metadata:
        raise CheckpointError(
            f"{path}: written by another program, not a {FORMAT} weights file; train one with 'retinanet train'"
        )
    try:
        raw = json.loads(metadata[FORMAT_KEY])
        if raw["format"] != FORMAT:
            raise ValueError(f"its format is {raw['format']!r}, not {FORMAT!r}")
        return ModelInfo.from_dict(raw, where=str(path))
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise CheckpointError(
            f"{path}: its description cannot be read ({error}); it may come from another version"
        ) from error


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the model's tensors from a weight file, without the training state."""
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if not name.startswith(TRAINING_PREFIX)]  # noqa: SIM118  # no mapping
        return {name: file.get_tensor(name) for name in names}


def read_all_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read the model's tensors and the training state's tensors (their names without prefix) from a weight file."""
    weights: dict[str, Tensor] = {}
    training: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  # no mapping
            group = training if name.startswith(TRAINING_PREFIX) else weights
            group[name.removeprefix(TRAINING_PREFIX)] = file.get_tensor(name)
    return weights, training


def load_weights(path: str | Path) -> tuple[RetinaNet, ModelInfo]:
    """Return the model in a weight file (or a bundled model) and its description.

    The model is on the CPU, in float32 and in inference mode.

    Raises:
        CheckpointError: the file does not exist, another program wrote it, or its tensors do not fit its description.
    """
    path = find_weights(path)
    info = read_info(path)
    model = RetinaNet.from_config(info.config.model, info.config.anchors, len(info.classes), pretrained=False)
    model.backbone.mean, model.backbone.std = info.mean, info.std
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in read_tensors(path).items()}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()[:300]
        raise CheckpointError(f"{path}: its tensors do not fit its description ({reason})") from error
    return model.eval().to(memory_format=torch.channels_last), info
