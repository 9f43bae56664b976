from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinanet.detection import path_set
from retinanet.detection.path_set import PathSet


@given(st.lists(st.text(st.characters(min_codepoint=0), max_size=3), max_size=60))
def test_it_is_a_set(texts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(path_set, "_RECENT", 4)
        found, expected = PathSet(), set[str]()
        for text in texts:
            assert (text in found) == (text in expected)
            assert found.add(text) == (text not in expected)
            expected.add(text)
        assert len(found) == len(expected)
        assert all(text in found for text in texts)


def test_digests_that_end_with_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_set, "_RECENT", 1)
    monkeypatch.setattr(path_set, "_digest", lambda text: text.encode().ljust(16, b"\0"))
    found = PathSet()
    assert found.add("a")
    assert found.add("")
    assert not found.add("a")
    assert "" in found
    assert "b" not in found
