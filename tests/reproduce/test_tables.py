"""Pages from made-up results: every number by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from retinanet.errors import RetinaNetError
from retinanet.files import write_json
from retinanet.recipes import load_recipe
from retinanet.reproduce.figures import draw
from retinanet.reproduce.measure import loss_curves
from retinanet.reproduce.plan import SMALL
from retinanet.reproduce.results import MeasuredRow, Outcome, Results, pairs_in_order, refuse_other_results
from retinanet.reproduce.tables import page

SHARES = {"share_foreground": 0.6, "share_hard": 0.3, "share_easy": 0.1}


def ran(seed: int, ap: float, **changes: Any) -> Outcome:
    return replace(Outcome(seed, f"run-s{seed}", ap, ap + 0.2, ap + 0.1, 100.0 + seed, 2400), **changes)


def blown(seed: int, step: int) -> Outcome:
    return Outcome(seed, f"run-s{seed}", None, None, None, 5.0, 80, step, losses=[3.0, 4e7])


def results(rows: list[MeasuredRow], name: str = "table1b", **changes: Any) -> Results:
    found = Results(
        name=name,
        title="Table 1b: the γ",
        claim="The focal loss wins.",
        where="COCO minival",
        note="All rows are plain.",
        command="retinanet reproduce table1b BCCD",
        scale="small",
        data="BCCD",
        train_images=205,
        val_images=87,
        base=load_recipe(str(SMALL)).to_dict(),
        base_flags="--train.batch 2",
        machine="2 cores",
        seeds=[0, 1, 2],
        rows=rows,
    )
    return replace(found, **changes)


ROWS = [
    MeasuredRow("CE", None, "--loss.classification ce", paper_diverges=True, runs=[blown(0, 40), ran(1, 0.2)]),
    MeasuredRow("γ = 0.5", 32.9, "--loss.gamma 0.5", runs=[ran(0, 0.30), ran(1, 0.31), ran(2, 0.35)]),
    MeasuredRow("γ = 2", 34.0, "", runs=[ran(0, 0.34, shares=SHARES), ran(1, 0.40), ran(2, 0.37, shares=SHARES)]),
    MeasuredRow("γ = 5", 32.2, "--loss.gamma 5"),
]


def cells(text: str, setting: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {setting} |") and line.count("|") > 8]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_by_hand() -> None:
    text = page(results(ROWS))
    # 30, 31, 35: mean 32, standard deviation √((4 + 1 + 9) / 2) = 2.6
    assert cells(text, "γ = 0.5")[1:8] == ["32.9", "32.0 ± 2.6 (30.0–35.0)", "52.0", "42.0", "0, 1, 2", "0", "101"]
    assert cells(text, "γ = 0.5")[-1] == "`--loss.gamma 0.5`"
    assert cells(text, "γ = 2")[-1] == "(the base)"
    assert cells(text, "CE")[1:8] == ["diverges", "20.0", "40.0", "30.0", "0, 1", "1 of 2, at step 40", "53"]
    assert cells(text, "γ = 5")[1:3] == ["32.2", "not run"]
    assert "205 images in train and 87 in val" in text
    assert "    retinanet reproduce table1b BCCD" in text
    assert "\n\nAll rows are plain.\n\n" in text
    assert "recipe `paper` with `--train.batch 2`" in text
    assert "| γ = 2 | 60.0% | 30.0% | 10.0% |" in text
    assert "![Table 1b: the γ](table1b.png)" in text


def test_the_orders() -> None:
    text = page(results(ROWS))
    assert "* Best to worst in the paper: γ = 2 > γ = 0.5 > CE." in text  # what was not run has no place
    assert "* Best to worst here: γ = 2 > γ = 0.5 > CE (a diverged seed counts as −1)" in text
    # 30–35 and 34–40 overlap; CE's 20 and the diverged seed are below both
    assert (
        "* 3 of the 3 pairs of settings that differ in the paper have the same order here. Of the 2 pairs whose" in text
    )
    alone = replace(ROWS[0], runs=[ran(1, 0.2)])
    text = page(results([alone, *ROWS[1:]]))
    assert "Of the 0 pairs whose ranges of AP" in text  # ranges of single runs do not count
    below = replace(ROWS[0], runs=[ran(0, 0.2), ran(1, 0.29)])
    text = page(results([below, *ROWS[1:]]))
    assert "Of the 2 pairs whose ranges of AP do not overlap here, 2 have the paper's" in text


def test_agreement_is_counted_pair_by_pair() -> None:
    better = MeasuredRow("a", 30.0, "", runs=[ran(0, 0.1), ran(1, 0.2)])
    worse = MeasuredRow("b", 20.0, "", runs=[ran(0, 0.3), ran(1, 0.4)])
    same = MeasuredRow("c", 20.0, "", runs=[ran(0, 0.15), ran(1, 0.05)])
    lost = MeasuredRow("d", 25.0, "", runs=[blown(0, 3), blown(1, 4)])
    assert pairs_in_order([better, worse]) == (1, 0, 1, 0)
    assert pairs_in_order([worse, better]) == (1, 0, 1, 0)
    assert pairs_in_order([better, same]) == (1, 1, 0, 0)
    assert pairs_in_order([worse, same]) == (0, 0, 0, 0)  # equal in the paper
    assert pairs_in_order([better, lost]) == (1, 1, 1, 1)  # diverged is below everything measured
    assert pairs_in_order([better, worse, same, lost]) == (5, 2, 4, 1)
    unknown = MeasuredRow("e", None, "", runs=[ran(0, 0.9)])
    assert pairs_in_order([better, unknown, MeasuredRow("f", 1.0, "")]) == (0, 0, 0, 0)


def test_one_seed_is_no_spread() -> None:
    text = page(results([MeasuredRow("a", 3.0, "", runs=[ran(0, 0.1)]), MeasuredRow("b", 2.0, "", runs=[ran(0, 0.2)])]))
    assert cells(text, "a")[2] == "10.0"
    assert "There is one seed, so differences may be due to chance" in text


def test_nothing_is_said_of_what_was_not_run() -> None:
    text = page(results([MeasuredRow("a", 3.0, ""), MeasuredRow("b", 2.0, "", runs=[blown(0, 7)])]))
    assert cells(text, "a")[2:8] == ["not run", "", "", "", "", ""]
    assert cells(text, "b")[2:7] == ["diverged", "–", "–", "0", "1 of 1, at step 7"]
    assert "Best to worst" not in text
    assert "Shares of the classification loss" not in text


def test_the_page_of_figure_1_checks_the_papers_claims() -> None:
    text = page(results([], "fig1", extra=loss_curves()))
    by_p = {
        line.split("|")[1].strip(): line.split("|")[-2].strip() for line in text.splitlines() if line.startswith("| 0.")
    }
    # (1 − p)² is what γ = 2 takes: 1/4, 1/100 and about 1/1000
    assert by_p == {"0.5": "4.0", "0.9": "100", "0.968": "977"}


def distribution() -> dict[str, Any]:
    group = {
        "anchors": 1234,
        "curves": {"0": [0, 0.5, 1], "2": [0, 0.1, 1]},
        "hardest": {"0": {"0.01": 0.2}, "2": {"0.01": 0.9}},
    }
    return {"images": 9, "foreground": group, "background": group, "model": "the recipe `paper`, AP 40.1"}


def test_the_page_of_figure_4_says_what_the_hardest_have() -> None:
    text = page(results([], "fig4", extra={"distribution": distribution()}))
    assert "| group | γ | hardest 1% |" in text
    assert "| background | 2 | 90.0% |" in text
    assert "The model: the recipe `paper`, AP 40.1." in text
    assert "9 held-out images of BCCD: 1,234 foreground anchors" in text


def test_the_page_of_figure_2_has_both_speeds() -> None:
    rows = [MeasuredRow("160 px (for R-50, 400 px)", 30.5, "", 64, runs=[ran(0, 0.1)]), MeasuredRow("b", 32.5, "", 72)]
    speed = {rows[0].setting: {"median": 12.4, "low": 11.6, "high": 14.0, "images": 30, "threads": 2}}
    text = page(results(rows, "fig2", extra={"speed": speed}))
    assert "| 160 px (for R-50, 400 px) | 64 | 12 (12–14) | 10.0 |" in text
    assert "| b | 72 | not measured | not run |" in text
    assert "of 30 images, 2 threads, 2 cores" in text


@pytest.mark.parametrize(
    ("name", "rows", "extra"),
    [
        ("table1b", ROWS, {}),
        ("table1b", [MeasuredRow("a", None, "")], {}),
        ("divergence", ROWS, {}),
        ("divergence", [MeasuredRow("a", None, "")], {}),
        ("fig1", [], None),
        ("fig2", [MeasuredRow("160 px (for R-50, 400 px)", 30.5, "", 64, runs=[ran(0, 0.1)])], {"speed": {}}),
        ("fig4", [], {"distribution": distribution()}),
        ("fig4", [], {}),
    ],
)
def test_every_plot_is_drawn(name: str, rows: list[MeasuredRow], extra: dict[str, Any] | None, tmp_path: Path) -> None:
    draw(results(rows, name, extra=loss_curves() if extra is None else extra), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size[0] > 1000
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20


def test_results_of_other_data_are_not_replaced(tmp_path: Path) -> None:
    path, seeds = tmp_path / "table1b.json", results([]).seeds
    refuse_other_results(path, "BCCD", "small", seeds)
    write_json(path, results(ROWS).to_dict())
    refuse_other_results(path, "BCCD", "small", seeds)
    with pytest.raises(RetinaNetError, match="holds results of BCCD at small scale, not of coco80 at small scale"):
        refuse_other_results(path, "coco80", "small", seeds)
    with pytest.raises(RetinaNetError, match="not of BCCD at paper scale"):
        refuse_other_results(path, "BCCD", "paper", seeds)
    base = results([]).base
    asked: dict[str, Any] = {"base": base, "train_images": 205, "val_images": 87}
    refuse_other_results(path, "BCCD", "small", seeds, asked)
    for change in ({"train_images": 40}, {"base": {**base, "train": {"epochs": 1}}}):
        with pytest.raises(RetinaNetError, match="of BCCD with other settings"):
            refuse_other_results(path, "BCCD", "small", seeds, asked | change)
    path.write_text("[]")
    with pytest.raises(RetinaNetError, match="not a results file of this command"):
        refuse_other_results(path, "BCCD", "small", seeds)


def test_a_diverged_seed_counts_as_the_lowest_ap() -> None:
    lucky = MeasuredRow("CE", None, "", paper_diverges=True, runs=[blown(0, 9), blown(1, 9), ran(2, 0.495)])
    steady = MeasuredRow("FL", 34.0, "", runs=[ran(0, 0.30), ran(1, 0.31), ran(2, 0.32)])
    assert lucky.mean() == pytest.approx(49.5)
    assert lucky.standing() == pytest.approx((49.5 - 1 - 1) / 3)
    assert pairs_in_order([lucky, steady])[:2] == (1, 1)
    text = page(results([lucky, steady]))
    assert "* Best to worst here: FL > CE (a diverged seed counts as −1)." in text
    assert "counts as" not in page(results([steady, MeasuredRow("γ = 1", 33.7, "", runs=[ran(0, 0.2)])]))
