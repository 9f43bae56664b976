"""Figure 2 of the paper with our data: speed against accuracy, one stage against two stages, at three input sizes.

    python experiments/two_stage.py evaluate DATA [--set bccd ...] [--side faster_rcnn ...] [--seeds 0 1 2]
    python experiments/two_stage.py time DATA [--threads 2] [--images 20]
    python experiments/two_stage.py report

``peers.py`` trains the sides at 320 px; its docstring describes them. ``evaluate`` and ``time`` read the weights in
runs/experiments, which are not trained again for the other input sizes (in the paper, each size has its own training).
``evaluate`` computes the AP on the held-out images at each size; it leaves out what is measured already or has no
weights. ``time`` measures milliseconds per image, from a uint8 array of pixels to its detections, with the sides in
turn in one process. Nothing else should run; the load of the machine is recorded. A side without weights is timed with
random weights, and marked. All write results/fig2_two_stage.json, from which ``report`` writes fig2_two_stage.md and
fig2_two_stage.png. Rows that are missing are listed as not run.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from peers import PEERS, best_rate, build_peer, folder_of, recipe_config
from retinanet.config import DataConfig
from retinanet.data.dataset import Dataset
from retinanet.data.images import read_image
from retinanet.detection.pytorch import PyTorchDetector, load_pytorch
from retinanet.evaluation.coco_ap import coco_metrics
from retinanet.evaluation.predict import predict
from retinanet.files import write_json
from retinanet.machine import cores, processor
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from runs import MAX_SIZE, RESULTS, SETS, SIZE, load_sets

RESULT = RESULTS / "fig2_two_stage.json"
SIDES = (
    "faster_rcnn",
    "faster_rcnn_stride8",
    "torchvision",
    "paper",
    "paper_fitted",
    "modern_focal",
    "modern_flip",
    "modern",
)
SIZES = (256, SIZE, 416)
SEEDS = (0, 1, 2)
SCORE = 0.05  # lowest score of a detection, the default of all sides
WARM_UP = 2  # rounds

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Evaluation:
    """The AP of the weights of a run at an input size; ``summary`` has the COCO metrics by name, 0–1."""

    set: str
    side: str
    seed: int
    size: int
    summary: dict[str, float]
    lr: float | None = None


@dataclass(frozen=True)
class Timing:
    """Milliseconds per image (median and quartiles) of a side at an input size.

    Attributes:
        trained: the weights are those of a training; otherwise they are random.
        parameters: number of parameters.
        proposals: mean number of proposals per image that the second stage classifies; None: there is one stage.
        detections: mean number of detections per image.
    """

    set: str
    side: str
    size: int
    median: float
    low: float
    high: float
    trained: bool
    parameters: int
    proposals: float | None
    detections: float


@dataclass
class Measurements:
    """The content of ``fig2_two_stage.json``; ``timed`` describes the machine, for each set."""

    evaluations: list[Evaluation] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    timed: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Measurements:
        """The measurements in a file; none if there is no file."""
        if not path.exists():
            return cls()
        content = json.loads(path.read_text(encoding="utf-8"))
        evaluations = [Evaluation(**row) for row in content["evaluations"]]
        return cls(evaluations, [Timing(**row) for row in content["timings"]], content["timed"])

    def write(self, path: Path) -> None:
        """Replace the file ``path``."""
        write_json(path, asdict(self), indent=1)


def scaling(size: int) -> DataConfig:
    """Limits of the input; the longer side is in the same proportion to ``size`` as in the trainings."""
    return DataConfig(size=size, max_size=round(size * MAX_SIZE / SIZE))


def spec_of(data_set: str, side: str, seed: int) -> dict[str, Any] | None:
    """The run of ``peers.py``; None: the side has no learning rate yet."""
    spec: dict[str, Any] = {"side": side, "set": data_set, "seed": seed}
    if side in PEERS:
        spec["lr"] = best_rate(data_set, side)
        return spec if spec["lr"] is not None else None
    return spec


def weights_of(data_set: str, side: str, seed: int) -> Path | None:
    """The weights after the last epoch; None: the training is not finished, or its folder is not here."""
    spec = spec_of(data_set, side, seed)
    if spec is None:
        return None
    file = folder_of(spec) / ("weights.safetensors" if side in PEERS else "best.safetensors")
    return file if file.exists() else None


def load_peer(side: str, classes: int, size: int, weights: Path | None) -> Any:
    """One of torchvision's detectors for an input size; without ``weights``, with random ones."""
    torch.manual_seed(0)
    model = build_peer(side, classes, scaling=scaling(size))
    if weights is not None:
        model.load_state_dict(load_file(weights))
    return model.eval()


