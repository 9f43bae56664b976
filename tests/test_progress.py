from __future__ import annotations

import importlib.util
import io

import pytest
from rich.console import Console

from retinanet.progress import plain_console, progress_bar, shows_progress


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    plain_console().print("runs/[bold]a[/bold]/" + "long/" * 100)
    assert capsys.readouterr().out == "runs/[bold]a[/bold]/" + "long/" * 100 + "\n"


def test_a_log_file_gets_no_progress_bar() -> None:
    console = Console(file=(text := io.StringIO()))
    assert not shows_progress(console)
    with progress_bar(console, "images", 3) as bar:
        bar.advance(1)
        bar.update(2, "nearly")
    assert not text.getvalue().strip()


def test_a_terminal_gets_one() -> None:
    console = Console(file=(text := io.StringIO()), force_terminal=True)
    assert shows_progress(console)
    with progress_bar(console, "images", 3) as bar:
        bar.update(2, "nearly")
    assert "nearly" in text.getvalue()


@pytest.mark.parametrize("installed", [False, True])
def test_a_notebook_gets_one_if_it_can_redraw_it(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("rich") if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert shows_progress(Console(force_jupyter=True)) == installed
