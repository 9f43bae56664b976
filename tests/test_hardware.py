"""Small operations run in one thread, and the number of threads is restored."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from retinanet.hardware import one_thread


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@one_thread()
def number_of_threads() -> int:
    return torch.get_num_threads()


@pytest.mark.usefixtures("three_threads")
def test_one_thread_is_used_and_the_number_is_restored() -> None:
    assert number_of_threads() == 1
    assert number_of_threads() == 1
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_the_number_is_restored_after_an_error() -> None:
    with pytest.raises(ValueError, match="wrong"), one_thread():
        raise ValueError("wrong")
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_threads_that_already_use_torch_are_not_affected() -> None:
    ready, inside, found = threading.Event(), threading.Event(), []

    def other() -> None:
        found.append(torch.get_num_threads())
        ready.set()
        inside.wait(60)
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait(60)
    with one_thread():
        inside.set()
        thread.join()
    assert found == [3, 3]
