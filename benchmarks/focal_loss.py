"""Focal loss, forward and backward: this package against torchvision, alternately in one process, on the same tensors.

The tensors are those of one 800×800 image: 120,087 anchors × 80 classes, 40 foreground anchors. The floor is a
sigmoid of the logits: a pass that reads them and writes as much as a gradient.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torchvision.ops import sigmoid_focal_loss

from retinanet.losses import focal_loss

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure, print a table and write ``results/focal_loss.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--anchors", type=int, default=120_087)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    logits = torch.randn(arguments.anchors, arguments.classes) - 4.6
    labels = torch.full((arguments.anchors,), -1)
    labels[torch.randperm(arguments.anchors)[:40]] = torch.randint(arguments.classes, (40,))

    def ours(x: torch.Tensor) -> torch.Tensor:
        return focal_loss(x, labels)

    def torchvision(x: torch.Tensor) -> torch.Tensor:
        targets = torch.zeros_like(x)
        foreground = labels.clamp(min=0)
        targets[torch.arange(len(labels))[labels >= 0], foreground[labels >= 0]] = 1.0
        return sigmoid_focal_loss(x, targets, reduction="sum")

    def floor(x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x.detach())

    times: dict[str, list[float]] = {"ours": [], "torchvision": [], "floor": []}
    values: dict[str, float] = {}
    for _ in range(arguments.repeats + 1):
        for name, function in (("ours", ours), ("torchvision", torchvision), ("floor", floor)):
            x = logits.clone().requires_grad_()
            began = time.perf_counter()
            value = function(x)
            if name != "floor":
                value.backward()
                values[name] = value.item()
            times[name].append(1000 * (time.perf_counter() - began))
    assert abs(values["ours"] - values["torchvision"]) < 1e-4 * abs(values["torchvision"]), values
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}  # the first round warms up
    result = {
        "what": f"focal loss forward + backward, {arguments.anchors} anchors x {arguments.classes} classes, float32",
        "median_ms": {name: round(value, 2) for name, value in medians.items()},
        "speedup": round(medians["torchvision"] / medians["ours"], 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "focal_loss.json").write_text(json.dumps(result, indent=2) + "\n")
    for name, value in medians.items():
        print(f"{name:<12}{value:8.1f} ms")
    print(f"{result['speedup']}x torchvision")


if __name__ == "__main__":
    main()
