from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from retinanet.training.stopping import StopRequest, stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_interrupts_nothing(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_requests() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # signals that come together are one request
        assert stop.requested
    assert signal.getsignal(number) == before


def test_a_later_ctrl_c_interrupts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stop = StopRequest()
    stop.handle(signal.SIGINT, None)
    now[0] += 0.6
    stop.handle(signal.SIGTERM, None)  # torchrun sends it after Ctrl-C
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGINT, None)


def test_a_thread_of_another_program_can_train() -> None:
    seen: list[bool] = []

    def enter() -> None:
        with stop_requests() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [False]
