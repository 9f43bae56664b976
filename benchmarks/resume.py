"""Kill ``retinanet detect`` again and again: ``python benchmarks/resume.py WORK [--images N] [--plot]``.

The script writes N small images and a tiny detector with random weights into WORK. It runs ``retinanet detect`` over
them once without interruption, and once with kills (SIGKILL) after random numbers of images, each followed by
``--resume``. It compares the files of both runs byte by byte, and samples the resident memory. The result is
``benchmarks/results/resume.json`` and a plot of the memory, ``docs/images/resume.png``. ``--plot`` only draws the plot.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from retinanet.config import Config
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.zoo.weights import save_weights

RESULT = Path(__file__).parent / "results" / "resume.json"
PLOT = Path(__file__).parent.parent / "docs" / "images" / "resume.png"
SIDE = 32

# Seconds between two samples of the memory.
_PERIOD = 1.0


def write_detector(path: Path) -> None:
    """A detector with random weights that finds something in most images."""
    settings = {"backbone": "test_efficientnet", "channels": 32, "subnet_depth": 1}
    config = Config.from_dict({"model": settings, "data": {"size": SIDE}})
    torch.manual_seed(0)
    model = RetinaNet.from_config(config.model, config.anchors, 2, pretrained=False)
    torch.nn.init.normal_(model.classification.predict.weight, std=0.06)
    torch.nn.init.constant_(model.classification.predict.bias, -2.5)  # type: ignore[arg-type]
    save_weights(path, dict(model.state_dict()), ModelInfo.of(model, ("a", "b"), config))


def write_images(folder: Path, count: int) -> None:
    """Noise in files of a thousand per folder; every 1,000th cannot be read."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number // 1000:04}" / f"{number:07}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 1000 == 500:
            path.write_bytes(b"no image")
            continue
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse.repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)).save(path)


def resident(process: int) -> float:
    """The resident memory of a process in megabytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return 0.0


def run(work: Path, out: Path, resume: bool, kill_after: int | None) -> tuple[bool, list[list[float]]]:
    """Run the command; return whether it ended by itself, and ``[images done, megabytes]`` of each sample."""
    words = ["detect", work / "tiny.safetensors", work / "images", "--out", out, "--no-draw", "--max-detections", "5"]
    code = "import sys; from retinanet.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *map(str, words), *(["--resume"] if resume else [])]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    samples = list[list[float]]()
    while process.poll() is None:
        time.sleep(_PERIOD * random.uniform(0.8, 1.2))
        record = out / "detections.jsonl"
        if record.exists():
            with record.open("rb") as file:
                done = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
            samples.append([done, round(resident(process.pid), 1)])
        if kill_after is not None and samples and samples[-1][0] - samples[0][0] > kill_after:
            process.kill()
            process.wait()
            return False, samples
    return True, samples


def plot() -> None:
    """Draw the memory of both runs over the number of images that are done."""
    content = json.loads(RESULT.read_text(encoding="utf-8"))
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for name, label in (
        ("killed", f"{content['kills']} kills, each followed by --resume"),
        ("whole", "without a kill"),
    ):
        samples = np.array([sample for sample in content[name] if sample[1]])  # 0: the process has ended
        axes.plot(samples[:, 0], samples[:, 1], "." if name == "killed" else "-", markersize=3, label=label)
    axes.set(xlabel="images done", ylabel="resident memory (MB)", ylim=(0, None))
    axes.legend(loc="center")
    axes.grid(alpha=0.3)
    figure.savefig(PLOT, dpi=110)


def main() -> None:
    """Run both, compare, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("work", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--plot", action="store_true")
    given = parser.parse_args()
    if given.plot:
        plot()
        return
    write_detector(given.work / "tiny.safetensors")
    write_images(given.work / "images", given.images)
    begin = time.monotonic()
    _, whole = run(given.work, given.work / "whole", False, None)
    seconds = time.monotonic() - begin
    chance, kills, killed = random.Random(0), 0, list[list[float]]()
    ended = False
    while not ended:
        resume = (given.work / "killed" / "detections.jsonl").exists()
        kill_after = round(chance.uniform(0.02, 0.3) * given.images)
        ended, samples = run(given.work, given.work / "killed", resume, kill_after)
        killed += samples
        kills += not ended
    names = ["detections.jsonl", "detections.json", "detections.csv", "failed.txt"]
    equal = {name: _same(given.work / "whole" / name, given.work / "killed" / name) for name in names}
    content = {"images": given.images, "kills": kills, "seconds": round(seconds), "equal": equal}
    text = json.dumps({**content, "whole": whole, "killed": killed})
    RESULT.write_text(text.replace('"killed"', '\n"killed"').replace('"whole"', '\n"whole"') + "\n")
    plot()
    print(json.dumps(content))


def _same(first: Path, second: Path) -> bool:
    return first.read_bytes() == second.read_bytes()


if __name__ == "__main__":
    main()
