"""What the paper's tables compare: the numbers typed once more, and settings that say what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest
import tyro

from retinanet.cli.train import Arguments as TrainArguments
from retinanet.config import Config, LossConfig
from retinanet.errors import ConfigError
from retinanet.recipes import load_recipe
from retinanet.reproduce.plan import DataSource, Request, changed, paper_commands, paper_plan
from retinanet.reproduce.rows import EXPERIMENTS, Experiment, Row, find_experiments

# The paper's tables, read from it independently of rows.py.
TABLE_1A = {0.10: 0.0, 0.25: 10.8, 0.50: 30.2, 0.75: 31.1, 0.90: 30.8, 0.99: 28.7, 0.999: 25.1}
TABLE_1B = {
    (0.0, 0.75): 31.1,
    (0.1, 0.75): 31.4,
    (0.2, 0.75): 31.9,
    (0.5, 0.50): 32.9,
    (1.0, 0.25): 33.7,
    (2.0, 0.25): 34.0,
    (5.0, 0.25): 32.2,
}
TABLE_1C = {(1, 1): 30.3, (2, 1): 31.9, (3, 1): 31.8, (1, 3): 32.4, (2, 3): 34.2, (3, 3): 34.0, (4, 3): 33.8}
OHEM = {(128, 0.7): 31.1, (256, 0.7): 31.8, (512, 0.7): 30.6, (128, 0.5): 32.8, (256, 0.5): 31.0, (512, 0.5): 27.6}
OHEM_1_3 = {(128, 0.5): 31.1, (256, 0.5): 28.3, (512, 0.5): 24.0}
TABLE_1E = {
    50: {400: (30.5, 64), 500: (32.5, 72), 600: (34.3, 98), 700: (35.1, 121), 800: (35.7, 153)},
    101: {400: (31.9, 81), 500: (34.4, 90), 600: (36.0, 122), 700: (37.1, 154), 800: (37.8, 198)},
}


def at_paper(row: Row) -> Config:
    return changed(load_recipe("paper"), row.changes, row.paper)


def effective(loss: LossConfig) -> tuple[float, float | None]:
    """γ and α that a loss has, whatever it is called."""
    gamma, alpha = {"focal": (loss.gamma, loss.alpha), "alpha_ce": (0.0, loss.alpha), "ce": (0.0, None)}[
        loss.classification
    ]
    return gamma, alpha


def test_table_1a() -> None:
    rows = EXPERIMENTS["table1a"].rows
    found = {at_paper(row).loss.alpha: row.ap for row in rows}
    assert found == TABLE_1A
    assert {at_paper(row).loss.classification for row in rows} == {"alpha_ce"}


def test_table_1b() -> None:
    assert {effective(at_paper(row).loss): row.ap for row in EXPERIMENTS["table1b"].rows} == TABLE_1B


def test_table_1c() -> None:
    rows = EXPERIMENTS["table1c"].rows
    anchors = [at_paper(row).anchors for row in rows]
    assert {(len(a.scales), len(a.ratios)): row.ap for a, row in zip(anchors, rows, strict=True)} == TABLE_1C
    for spec in anchors:  # an octave in equal steps from 1
        assert spec.scales == pytest.approx([2 ** (k / len(spec.scales)) for k in range(len(spec.scales))])
        assert spec.ratios in ((1.0,), (0.5, 1.0, 2.0))


def test_table_1d() -> None:
    found: dict[str, dict[tuple[int, float], float | None]] = {"ohem": {}, "ohem_1_3": {}}
    *mined, last = EXPERIMENTS["table1d"].rows
    for row in mined:
        loss = at_paper(row).loss
        found[loss.classification][loss.ohem_batch, loss.ohem_nms] = row.ap
    assert found == {"ohem": OHEM, "ohem_1_3": OHEM_1_3}
    assert (effective(at_paper(last).loss), last.ap) == ((2.0, 0.25), 36.0)
    few = [row.setting for row in EXPERIMENTS["table1d"].chosen(every=False, small=True)]
    assert few == ["OHEM, batch 128, NMS 0.5", "OHEM 1:3, batch 128, NMS 0.5", "FL, γ = 2, α = 0.25"]


@pytest.mark.parametrize("name", ["table1e", "fig2"])
def test_table_1e(name: str) -> None:
    found: dict[int, dict[int, tuple[float | None, float | None]]] = {50: {}, 101: {}}
    for row in EXPERIMENTS[name].rows:
        config = at_paper(row)
        depth = 101 if "101" in config.model.backbone else 50
        found[depth][config.data.size] = (row.ap, row.milliseconds)
    assert found == TABLE_1E
    small = EXPERIMENTS[name].chosen(every=False, small=True)
    sizes = [(row.small or {})["data"]["size"] for row in small]
    assert [size / 320 for size in sizes] == [size / 800 for size in (400, 500, 600, 700, 800)]


def test_table_3_and_the_prior() -> None:
    fl, *star = EXPERIMENTS["table3"].rows
    assert (effective(at_paper(fl).loss), fl.ap) == ((2.0, 0.25), 34.0)
    losses = [(at_paper(row).loss, row.ap) for row in star]
    assert [(loss.classification, loss.gamma, loss.star_beta, ap) for loss, ap in losses] == [
        ("focal_star", 2.0, 1.0, 33.8),
        ("focal_star", 4.0, 0.0, 33.9),
    ]
    prior = {
        (at_paper(row).loss.classification, at_paper(row).model.prior): row for row in EXPERIMENTS["divergence"].rows
    }
    assert {key: (row.ap, row.diverges) for key, row in prior.items()} == {
        ("ce", 0.5): (None, True),
        ("ce", 0.01): (30.2, False),
        ("focal", 0.5): (None, False),
        ("focal", 0.01): (34.0, False),
    }


def test_network_and_size_on_coco() -> None:
    for name, experiment in EXPERIMENTS.items():
        for row in experiment.rows:
            config = at_paper(row)
            if name in ("table1e", "fig2"):
                continue
            depth = "resnet101.tv_in1k" if name in ("table1d", "fig4") else "resnet50.tv_in1k"
            assert (config.model.backbone, config.data.size) == (depth, 600), (name, row.setting)
            assert config.train == load_recipe("paper").train


def test_names() -> None:
    assert [experiment.name for experiment in find_experiments(["fig1"])] == ["fig1"]
    assert len(find_experiments(["all"])) == len(EXPERIMENTS) == 10
    with pytest.raises(ConfigError, match=r"there is no experiment 'tabel1b'; did you mean 'table1b'\?"):
        find_experiments(["tabel1b"])
    with pytest.raises(ConfigError, match=r"choose one of table1a, .*, divergence, all"):
        find_experiments(["x"])


def requested(experiments: list[Experiment], seeds: tuple[int, ...] = (0,)) -> Request:
    return Request(experiments, paper_plan("COCO", Path("runs")), seeds, Path("out"), every_row=True)


def test_printed_commands_train_with_the_papers_settings() -> None:
    """As the parser of ``retinanet train`` reads them, they are the configurations of the runs, folder and all."""
    asked = requested(find_experiments(["all"]), (0, 3))
    commands = paper_commands(asked)
    assert len(commands) == 2 * sum(len(experiment.rows) for experiment in EXPERIMENTS.values())
    folders = {}
    for number, (_, row, command) in enumerate(commands):
        program, verb, *words = command.split()
        assert (program, verb, words[:3]) == ("retinanet", "train", ["COCO", "--recipe", "paper"])
        default = TrainArguments(dataset=tyro.MISSING, config=load_recipe("paper"))
        parsed = tyro.cli(TrainArguments, args=words, default=default)
        run = asked.plan.run(row, (0, 3)[number % 2])
        assert parsed.config == run.config
        assert parsed.out == run.folder
        folders[run.folder] = run.config
    assert len(folders) == len({repr(config) for config in folders.values()})


def test_source_is_what_is_printed() -> None:
    assert requested([]).plan.source == DataSource("COCO")
    assert requested([]).runs() == []
