from __future__ import annotations

from retinanet.serve.memory import give_memory_back


def test_memory_can_be_given_back_anywhere() -> None:
    give_memory_back()
    give_memory_back()
