"""Checkpoints with other objects beside the tensors: tensors are read, and nothing in the file is created or run."""

from __future__ import annotations

import argparse
import builtins
import collections
import copy
import datetime
import enum
import functools
import os
import pickle
import pickletools
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from retinanet.errors import CheckpointError
from retinanet.model.foreign_weights import read_foreign
from retinanet.model.inert_pickle import Skipped, read_inert


class Call:
    """Pickles as a call of ``function``; with ``state`` as what ``__setstate__`` of its result gets."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


class Mode(enum.Enum):
    FAST = "fast"


class Settings:
    """An object of a training script, whose creation is noticed."""

    created: list[str] = []  # noqa: RUF012  # shared on purpose

    def __init__(self) -> None:
        self.classes = ["cat", "dog"]
        self.lr = 0.1

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.created.append("set state")

    def __getstate__(self) -> dict[str, Any]:
        return {"classes": self.classes, "lr": self.lr}

    def __reduce_ex__(self, protocol: Any) -> Any:
        return noticed, (), self.__getstate__()


def noticed() -> Settings:
    Settings.created.append("called")
    return Settings.__new__(Settings)


class Attributes(dict[str, Any]):
    """A dictionary, as the hyper-parameters of Lightning are."""


class Buffer:
    """A class with methods, which a checkpoint may refer to."""

    @staticmethod
    def collate(batch: Any) -> Any:
        """Return the batch."""
        return batch


NEIGHBOURS: dict[str, Any] = {
    "numpy number": np.float64(0.29),
    "numpy array": np.arange(3),
    "path": Path("runs/1"),
    "namespace": argparse.Namespace(lr=0.1, device=torch.device("cpu")),
    "object": Settings(),
    "enum": Mode.FAST,
    "date": datetime.datetime(2026, 1, 2),
    "default dictionary": collections.defaultdict(list, {"a": [1]}),
    "counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2]),
    "set": {1, 2},
    "frozen set": frozenset({3}),
    "partial": functools.partial(noticed),
    "function": noticed,
    "built-in function": functools.partial(max, 1),
    "static method": Buffer.collate,
    "complex tensor": torch.ones(2, dtype=torch.complex64),
    "file status": os.stat("."),
    "class of dictionaries": Attributes(lr=0.1),
    "class": Settings,
    "bytes": bytearray(b"abc"),
    "generator": np.random.default_rng(0),
    "size": torch.Size([2, 3]),
    "type": torch.float16,
    "complex": 1 + 2j,
    "range": range(3),
    "optimizer": torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1).state_dict(),
}


def saved(path: Path, content: Any, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_tensors_are_read_beside_harmless_objects(tmp_path: Path, name: str, zipped: bool, protocol: int) -> None:
    Settings.created.clear()
    weights = {"a": torch.randn(3, 4), "b": torch.arange(5), "half": torch.ones(2, dtype=torch.bfloat16)}
    content = {"before": NEIGHBOURS[name], "state_dict": weights, "after": [NEIGHBOURS[name], {"x": Settings()}]}
    path = tmp_path / "in.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    read = read_foreign(path)
    assert read["state_dict"].keys() == weights.keys()
    for key, value in weights.items():
        assert torch.equal(read["state_dict"][key], value)
        assert read["state_dict"][key].dtype == value.dtype
    assert Settings.created == []
    skipped = read["after"][1]["x"]
    assert isinstance(skipped, Skipped)
    assert skipped.name.endswith("noticed")
    assert skipped.attributes == {"classes": ["cat", "dog"], "lr": 0.1}


def test_views_parameters_and_shared_storages_are_read(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    content: dict[str, Any] = {
        "transposed": base.T,
        "row": base[1],
        "expanded": torch.ones(1).expand(3, 2),
        "parameter": nn.Parameter(base.clone()),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "flag": torch.tensor([True, False]),
        "extra": Settings(),
    }
    for zipped in (True, False):
        read = read_foreign(saved(tmp_path / f"{zipped}.pth", content, zipped))
        for key in content.keys() - {"extra"}:
            assert torch.equal(read[key], content[key].detach()), key
            assert type(read[key]) is torch.Tensor
        assert read["transposed"].untyped_storage().data_ptr() == read["row"].untyped_storage().data_ptr()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_module_is_read_as_its_state_dict(tmp_path: Path, zipped: bool) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ModuleDict({"head": nn.Linear(2, 2)}))
    contents: list[Any] = [module, {"model": module, "epoch": 3}, {"ema": copy.deepcopy(module).half()}]
    for content in contents:
        read = read_foreign(saved(tmp_path / "module.pth", content, zipped))
        state = read if content is module else next(iter(read.values()))
        wanted = (content if isinstance(content, nn.Module) else next(iter(content.values()))).state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_dictionary_of_any_class_and_a_list_of_dictionaries_are_read(tmp_path: Path, zipped: bool) -> None:
    weights = {"w": torch.arange(3.0)}
    read = read_foreign(saved(tmp_path / "a.pth", Attributes(state_dict=Attributes(weights)), zipped))
    assert read["state_dict"]["w"].tolist() == [0, 1, 2]
    for content in ((weights, {"classes": ["a"]}, Settings()), [weights, 3]):
        assert read_foreign(saved(tmp_path / "b.pth", content, zipped))["0"]["w"].tolist() == [0, 1, 2]


def hostile(proof: Path) -> dict[str, Any]:
    python = f"open({str(proof)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, f'echo > "{proof}"'),
        "eval": Call(eval, python),
        "exec": Call(exec, python),
        "import": Call(builtins.__import__, "os"),
        "open": Call(open, str(proof), "w"),
        "method": Call(Path.touch, proof),
        "getattr": Call(getattr, Path("x"), "parent"),
        "call of a result": Call(proof.touch),
        "torch.load": Call(torch.load, str(proof)),
        "nested pickle": Call(pickle.loads, pickle.dumps(Call(os.system, f'echo > "{proof}"'))),
        "set state": Call(noticed, state={"code": Call(eval, python)}),
        "inside an object": argparse.Namespace(x=Call(eval, python)),
        "partial": functools.partial(os.system, f'echo > "{proof}"'),
        "module": Call(sys.exit, 3),
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", hostile(Path("proof")))
def test_a_file_that_asks_to_run_code_is_refused_and_runs_nothing(tmp_path: Path, name: str, zipped: bool) -> None:
    proof = tmp_path / "ran"
    Settings.created.clear()
    content = {"w": torch.ones(2), "x": hostile(proof)[name], "y": Settings()}
    saved(tmp_path / "in.pth", content, zipped)
    if name == "getattr":  # harmless: the result is not used, and enumerations of some versions are written so
        assert isinstance(read_foreign(tmp_path / "in.pth")["x"], Skipped)
    else:
        with pytest.raises(CheckpointError, match="could run code"):
            read_foreign(tmp_path / "in.pth")
    assert not proof.exists()
    assert Settings.created == []


def archive(path: Path, program: bytes, **storages: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("in/data.pkl", program)
        for name, content in storages.items():
            file.writestr(f"in/data/{name}", content)
    return path


def opcodes(*parts: bytes | str) -> bytes:
    """A pickle by hand: text is pushed as a string, bytes are opcodes."""
    program = b"\x80\x02"
    for part in parts:
        program += part if isinstance(part, bytes) else b"X" + struct.pack("<I", len(part)) + part.encode()
    return program + b"."


HANDMADE = {
    "state of a class": opcodes(b"ccollections\nOrderedDict\n", b"}", "__call__", b"cos2\nsystem2\n", b"sb"),
    "attributes of a class": opcodes(b"ctorch._utils\n_rebuild_tensor_v2\n", b"N}", "__new__", "x", b"s\x86b"),
    "call of a string": opcodes("print", b")R"),
    "call of a dictionary": opcodes(b"})R"),
    "object of a string": opcodes("print", b")\x81"),
    "object of a dictionary": opcodes(b"})\x81"),
    "old instance": b"(ios\nsystem\n.",
    "old object": b"(cos\nsystem\nS'true'\no.",
    "registered class": opcodes(b"\x82\x01"),
    "bytes of a terabyte": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "place of a terabyte": opcodes("x", b"r\xff\xff\xff\x7f"),
    "endless": opcodes(b"]q\x00h\x00a"),
    "reference to nothing": opcodes(b"h\x07"),
    "odd reference": opcodes("x", b"Q"),
    "nothing": b"",
    "cut": opcodes("abcdef")[:6],
}


@pytest.mark.parametrize("name", HANDMADE)
def test_programs_by_hand_change_and_run_nothing(tmp_path: Path, name: str) -> None:
    before = {each: dict(vars(each)) for each in (collections.OrderedDict, torch.Tensor, Skipped)}
    path = archive(tmp_path / "in.pth", HANDMADE[name])
    try:
        content = read_inert(path)
    except Exception:  # refused, which read_foreign says in a line
        with pytest.raises(CheckpointError):
            read_foreign(path)
    else:
        assert type(content) in (str, dict, list, Skipped)
    assert all(dict(vars(each)) == attributes for each, attributes in before.items())


def rebuilt(size: bytes, stride: bytes, offset: bytes, count: bytes) -> bytes:
    """A dictionary with a tensor of storage ``0``."""
    reference = opcodes(b"(", "storage", b"ctorch\nFloatStorage\n", "0", "cpu", count, b"tQ")[2:-1]
    other = b"cmodule\nThing\n)R"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + offset + size + stride + b"\x89" + other + b"tR"
    return opcodes(b"}", "w", tensor, b"s")


def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path) -> None:
    good = rebuilt(b"K\x02\x85", b"K\x01\x85", b"K\x00", b"K\x04")
    assert pickletools.genops(good)
    content = struct.pack("<4f", 1, 2, 3, 4)
    path = tmp_path / "in.pth"
    assert read_inert(archive(path, good, **{"0": content}))["w"].tolist() == [1, 2]
    for bad in (
        rebuilt(b"K\x05\x85", b"K\x01\x85", b"K\x00", b"K\x04"),
        rebuilt(b"K\x02\x85", b"K\x09\x85", b"K\x00", b"K\x04"),
        rebuilt(b"K\x02\x85", b"K\x01\x85", b"K\x03", b"K\x04"),
        rebuilt(b"K\x02\x85", b"J\xff\xff\xff\xff\x85", b"K\x02", b"K\x04"),
        rebuilt(b"K\x02\x85", b"K\x01\x85", b"K\x00", b"K\x05"),
    ):
        with pytest.raises(CheckpointError, match="damaged"):
            read_foreign(archive(path, bad, **{"0": content}))


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    """So that no entry is larger than the file."""
    path = tmp_path / "in.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("in/data.pkl", opcodes(b"}"))
    with pytest.raises(ValueError, match="compress"):
        read_inert(path)


def test_many_references_to_one_list_take_no_time(tmp_path: Path) -> None:
    """A list of two lists of two lists …: 2¹⁰⁰ if each were converted again."""
    content: Any = []
    for _ in range(100):
        content = [content, content]
    path = saved(tmp_path / "in.pth", {"a": content, "w": torch.ones(1), "x": Settings()})
    assert read_inert(path)["w"].tolist() == [1]
