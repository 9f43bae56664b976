from __future__ import annotations

import re
from pathlib import Path

from retinanet.evaluation.error_kinds import ERROR_KINDS, TOTALS
from retinanet.evaluation.tide import ALL_KINDS, KINDS

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


def test_every_kind_of_tide_has_its_words() -> None:
    assert (*ERROR_KINDS, *TOTALS) == ALL_KINDS
    for code, kind in ERROR_KINDS.items():
        assert kind.code == code
        assert kind.noun and kind.meaning and kind.remedy  # noqa: PT018
        assert bool(kind.detection) == (code in KINDS)  # only these are errors of a detection


def test_the_manual_has_the_same_words() -> None:
    rows = re.findall(r"^\| (\w+) \| (.+?) \| .+ \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    table = {code: meaning for code, meaning in rows if code in ERROR_KINDS}
    assert table == {code: kind.meaning for code, kind in ERROR_KINDS.items()}
