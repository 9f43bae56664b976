"""The tools of :mod:`retinanet.training.tracking`: TensorBoard, Weights & Biases, MLflow. All work without a server."""

from __future__ import annotations

import json
import logging
import netrc
import os
import shlex
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import PIL.Image

from retinanet.config import Config
from retinanet.errors import ConfigError
from retinanet.files import write_json

Image = npt.NDArray[np.uint8]

# Names of scalars and images start with one of these groups and a slash.
GROUPS = ("train", "val", "images")

# Name of the project (W&B) and the experiment (MLflow), unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME is set.
_PROJECT = "retinanet"

# Seconds between writes. Values are collected in between, so that most steps do not wait for a disk or a server.
_FLUSH_SECONDS = 10.0

# Time that a training waits for a server, in seconds.
_SERVER_SECONDS = 20


class Tool(Protocol):
    """A tool that stores scalars and images.

    Attributes:
        view: the command that shows the stored values.
        held: for each of ``GROUPS``, the last step that the tool had stored before the training was resumed.
    """

    view: str
    held: Mapping[str, int]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Store values by name."""

    def images(self, step: int, images: Mapping[str, Image]) -> None:
        """Store uint8 RGB images ``(H, W, 3)`` by name."""

    def close(self, failed: bool) -> None:
        """Write pending values and mark the run as finished or failed."""


class TensorBoard:
    """Event files in ``RUN/tensorboard``."""

    def __init__(self, out: Path, config: Config, resume_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = out / "tensorboard"
        known = bool(resume_at) and any(folder.glob("events.*"))
        self.view = f"tensorboard --logdir {shlex.quote(str(folder))}"
        self.held: Mapping[str, int] = dict.fromkeys(GROUPS, resume_at if known else 0)
        # TensorBoard hides values of earlier files from purge_step on.
        self._writer: Any = SummaryWriter(str(folder), purge_step=resume_at + 1 if known else 0, flush_secs=1)
        if not known:
            self._writer.add_text("config", "\n".join(f"    {k}: {v}" for k, v in _settings(config).items()), 0)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write values by name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def images(self, step: int, images: Mapping[str, Image]) -> None:
        """Write images by name."""
        for name, image in images.items():
            self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self, failed: bool) -> None:
        """Write pending values and end the run."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases in ``RUN/wandb``. It is offline, unless WANDB_MODE is set or the user is logged in."""

    def __init__(self, out: Path, config: Config, resume_at: int) -> None:
        import wandb

        identity = _identity(out, "wandb", uuid.uuid4().hex[:8], new=not resume_at)
        # An offline run cannot be resumed: its folder is replaced by a new folder with all steps.
        for folder in (out / "wandb").glob(f"offline-run-*-{identity}"):
            shutil.rmtree(folder, ignore_errors=True)
        settings = wandb.Settings(
            silent=True,  # also turns off prompts
            console="off",
            disable_git=True,
            save_code=False,
            reinit="create_new",  # does not touch a run that the caller may have open
            init_timeout=_SERVER_SECONDS,
            finish_timeout=30 * _SERVER_SECONDS,  # uploads
            x_disable_machine_info=True,
        )
        wandb.setup(settings)  # must precede init, which would otherwise prompt for a key
        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=os.environ.get("WANDB_NAME", out.resolve().name),
            dir=out,
            id=identity,
            resume="allow" if resume_at else None,
            config=config.to_dict(),
            mode=None if "WANDB_MODE" in os.environ or logged_in() else "offline",
            settings=settings,
        )
        self.view = self._run.url or f"wandb sync {shlex.quote(str(Path(self._run.dir).parent))}"
        self.held: Mapping[str, int] = dict.fromkeys(GROUPS, max(0, self._run.step - 1))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write values by name."""
        self._run.log(dict(values), step=step)

    def images(self, step: int, images: Mapping[str, Image]) -> None:
        """Write images by name."""
        self._run.log({n: self._wandb.Image(image, file_type="jpg") for n, image in images.items()}, step=step)

    def close(self, failed: bool) -> None:
        """Write pending values and end the run."""
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run of MLflow in ``RUN/mlflow.db`` and ``RUN/mlflow``, or at MLFLOW_TRACKING_URI.

    The database is SQLite, because MLflow has refused plain files since version 3.14.
    """

    def __init__(self, out: Path, config: Config, resume_at: int) -> None:
        for name, value in {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_SERVER_SECONDS),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        }.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
        out = out.resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._artifacts = None if uri else (out / "mlflow").as_uri()
        if not uri:
            if set("%?") & set(str(out)):  # the database would be written elsewhere
                raise ConfigError(f"{out}: MLflow does not accept % or ? in the path of a run")
            uri = f"sqlite:///{out / 'mlflow.db'}"
        self.view = f"mlflow ui --backend-store-uri {shlex.quote(uri)}" if uri.startswith("sqlite:") else uri
        self._client: Any = MlflowClient(tracking_uri=uri)
        self._metric: Callable[..., Any] = Metric
        self._waiting: list[Any] = []
        self._written = time.monotonic()
        self.held: Mapping[str, int] = {}
        self._run = _identity(out, "mlflow", "", new=not resume_at)
        if self._run and self._continue(resume_at):
            return
        self._run = self._client.create_run(self._experiment(), run_name=out.name).info.run_id
        _identity(out, "mlflow", self._run, new=True)
        self._client.log_batch(self._run, params=[Param(k, str(v)) for k, v in _settings(config).items()])

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = self._client.get_experiment_by_name(name)
        if known and self._artifacts and known.artifact_location != self._artifacts:  # the folder was moved
            name = f"{name} in {self._artifacts}"
            known = self._client.get_experiment_by_name(name)
        return str(known.experiment_id if known else self._client.create_experiment(name, self._artifacts))

    def _continue(self, resume_at: int) -> bool:
        """Resume the run. Return False if the folder was moved, because its artifacts are then at the old path."""
        if self._artifacts and not self._client.get_run(self._run).info.artifact_uri.startswith(self._artifacts + "/"):
            return False
        # MLflow cannot delete steps, so steps that it already has are not sent again.
        last = {"train": "train/loss", "val": "val/AP"}
        histories = {group: self._client.get_metric_history(self._run, name) for group, name in last.items()}
        self.held = {group: max((m.step for m in ms), default=0) for group, ms in histories.items()}
        self.held = {**self.held, "images": resume_at}  # later images replace files of the same name
        self._client.update_run(self._run, status="RUNNING")
        return True

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write values by name."""
        now = int(time.time() * 1000)
        self._waiting += [self._metric(name, value, now, step) for name, value in values.items()]
        if (
            len(self._waiting) > 900 or time.monotonic() - self._written > _FLUSH_SECONDS
        ):  # MLflow accepts at most 1000 values at once
            self._flush()

    def images(self, step: int, images: Mapping[str, Image]) -> None:
        """Write images by name."""
        for name, image in images.items():
            folder, _, stem = name.rpartition("/")
            file = f"{folder}/step_{step:07d}/{stem}.jpg"
            self._client.log_image(self._run, PIL.Image.fromarray(image), artifact_file=file)

    def close(self, failed: bool) -> None:
        """Write pending values and end the run."""
        self._flush()
        self._client.set_terminated(self._run, status="FAILED" if failed else "FINISHED")

    def _flush(self) -> None:
        for start in range(0, len(self._waiting), 1000):
            self._client.log_batch(self._run, metrics=self._waiting[start : start + 1000])
        self._waiting, self._written = [], time.monotonic()


TOOLS: dict[str, Callable[[Path, Config, int], Tool]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def _settings(config: Config) -> dict[str, Any]:
    return {f"{group}.{name}": value for group, values in config.to_dict().items() for name, value in values.items()}


def _identity(out: Path, tool: str, fresh: str, new: bool) -> str:
    """Return the run's id in ``tool`` from ``RUN/tracking.json``; if it is missing or ``new``, store ``fresh``."""
    path = out / "tracking.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict):
        known = {}
    if new or not isinstance(known.get(tool), str):
        known[tool] = fresh
        write_json(path, known)
    return str(known[tool])


def logged_in() -> bool:
    """Return whether W&B would find a key. W&B's own function is not called, because it may prompt the user and use the
    network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
