"""The command line: one module per command, imported only when it is used, so that ``--help`` is fast."""

from __future__ import annotations

import difflib
import io
import os
import select
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module

from retinanet._version import __version__
from retinanet.cli.failures import machine_failure
from retinanet.cli.terminal import console, errors
from retinanet.errors import ConfigError, RetinaNetError
from retinanet.interrupts import interrupted_once
from retinanet.optional_packages import explain_missing_packages

# The module and the summary of each command. The module's function ``run`` runs the command.
VERBS = {
    "train": ("train", "train a detector on your images"),
    "eval": ("evaluate", "evaluate a detector on a dataset, or compare two"),
    "detect": ("detect", "detect objects in images and videos; draw them and write them to files"),
    "serve": ("serve", "answer requests for detections over HTTP, with a page for trying a model"),
    "export": ("export", "write a model as ONNX, OpenVINO or torch.export, and compare it with the weights"),
    "verify": ("verify", "compare an exported file with the weights it was exported from"),
    "convert": ("convert", "convert a RetinaNet of torchvision, detectron2, mmdetection or odtk"),
    "reproduce": ("reproduce", "reproduce the paper's tables and figures, at small scale or on COCO"),
    "bench": ("bench", "compare the speed of this package and torchvision on this machine"),
    "data inspect": ("data_inspect", "find defects and hard objects in a dataset before training on it"),
    "data convert": ("data_convert", "write a dataset as COCO, Pascal VOC, YOLO or CSV"),
    "data anchors": ("data_anchors", "fit the anchors to the boxes of a dataset, and compare the coverage"),
    "data sample": ("data_sample", "write a synthetic dataset for trying the commands"),
}

# Commands that handle Ctrl-C and SIGTERM themselves. All others remove what they have written in part.
_OWN_SIGNALS = ("train", "detect", "serve", "reproduce")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, 1 for an error, 2 for an invalid command line, 130 after Ctrl-C."""
    try:
        code = _run(argv)
        sys.stdout.flush()
    except OSError as error:
        if not _reader_has_ended():
            errors.print(f"error: standard output: {machine_failure(error, '')}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes when it ends
        return 1
    return code


def _reader_has_ended() -> bool:
    """Whether the program that reads the output, such as ``head``, has ended."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(argv: Sequence[str] | None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a character that the terminal cannot show must not end a training
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
    if verb != "bench":  # bench times both sides with PyTorch's default memory settings
        # Allocate large tensors in huge pages, which saves 5 to 10% of a training or detection on a CPU. PyTorch reads
        # this setting once, at its first allocation. The setting has no effect on systems without huge pages.
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    signals = nullcontext() if verb in _OWN_SIGNALS else interrupted_once()
    try:
        with signals, explain_missing_packages(f"retinanet {verb}"):
            return int(import_module(f"retinanet.cli.{VERBS[verb][0]}").run(argv[words:]))
    except RetinaNetError as error:
        first, *rest = str(error).splitlines()
        errors.print(" | ".join([f"error: {first}", *(" ".join(line.split()) for line in rest)]))
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt as stopped:
        hint = "; go on with --resume" if getattr(stopped, "resumable", True) else ""
        errors.print(f"{stopped}{hint}" if str(stopped) else "stopped")
        return 130
    except (OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and _reader_has_ended():
            raise
        failure = machine_failure(error, verb)
        if failure is None:
            raise
        errors.print(f"error: {failure}")
        return 1


def _help() -> None:
    console.print("usage: retinanet COMMAND …\n\nRetinaNet: train, evaluate and run the focal-loss detector.\n")
    for verb, (_, summary) in VERBS.items():
        console.print(f"  {verb:<14}{summary}")
    console.print("\n'retinanet COMMAND --help' lists a command's settings; 'retinanet --version' prints the version.")
