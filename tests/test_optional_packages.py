"""Packages that only some commands need are not imported by the others."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from retinanet.optional_packages import hidden


def test_a_hidden_package_is_as_if_it_were_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with hidden("wave"), pytest.raises(ModuleNotFoundError):
        importlib.import_module("wave")
    assert importlib.import_module("wave") is sys.modules["wave"]
    with hidden("wave"):  # it is loaded, so other code may use it
        assert importlib.import_module("wave") is sys.modules["wave"]


def test_the_package_is_visible_again_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with pytest.raises(ZeroDivisionError), hidden("wave"):
        _ = 1 / 0
    assert "wave" not in sys.modules


def test_the_network_does_not_import_weights_and_biases() -> None:
    pytest.importorskip("wandb", reason="pip install 'retinanet[wandb]'")
    code = (
        "import sys, retinanet.model; assert 'timm' in sys.modules; assert 'wandb' not in sys.modules; "
        "import wandb; assert wandb.init"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
