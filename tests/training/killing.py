"""Train, be killed, go on, and again: ``python killing.py DATA OUT KILLS SEED`` prints what happened as JSON.

Forks, so that 20 starts do not cost 20 imports of torch. Every other child is killed in the middle of writing a
checkpoint, the others at a moment chosen at random.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from retinanet.config import Config
from retinanet.data.formats.train_val import read_train_val
from retinanet.recipes import load_recipe
from retinanet.training import loop

SECONDS = 1.5  # of a start until it is killed, at most; about what an epoch takes


def config() -> Config:
    """The default recipe, small, with a checkpoint after every step."""
    recipe = load_recipe("modern")
    return replace(
        recipe,
        model=replace(recipe.model, backbone="test_efficientnet", channels=32, subnet_depth=1, pretrained=False),
        data=replace(recipe.data, size=64, workers=0, repeat_rare=0.5),
        train=replace(recipe.train, epochs=4, batch=4, precision="fp32", checkpoint_minutes=1e-9, device="cpu"),
    )


def train(data: Path, out: Path) -> None:
    """One start."""
    train_set, val_set, _ = read_train_val(data)
    loop.train_on(config(), train_set, val_set, out, resume=True)


def killed_while_writing(data: Path, out: Path, writes: int) -> None:
    """Train until the ``writes``-th checkpoint is half on disk, and die."""
    genuine, left = Path.write_bytes, writes

    def half(path: Path, content: bytes) -> int:
        nonlocal left
        left -= 1
        if left == 0:
            genuine(path, content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return genuine(path, content)

    Path.write_bytes = half  # type: ignore[method-assign, assignment]
    train(data, out)


def main(data: Path, out: Path, kills: int, seed: int) -> None:
    """Start and kill until there were ``kills``, then let one finish."""
    torch.set_num_threads(1)
    chance = random.Random(seed)
    ends: list[str] = []
    starts = 0
    while len(ends) < kills:
        starts += 1
        child = os.fork()
        writing = len(ends) % 2 == 1
        writes, wait = chance.randint(1, 3), chance.uniform(0.02, SECONDS)
        if child == 0:
            (killed_while_writing if writing else lambda d, o, _: train(d, o))(data, out, writes)
            os._exit(0)
        if not writing:
            time.sleep(wait)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            ends.append("writing" if writing else "random")
        else:  # it was done before it could be killed: begin anew, the next kills count as well
            assert os.waitstatus_to_exitcode(status) == 0
            if starts > 3 * kills:
                break
            for file in out.iterdir():
                file.unlink()
    train(data, out)
    print(json.dumps({"kills": ends, "starts": starts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
