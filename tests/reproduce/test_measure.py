"""Loss curves, times, and the distribution of the loss, through a trained file and real images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from retinanet.anchors import BACKGROUND, assign, make_grid
from retinanet.data.formats.open_dataset import read_split
from retinanet.data.loader import evaluation_loader
from retinanet.errors import DataError
from retinanet.reproduce import measure
from retinanet.zoo.weights import load_weights


def test_loss_curves_are_the_papers_formulas() -> None:
    curves = measure.loss_curves()
    assert [float(name) for name in curves["fl"]] == [0, 0.5, 1, 2, 5]
    for name, values in curves["fl"].items():
        for p, value in zip(curves["p_t"], values, strict=True):
            assert value == pytest.approx(-((1 - p) ** float(name)) * math.log(p), abs=2e-4 / p)
    sigmoid = [1 / (1 + math.exp(-x)) for x in curves["x_t"]]
    assert curves["variants"]["CE"] == pytest.approx([-math.log(p) for p in sigmoid], abs=1e-5)
    star = [math.log(1 + math.exp(-(4 * x + 0))) / 4 for x in curves["x_t"]]
    assert curves["variants"]["FL*, γ = 4, β = 0"] == pytest.approx(star, abs=1e-5)
    star = [math.log(1 + math.exp(-(2 * x + 1))) / 2 for x in curves["x_t"]]
    assert curves["variants"]["FL*, γ = 2, β = 1"] == pytest.approx(star, abs=1e-5)


def test_milliseconds(parts: Path, weights: Path) -> None:
    found = measure.milliseconds(weights, read_split(parts, "train"), images=4, warm_up=1)
    assert 0 < found["low"] <= found["median"] <= found["high"] < 60_000
    assert found["images"] == 4
    assert found["threads"] == torch.get_num_threads()


def test_distribution_against_a_naive_recomputation(parts: Path, weights: Path) -> None:
    dataset = read_split(parts, "train")
    found = measure.loss_distribution(weights, dataset)
    assert found["images"] == len(dataset)

    model, info = load_weights(weights)
    config = info.config
    dataset = dataset.with_classes(info.classes)
    losses: dict[str, dict[float, list[float]]] = {
        g: {γ: [] for γ in measure.GAMMAS} for g in ("foreground", "background")
    }
    for index in dataset:
        ((sample,),) = evaluation_loader(dataset.subset([index]), config.data)
        height, width = (-(-side // 32) * 32 for side in sample.image.shape[-2:])
        pixels = torch.zeros(1, 3, height, width)
        mean, std = (torch.tensor(values)[:, None, None] for values in (info.mean, info.std))
        pixels[0, :, : sample.image.shape[-2], : sample.image.shape[-1]] = (sample.image.float() / 255 - mean) / std
        with torch.inference_mode():
            p = torch.cat(model(pixels).logits, dim=1)[0].double().sigmoid().numpy()
        matched = assign(make_grid(config.anchors, (height, width)), sample.boxes, sample.ignore, config.assign).numpy()
        for gamma in measure.GAMMAS:
            own = p[matched >= 0, sample.labels.numpy()[matched[matched >= 0]]]
            losses["foreground"][gamma] += (-((1 - own) ** gamma) * np.log(own)).tolist()
            rest = p[matched == BACKGROUND]
            losses["background"][gamma] += (-(rest**gamma) * np.log(1 - rest)).sum(axis=1).tolist()
    for group, by_gamma in losses.items():
        for gamma, values in by_gamma.items():
            ordered = np.sort(values)
            assert found[group]["anchors"] == len(ordered) > 0
            sums = np.concatenate([[0], np.cumsum(ordered)]) / ordered.sum()
            curve = np.interp(np.linspace(0, len(ordered), 501), np.arange(len(sums)), sums)
            assert found[group]["curves"][f"{gamma:g}"] == pytest.approx(curve.tolist(), abs=1e-3)
            for fraction, share in found[group]["hardest"][f"{gamma:g}"].items():
                count = max(1, round(float(fraction) * len(ordered)))
                assert share == pytest.approx(ordered[-count:].sum() / ordered.sum(), abs=1e-3)


def test_sampling_ends_with_the_papers_number_of_anchors(
    parts: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "BACKGROUND_ANCHORS", 4000)  # an image has at most 1746
    seen: list[int] = []
    found = measure.loss_distribution(weights, read_split(parts, "train"), seen.append)
    assert found["images"] == sum(seen) == 3
    assert 4000 <= found["background"]["anchors"] <= 3 * 1746


def test_no_object_matches(parts: Path, weights: Path) -> None:
    dataset = read_split(parts, "train")
    empty = dataset.with_boxes(np.zeros(len(dataset.boxes), dtype=bool))
    with pytest.raises(DataError, match=r"no foreground anchor in 9 images"):
        measure.loss_distribution(weights, empty)
