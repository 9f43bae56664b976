"""Run the command line in the process of a test."""

from __future__ import annotations

import shlex
from typing import NamedTuple

import pytest

from retinanet import cli
from retinanet.cli import detect, evaluate, train
from retinanet.cli.terminal import parse

# A network and images small enough that an epoch takes a second. 64 channels, because group norm needs more than one
# number per group, and a 64-pixel image has one position on P7.
SMALL = [
    *("--data.size", "64", "--data.workers", "0", "--train.precision", "fp32", "--train.device", "cpu"),
    *("--model.channels", "64", "--model.subnet-depth", "1", "--train.batch", "4"),
]


class Said(NamedTuple):
    """The exit code of a command and the text of its two streams."""

    code: int
    out: str
    err: str


class Command:
    """Runs the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *argv: object) -> Said:
        """Run ``retinanet`` with these words."""
        try:
            code = cli.main([str(word) for word in argv])
        except SystemExit as stop:  # the parser ends the program this way
            code = int(stop.code or 0)
        return Said(code, *self.capsys.readouterr())

    def fails(self, *argv: object, code: int = 1) -> str:
        """Run a command that has to fail with ``code``; returns its only line on stderr."""
        said = self(*argv)
        assert said.code == code, said
        lines = said.err.strip().splitlines()
        assert len(lines) == 1, said.err
        assert lines[0].startswith("error: ")
        return lines[0]


def next_command(said: str) -> list[str]:
    """The words of the ``next:`` line at the end of a command's output, whose flags are checked by parsing them."""
    last = said.strip().splitlines()[-1]
    assert last.startswith("next: retinanet ")
    words = shlex.split(last.removeprefix("next: "))[1:]
    kinds: dict[str, type] = {"train": train.Arguments, "eval": evaluate.Arguments, "detect": detect.Arguments}
    parse(kinds[words[0]], words[1:], f"retinanet {words[0]}")
    return words