def load_ours(side: str, train_set: Dataset, size: int, weights: Path | None) -> PyTorchDetector:
    """One of our detectors for an input size; without ``weights``, with random ones."""
    if weights is not None:
        detector = load_pytorch(weights)
        model, info = detector.model, detector.info
    else:
        torch.manual_seed(0)
        config = recipe_config(side, train_set)
        model = RetinaNet.from_config(config.model, config.anchors, len(train_set.classes))
        info = ModelInfo.of(model, train_set.classes, config)
    limits = scaling(size)
    data = replace(info.config.data, size=limits.size, max_size=limits.max_size)
    return PyTorchDetector(model, replace(info, config=replace(info.config, data=data)))


def evaluate(data: Path, data_set: str, side: str, seed: int, size: int) -> Evaluation | None:
    """Measure the AP on the held-out images; None if there are no weights."""
    weights, spec = weights_of(data_set, side, seed), spec_of(data_set, side, seed)
    if weights is None or spec is None:
        return None
    train_set, val_set = load_sets(data, data_set, screening=False)
    if side in PEERS:
        from torchvision_peer import detect

        found = detect(load_peer(side, len(train_set.classes), size, weights), val_set, scaling(size))
    else:
        found = predict(load_ours(side, train_set, size, weights), val_set)
    summary = {name: round(value, 4) for name, value in coco_metrics(val_set, found).summary.items()}
    return Evaluation(data_set, side, seed, size, summary, spec.get("lr"))


def evaluate_all(arguments: argparse.Namespace) -> None:
    """Measure every AP that is missing, and write the file after each."""
    for data_set, side, seed, size in _combinations(arguments):
        measured = Measurements.read(arguments.result)
        spec = spec_of(data_set, side, seed)
        key = (data_set, side, seed, size, spec and spec.get("lr"))
        if key in {(e.set, e.side, e.seed, e.size, e.lr) for e in measured.evaluations}:
            continue
        found = evaluate(arguments.data, data_set, side, seed, size)
        if found is None:
            continue
        # A row with another learning rate is replaced: the rate was the best when it was measured.
        others = [e for e in measured.evaluations if (e.set, e.side, e.seed, e.size) != key[:4]]
        measured.evaluations = [*others, found]
        measured.write(arguments.result)
        print(f"{data_set} {side} seed {seed} {size} px: AP {found.summary['AP']:.4f}", flush=True)


def _combinations(arguments: argparse.Namespace) -> Iterator[tuple[str, str, int, int]]:
    for seed in arguments.seeds:
        for data_set in arguments.set:
            for side in arguments.side:
                for size in arguments.sizes:
                    yield data_set, side, seed, size


@dataclass
class Timed:
    """A side at an input size, while it is timed; ``call`` returns the number of detections."""

    side: str
    size: int
    trained: bool
    parameters: int
    call: Callable[[Pixels], int]
    proposals: list[int] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    detections: list[int] = field(default_factory=list)

    def measure(self, image: Pixels, keep: bool) -> None:
        """Detect objects in ``image`` and, with ``keep``, note the time."""
        self.proposals = self.proposals if keep else []
        began = time.perf_counter()
        found = self.call(image)
        if keep:
            self.milliseconds.append(1000 * (time.perf_counter() - began))
            self.detections.append(found)

    def timing(self, data_set: str) -> Timing:
        """The result."""
        low, median, high = (round(float(v), 1) for v in np.percentile(self.milliseconds, (25, 50, 75)))
        proposals = round(float(np.mean(self.proposals)), 1) if self.proposals else None
        detections = round(float(np.mean(self.detections)), 1)
        return Timing(
            data_set, self.side, self.size, median, low, high, self.trained, self.parameters, proposals, detections
        )


