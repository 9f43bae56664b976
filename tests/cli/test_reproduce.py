"""``retinanet reproduce`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retinanet import cli
from retinanet.reproduce.rows import EXPERIMENTS
from retinanet.zoo.weights import read_info


def test_without_a_name_it_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*EXPERIMENTS, "all"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tabel1b", "there is no experiment 'tabel1b'; did you mean 'table1b'?"),
        ("table1b nowhere", "nowhere: no such file or folder"),
        ("table1b PARTS --scale paper", "there is no annotations/instances_train2017.json"),
        ("table1b PARTS --jobs 0", "--jobs is 0; it must be at least 1"),
        ("table1b PARTS --images 0", "--images is 0"),
        ("table1b PARTS --seeds 1 -2", "--seeds must not be negative"),
        ("table1b PARTS --recipe nothing", "no recipe 'nothing'"),
        ("table1b --scale paper --recipe modern", "--recipe needs --scale small"),
        ("table1b PARTS --weights x.safetensors", "--weights needs fig4"),
        ("fig4 PARTS --weights x.safetensors", "x.safetensors: no such weights file"),
    ],
)
def test_mistakes_are_one_line(
    words: str,
    said: str,
    parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code = cli.main(["reproduce", *(str(parts) if word == "PARTS" else word for word in words.split())])
    error = capsys.readouterr().err
    assert code in (1, 2)
    assert said in error
    assert error.count("\n") == 1


def test_paper_scale_without_data_prints_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", "table1b", "--scale", "paper"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# Table 1b: the γ of the focal loss, each with its best α (COCO minival, R-50, 600 px)"
    assert lines[7] == "# FL, γ = 0.5, α = 0.5: AP 32.9 in the paper"
    assert lines[8].startswith(
        "retinanet train COCO --recipe paper --loss.alpha 0.5 --loss.gamma 0.5 --data.size 600 --out "
    )
    assert sum(line.startswith("retinanet train COCO ") for line in lines) == 7
    assert list(tmp_path.iterdir()) == []


def test_figure_1_needs_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for scale in ("small", "paper"):
        out = tmp_path / scale
        assert (
            cli.main(["reproduce", "fig1", "--scale", scale, "--out", str(out), "--runs", str(tmp_path / "runs")]) == 0
        )
        assert {path.name for path in out.iterdir()} == {"fig1.md", "fig1.json", "fig1.png"}
        assert "Made by `retinanet reproduce fig1`" in (out / "fig1.md").read_text()
    assert not (tmp_path / "runs").exists()


def test_without_data_the_sample_dataset_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--report", "--seeds", "4"]
    assert cli.main(["reproduce", "table3", *words]) == 0
    found = json.loads((tmp_path / "out" / "table3.json").read_text())
    assert (found["data"], found["train_images"], found["val_images"], found["seeds"]) == ("sample", 240, 60, [4])
    assert found["base"]["train"]["epochs"] == 5
    assert found["command"] == "retinanet reproduce table3 --seeds 4"
    assert [row["setting"] for row in found["rows"]] == [
        "FL, γ = 2, α = 0.25",
        "FL*, γ = 2, β = 1",
        "FL*, γ = 4, β = 0",
    ]


def test_figure_4_of_any_weights(
    sound: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--weights", str(weights), "--out", str(tmp_path), "--runs", str(tmp_path / "runs")]
    assert cli.main(["reproduce", "fig4", str(sound), *words]) == 0
    found = json.loads((tmp_path / "fig4.json").read_text())["extra"]["distribution"]
    size = read_info(weights).config.data.size
    assert found["model"].startswith("the recipe `paper` with `--model.backbone tf_efficientnet_lite0 ")
    assert f"--data.size {size}" in found["model"]
    assert f"The model: {found['model']}." in (tmp_path / "fig4.md").read_text()
    assert not list((tmp_path / "runs").glob("sound/*"))


def test_results_of_other_data_are_refused_before_training(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table3.json").write_text(json.dumps({"data": "BCCD", "scale": "small"}))
    words = ["--out", str(tmp_path), "--runs", str(tmp_path / "runs")]
    assert cli.main(["reproduce", "table3", str(parts), *words]) == 1
    assert "holds results of BCCD at small scale, not of parts" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_results_of_more_seeds_are_kept(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "table3", str(parts), "--out", str(tmp_path), "--runs", str(tmp_path / "runs"), "--report"]
    assert cli.main([*words, "--seeds", "0", "2"]) == 0
    before = (tmp_path / "table3.json").read_text()
    assert cli.main([*words, "--seeds", "0"]) == 1
    assert "table3.json holds results of more seeds; include them (--seeds 0 2)" in capsys.readouterr().err
    assert (tmp_path / "table3.json").read_text() == before
    assert cli.main([*words, "--seeds", "0", "1", "2"]) == 0
    assert json.loads((tmp_path / "table3.json").read_text())["seeds"] == [0, 1, 2]


def test_results_of_more_runs_are_kept(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "table3", str(parts), "--out", str(tmp_path), "--runs", str(tmp_path / "runs"), "--report"]
    assert cli.main(words) == 0
    found = json.loads((tmp_path / "table3.json").read_text())
    found["rows"][0]["runs"] = [{}]
    (tmp_path / "table3.json").write_text(json.dumps(found))
    assert cli.main(words) == 1
    assert "holds results of 1 runs, but the --runs folder has only 0" in capsys.readouterr().err
    assert json.loads((tmp_path / "table3.json").read_text()) == found
