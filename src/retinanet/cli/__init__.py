"""The command line: a module per verb, imported when its verb is used, so that ``--help`` answers at once."""

from __future__ import annotations

import difflib
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from retinanet._version import __version__
from retinanet.cli.terminal import console, errors
from retinanet.errors import ConfigError, RetinaNetError

# Each verb: the module whose ``run`` does it, and what it does.
VERBS = {
    "train": ("train", "train a detector on your pictures"),
    "eval": ("evaluate", "measure a detector's average precision on a dataset"),
    "detect": ("detect", "find objects in pictures; draw them and write them down"),
    "convert": ("convert", "turn torchvision's RetinaNet weights into a file of this package"),
    "reproduce": ("reproduce", "run the paper's tables and figures again, small or on COCO"),
    "bench": ("bench", "time this package beside torchvision on this machine"),
    "data inspect": ("data_inspect", "say what is wrong or hard to learn in a dataset, before training on it"),
    "data convert": ("data_convert", "write a dataset as COCO, Pascal VOC, YOLO or CSV"),
    "data anchors": ("data_anchors", "fit the anchors to your boxes, and say whether it is worth it"),
    "data sample": ("data_sample", "make a synthetic dataset to try everything on"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 for an error, 2 for a wrong command line, 130 after Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a letter must not end a training
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if argv[:1] == ["--version"]:
        console.print(f"retinanet {__version__}")
        return 0
    if not argv or argv[0] in ("-h", "--help", "help") or argv in (["data"], ["data", "--help"], ["data", "-h"]):
        _help()
        return 0
    words = 2 if " ".join(argv[:2]) in VERBS or argv[0] == "data" else 1
    verb = " ".join(argv[:words])
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.4)
        hint = f"did you mean 'retinanet {near[0]}'?" if near else f"there are {', '.join(VERBS)}"
        errors.print(f"error: no command {verb!r}; {hint}")
        return 2
    if verb != "bench":  # which times both sides as a program has them that only imports them
        # Large tensors in huge pages: the kernel has less to hand out, 5 to 10 % of a training or detection on a CPU.
        # PyTorch reads this once, when it first allocates; it does nothing where the system has no such pages.
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        return int(import_module(f"retinanet.cli.{VERBS[verb][0]}").run(argv[words:]))
    except RetinaNetError as error:
        first, *rest = str(error).splitlines()
        errors.print(" | ".join([f"error: {first}", *(" ".join(line.split()) for line in rest)]))
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt as stopped:
        errors.print(f"{stopped}; go on with --resume" if str(stopped) else "stopped")
        return 130
    except (OSError, MemoryError, RuntimeError) as error:
        failure = _machine_failure(error, verb)
        if failure is None:
            raise
        errors.print(f"error: {failure}")
        return 1


def _help() -> None:
    console.print("usage: retinanet COMMAND …\n\nRetinaNet: train, evaluate and run the focal-loss detector.\n")
    for verb, (_, summary) in VERBS.items():
        console.print(f"  {verb:<14}{summary}")
    console.print("\n'retinanet COMMAND --help' lists a command's settings; 'retinanet --version' prints the version.")


def _machine_failure(error: BaseException, verb: str) -> str | None:
    """A line for what the machine, not the program, ran out of; None for anything else."""
    text = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    memory = (
        isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "DefaultCPUAllocator" in str(error)
    )
    if memory:
        remedy = "lower --train.batch or --data.size" if verb == "train" else "end other programs that use much"
        return f"out of memory ({text}); {remedy}"
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{os.strerror(error.errno)}"
    if "DataLoader worker" in text:
        return f"an image-loading process ended unexpectedly ({text}); try --data.workers 0"
    return None
