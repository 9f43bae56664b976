"""Find the network and its class names in a checkpoint, wherever a training script put them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from retinanet.model.inert_pickle import Skipped

# Names that training scripts give to a moving average of the weights.
_AVERAGE = re.compile(r"(^|\.)(\w*_)?(model)?(ema|swa|shadow|avg|averaged?)(model|net)?(_\w*)?(\.|$)", re.IGNORECASE)
# Keys of class names, and keys of settings in which they may be.
_CLASSES = re.compile(
    r"(class|label|category)_?(names?|dict|list|map|labels)|classes|categories|labels|names|class_to_(idx|id|index)"
    r"|(numeric|idx|id|index)_?(to|2)_?(class|label|name)(_dict|s)?|label2id",
    re.IGNORECASE,
)
_SETTINGS = re.compile(
    r"hyper_?parameters|hparams|args|arguments|config|cfg|(dataset_?)?meta(data)?|opt|options|params|model_args", re.I
)
_DEPTH = 4


@dataclass(frozen=True)
class Network:
    """A network's tensors in a checkpoint.

    Attributes:
        state: the tensors, without the prefix of their names.
        where: the keys that lead to them and the prefix, joined by dots; empty for a plain state dict.
        notes: what a user should know, in sentences.
    """

    state: dict[str, Any]
    where: str
    notes: tuple[str, ...] = field(default=())


def find_network(checkpoint: Mapping[Any, Any], marker: str) -> Network | None:
    """Find the state dict with a key that ends in ``marker``.

    Of several, a moving average of the weights (EMA) is taken before the others, and keys that it lacks, such as
    buffers, are taken from the first other copy. Else the first copy is taken.
    """
    found = list(_networks(checkpoint, marker, (), _DEPTH))
    if not found:
        return None
    averages = [network for network in found if _AVERAGE.search(network.where)]
    others = [network for network in found if not _AVERAGE.search(network.where)]
    meta = checkpoint.get("meta")
    if averages and others and isinstance(meta, Mapping) and "mmengine_version" in meta:
        # Its EMAHook exchanges the two before it saves them.
        note = f"the moving average of the weights is used, which mmengine stores in {others[0].where}"
        return Network(others[0].state, others[0].where, (note,))
    if not averages:
        return found[0]
    chosen = averages[0]
    if not others:
        return chosen
    missing = {key: value for key, value in others[0].state.items() if key not in chosen.state}
    note = (
        f"the moving average of the weights ({chosen.where}) is used, not {others[0].where or 'the weights beside it'}"
    )
    return Network({**chosen.state, **missing}, chosen.where, (note,))


def _networks(content: Mapping[Any, Any], marker: str, path: tuple[str, ...], depth: int) -> Iterator[Network]:
    keys = [key for key in content if isinstance(key, str)]
    for prefix in [key.removesuffix(marker) for key in keys if key.endswith(marker)]:
        state = {key[len(prefix) :]: content[key] for key in keys if key.startswith(prefix)}
        yield Network(state, ".".join([*path, *([prefix.strip(".")] if prefix else [])]))
    if depth:
        for key, value in content.items():
            inner = value.attributes if isinstance(value, Skipped) else value
            if isinstance(inner, Mapping):
                yield from _networks(inner, marker, (*path, str(key)), depth - 1)


def find_class_names(
    checkpoint: Mapping[Any, Any], count: int, background: bool = True
) -> tuple[tuple[str, ...] | None, str]:
    """Return the names of the network's ``count`` outputs if the checkpoint holds them, and the key of the names.

    Without names, the second value is a note if there are names that do not fit, else empty. With a ``background``,
    names for all outputs but one begin after it; it is the first output of torchvision's detectors.
    """
    note = ""
    for key, value in _named(checkpoint, _DEPTH):
        names = _by_index(value)
        if not names:
            continue
        if background and max(names) == count - 2 and min(names) == 0 and len(names) == count - 1:
            names = {index + 1: name for index, name in names.items()} | {0: "__background__"}
        complete = tuple(names.get(index, f"class {index}") for index in range(count))
        if max(names) < count and len(set(complete)) == count:
            return complete, key
        note = note or f"the {len(names)} class names in {key!r} do not fit {count} outputs"
    return None, note


def _named(content: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, Any]]:
    """Values under keys of class names, those of outer settings first."""
    inner = []
    for key, value in content.items():
        if not isinstance(key, str) or isinstance(value, Tensor):
            continue
        if _CLASSES.fullmatch(key):
            yield key, value
        if _SETTINGS.fullmatch(key) or depth == _DEPTH:
            inner.append(value.attributes if isinstance(value, Skipped) else value)
    if depth:
        for settings in inner:
            if isinstance(settings, Mapping):
                yield from _named(settings, depth - 1)


def _by_index(value: Any) -> dict[int, str]:
    """Read a list of names, a dictionary in either direction, or COCO's categories; empty if it is none of these."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",")] if "," in value else []
    pairs: list[Any] = []
    if isinstance(value, Mapping):
        pairs = [(index, name) if isinstance(name, str) else (name, index) for index, name in value.items()]
    elif isinstance(value, Sequence):
        pairs = [
            (item.get("id"), item.get("name")) if isinstance(item, Mapping) else (index, item)
            for index, item in enumerate(value)
        ]
    pairs = [(int(i) if isinstance(i, str) and i.isdecimal() and len(i) < 10 else i, name) for i, name in pairs]
    valid = all(type(i) is int and i >= 0 and isinstance(name, str) and name.strip() for i, name in pairs)
    return {index: name.strip() for index, name in pairs} if valid else {}