def timed_peer(side: str, size: int, classes: int, weights: Path | None) -> Timed:
    """One of torchvision's detectors, ready to be timed. It scales the images itself."""
    model = load_peer(side, classes, size, weights)

    def call(image: Pixels) -> int:
        with torch.inference_mode():
            (found,) = model([torch.from_numpy(image).permute(2, 0, 1).float() / 255])
        return len(found["scores"].tolist())

    timed = Timed(side, size, weights is not None, sum(p.numel() for p in model.parameters()), call)
    if side != "torchvision":
        model.roi_heads.register_forward_pre_hook(lambda _, inputs: timed.proposals.append(len(inputs[1][0])))
    return timed


def timed_ours(side: str, size: int, train_set: Dataset, weights: Path | None) -> Timed:
    """One of our detectors, ready to be timed."""
    detector = load_ours(side, train_set, size, weights)

    def call(image: Pixels) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an image reaches the limit on detections
            return len(detector(image, score=SCORE))

    return Timed(side, size, weights is not None, sum(p.numel() for p in detector.model.parameters()), call)


def time_set(
    data: Path, data_set: str, sides: Sequence[str], sizes: Sequence[int], images: int
) -> tuple[list[Timing], int]:
    """Time all sides at all sizes in turn, image by image; return the timings and the number of images."""
    train_set, val_set = load_sets(data, data_set, screening=False)
    timed: list[Timed] = []
    for side in sides:
        seeds = [weights for seed in SEEDS if (weights := weights_of(data_set, side, seed))]
        weights = seeds[0] if seeds else None
        for size in sizes:
            if side in PEERS:
                timed.append(timed_peer(side, size, len(train_set.classes), weights))
            else:
                timed.append(timed_ours(side, size, train_set, weights))
    indices = sorted({round(i) for i in np.linspace(0, len(val_set) - 1, min(len(val_set), images))})
    pixels = [np.ascontiguousarray(read_image(val_set.path(index))) for index in indices]
    for number, image in enumerate([*pixels[:1] * WARM_UP, *pixels]):
        for each in timed:
            each.measure(image, keep=number >= WARM_UP)
    return [each.timing(data_set) for each in timed], len(pixels)


def time_all(arguments: argparse.Namespace) -> None:
    """Time the sides on each set, and write the file after each set."""
    torch.set_num_threads(arguments.threads)
    for data_set in arguments.set:
        load = os.getloadavg()[0]
        found, images = time_set(arguments.data, data_set, arguments.side, arguments.sizes, arguments.images)
        measured = Measurements.read(arguments.result)
        new = {(t.set, t.side, t.size) for t in found}
        measured.timings = [t for t in measured.timings if (t.set, t.side, t.size) not in new] + found
        machine = f"{processor()}, {cores()} cores, torch {torch.__version__}"
        measured.timed[data_set] = {
            "machine": machine,
            "threads": arguments.threads,
            "images": images,
            "load_before": round(load, 2),
        }
        measured.write(arguments.result)
        for each in found:
            print(f"{data_set} {each.side} {each.size} px: {each.median} ms ({each.low}–{each.high})", flush=True)


def main() -> None:
    """Evaluate, time or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    for action in ("evaluate", "time", "report"):
        sub = actions.add_parser(action)
        sub.add_argument("--result", type=Path, default=RESULT)
        if action == "report":
            continue
        sub.add_argument("data", type=Path)
        sub.add_argument("--set", nargs="+", choices=list(SETS), default=list(SETS))
        sub.add_argument("--side", nargs="+", choices=SIDES, default=list(SIDES))
        sub.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
        if action == "evaluate":
            sub.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
        else:
            sub.add_argument("--threads", type=int, default=2)
            sub.add_argument("--images", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.action == "report":
        from two_stage_report import write_report

        write_report(Measurements.read(arguments.result), arguments.result)
        return
    (evaluate_all if arguments.action == "evaluate" else time_all)(arguments)


if __name__ == "__main__":
    main()
