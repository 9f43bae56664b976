"""The command line: one function per verb. Heavy imports happen inside the verbs: ``--help`` answers at once."""

from __future__ import annotations

import difflib
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from retinanet._version import __version__
from retinanet.config import Config, load_recipe
from retinanet.errors import CheckpointError, ConfigError, RetinaNetError

if TYPE_CHECKING:
    from retinanet.data.dataset import Dataset
    from retinanet.evaluate.ap import Metrics

Arguments = TypeVar("Arguments")

# Messages contain paths and brackets; rich must not take them for markup.
console = Console(markup=False, highlight=False, soft_wrap=True)
errors = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class TrainArguments:
    """Train a detector on your pictures."""

    dataset: Annotated[Positional[str], arg(metavar="DATA")]
    """Folder of a COCO, Pascal VOC, YOLO or CSV dataset (recognised by itself), or its annotation file."""
    out: Annotated[Path, arg(metavar="RUN")] = Path("runs/retinanet")
    """Folder for weights, metrics and curves."""
    recipe: Annotated[str, arg(metavar="NAME|FILE")] = "modern"
    """Settings to start from: modern, paper, or a YAML file; the flags below change single ones."""
    resume: bool = False
    """Go on with the run in --out; the result is what an uninterrupted run gives."""
    config: Annotated[Config, arg(name="")] = field(default_factory=Config)


@dataclass(frozen=True)
class EvalArguments:
    """Measure a detector's average precision on a dataset."""

    weights: Annotated[Positional[Path], arg(metavar="WEIGHTS")]
    """A .safetensors file of a training, or the name of a bundled model such as person."""
    dataset: Annotated[Positional[str], arg(metavar="DATA")]
    """Folder of a COCO, Pascal VOC, YOLO or CSV dataset, or its annotation file."""
    split: str = "val"
    """Which part of DATA."""
    out: Path | None = None
    """Folder for metrics.json, detections.json and report.html; unset: eval/ beside WEIGHTS."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network."""
    device: str = "auto"
    """cpu, cuda, …"""


@dataclass(frozen=True)
class DetectArguments:
    """Find objects in pictures; draw them and write them down."""

    weights: Annotated[Positional[Path], arg(metavar="WEIGHTS")]
    """A .safetensors file of a training, or the name of a bundled model such as person."""
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE...")]
    """Images, folders, or patterns such as 'photos/*.jpg'."""
    out: Path = Path("detections")
    """Folder for the drawn pictures and the files."""
    score: float = 0.3
    """Lowest score reported."""
    format: Literal["coco", "csv", "yolo", "voc"] | None = None
    """detections.json (coco), detections.csv, labels/*.txt (yolo) or annotations/*.xml (voc); unset: coco and csv."""
    draw: bool = True
    """Write the pictures with boxes drawn on them."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network."""
    device: str = "auto"
    """cpu, cuda, …"""


@dataclass(frozen=True)
class BenchArguments:
    """Time this package beside torchvision, in turn and on the same tensors; about ten minutes on two cores."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME...]")] = ()
    """What to measure: loss, assignment, post-processing, detector, training-step, files, photograph, evaluation."""
    out: Path = Path("bench")
    """Folder for bench.json and scaling.png."""
    scaling: bool = True
    """Also draw how times grow with boxes, classes and pixels (only when everything is measured)."""
    threads: int | None = None
    """Threads for PyTorch; unset: its own choice."""


@dataclass(frozen=True)
class ConvertArguments:
    """Turn another implementation's weights into a file of this one: torchvision's RetinaNets (v1 and v2) so far."""

    source: Annotated[Positional[Path], arg(metavar="IN.pth")]
    """A state dict, or a checkpoint that holds one; nothing in it is executed."""
    target: Annotated[Positional[Path], arg(metavar="OUT.safetensors")]
    """File to write."""
    classes: tuple[str, ...] = ()
    """Names of the network's outputs, in order; unset: COCO's for 91 outputs, else class 0, class 1, …"""
    norm_eps: float | None = None
    """Epsilon of the batch norm; unset: 0 if it is frozen, as in torchvision's published first version, else 1e-5."""


@dataclass(frozen=True)
class SampleArguments:
    """Make a synthetic dataset to try everything on: small parts on cluttered benches, in COCO format."""

    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to make."""
    images: int = 300
    """Pictures in all; a fifth of them is val."""
    seed: int = 0
    """Same seed, same pictures."""
    size: int = 320
    """Side of the pictures, in pixels."""


def train(argv: Sequence[str]) -> int:
    """``retinanet train DATA --out RUN``."""
    default = TrainArguments(dataset=tyro.MISSING, config=_starting_config(argv))
    arguments = _parse(TrainArguments, argv, "retinanet train", default=default)

    from retinanet.data.formats.detect import read_train_val
    from retinanet.data.verify import verify_images
    from retinanet.model.backbone import require_backbone
    from retinanet.progress import progress_bar
    from retinanet.train.checkpoint import check_same_settings, refuse_other_run
    from retinanet.train.loop import train as run
    from retinanet.zoo.weights import read_info

    config = arguments.config
    # What can be refused now is not refused after the images were checked, which can take minutes.
    refuse_other_run(arguments.out, arguments.resume)
    if (arguments.out / "last.safetensors").exists():
        check_same_settings(arguments.out / "last.safetensors", read_info(arguments.out / "last.safetensors"), config)
    require_backbone(config.model.backbone)
    best = arguments.out / "best.safetensors"
    train_set, val_set, notes = read_train_val(
        arguments.dataset, config.data.train, config.data.val, config.data.val_fraction
    )
    if config.data.verify:
        with progress_bar(console, "checking images", len(train_set) + len(val_set)) as bar:
            train_set, train_notes = verify_images(train_set, config.data.skip_broken, bar.advance)
            val_set, val_notes = verify_images(val_set, config.data.skip_broken, bar.advance)
            notes = [*notes, *train_notes, *val_notes]
    for dataset in (train_set, val_set):
        _describe(dataset)
    _notes(notes)
    _make_folder(arguments.out)
    result = run(config, train_set, val_set, arguments.out, arguments.resume, console)
    metrics = result.metrics
    console.print(
        f"best AP {metrics['AP']:.4f}, AP50 {metrics['AP50']:.4f} on {val_set.name} "
        f"after {result.seconds:.0f} s of training; curves in {arguments.out / 'curves.png'}"
    )
    flags = f" --split {config.data.val}" if config.data.val else ""
    _next(f"retinanet eval {_quoted(best)} {_quoted(arguments.dataset)}{flags}")
    return 0


def evaluate(argv: Sequence[str]) -> int:
    """``retinanet eval WEIGHTS DATA``."""
    arguments = _parse(EvalArguments, argv, "retinanet eval")

    from retinanet.data.formats.detect import read_eval
    from retinanet.detect.detector import load
    from retinanet.evaluate import ap, predict
    from retinanet.evaluate.report import write_report
    from retinanet.files import write_json
    from retinanet.progress import progress_bar

    detector = load(arguments.weights, arguments.precision, arguments.device)
    dataset, notes = read_eval(arguments.dataset, arguments.split, detector.info.config.data.val_fraction)
    dataset = dataset.with_classes(detector.classes)
    _describe(dataset)
    _notes(notes)
    out = arguments.out or arguments.weights.parent / "eval"
    _make_folder(out)
    with progress_bar(console, "images", len(dataset)) as bar:
        predictions = predict.predict(detector, dataset, bar.advance)
    metrics = ap.evaluate(dataset, predictions)
    write_json(out / "metrics.json", metrics.to_dict(), indent=2)
    write_json(out / "detections.json", predictions.to_coco(dataset))
    write_report(out / "report.html", dataset, predictions, metrics, arguments.weights)
    _table(metrics)
    console.print(f"wrote {out}/metrics.json, detections.json and report.html")
    example = dataset.path(0)
    _next(f"retinanet detect {_quoted(arguments.weights)} {_quoted(example)} --out detections")
    return 0


def detect(argv: Sequence[str]) -> int:
    """``retinanet detect WEIGHTS SOURCE...``."""
    arguments = _parse(DetectArguments, argv, "retinanet detect")
    if not 0 <= arguments.score < 1:
        raise ConfigError(f"--score is {arguments.score}; it lies between 0 and 1")
    if not arguments.sources:
        raise ConfigError("nothing to detect in; name pictures, folders or patterns after WEIGHTS")

    from retinanet.detect.detector import load
    from retinanet.detect.sources import find_pictures, pictures_with_detections
    from retinanet.detect.write import Writer
    from retinanet.progress import progress_bar

    pictures = find_pictures(arguments.sources)
    detector = load(arguments.weights, arguments.precision, arguments.device)
    formats = (arguments.format,) if arguments.format else ("coco", "csv")
    writer = Writer(arguments.out, detector.classes, formats, arguments.draw, pictures)
    _make_folder(arguments.out)
    failed: list[str] = []
    with progress_bar(console, "pictures", len(pictures)) as bar:
        for picture in pictures_with_detections(detector, pictures, arguments.score):
            if picture.error is not None:
                failed.append(picture.error)
            else:
                writer.add(picture)
            bar.advance(1)
    written = writer.finish()
    done = len(pictures) - len(failed)
    counts = ", ".join(f"{name} {count}" for name, count in writer.counts.most_common(8)) or "nothing"
    console.print(f"{done} picture{'s' * (done != 1)}: {counts} (score ≥ {arguments.score:g})")
    console.print(f"wrote {', '.join(written)} in {arguments.out}")
    if failed:
        raise RetinaNetError(f"{len(failed)} of {len(pictures)} pictures could not be read: {'; '.join(failed[:3])}")
    return 0


def convert(argv: Sequence[str]) -> int:
    """``retinanet convert IN.pth OUT.safetensors``."""
    arguments = _parse(ConvertArguments, argv, "retinanet convert")
    source, target = arguments.source, arguments.target
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target}: name the file to write OUT.safetensors; that is what is written")
    if target.exists():
        raise RetinaNetError(f"{target} already exists; choose another name or remove it")

    from retinanet.zoo.importers import from_torchvision
    from retinanet.zoo.pickled import read_pickled
    from retinanet.zoo.weights import save_weights

    try:
        detector = from_torchvision(read_pickled(source), "fp32", "cpu", arguments.classes or None, arguments.norm_eps)
    except CheckpointError as error:
        message = str(error)
        raise CheckpointError(message if message.startswith(str(source)) else f"{source}: {message}") from error
    _make_folder(target.parent, flag="")
    save_weights(target, detector.model.state_dict(), detector.info)
    model, names = detector.info.config.model, detector.classes
    listed = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    norm = "group norm" if model.subnet_norm == "group" else "no norm"
    console.print(
        f"wrote {target}: RetinaNet {model.backbone}, {model.channels} channels, P6 from {model.p6_from.upper()}, "
        f"{norm} in the subnets, {len(names)} output{'s' * (len(names) != 1)} ({listed})"
    )
    if not arguments.classes and names[0] == "class 0":
        console.print("note: torchvision keeps no class names; add --classes NAME NAME … to give them")
    _next(f"retinanet detect {_quoted(target)} PHOTO.jpg")
    return 0


def data_sample(argv: Sequence[str]) -> int:
    """``retinanet data sample OUT``."""
    arguments = _parse(SampleArguments, argv, "retinanet data sample")

    from retinanet.data.synthetic import write_sample

    write_sample(arguments.out, arguments.images, arguments.seed, arguments.size)
    console.print(f"wrote {arguments.images} pictures with their annotations to {arguments.out}")
    _next(f"retinanet train {_quoted(arguments.out)} --out runs/sample --data.size 320 --train.epochs 6")
    return 0


def bench(argv: Sequence[str]) -> int:
    """``retinanet bench``."""
    arguments = _parse(BenchArguments, argv, "retinanet bench")

    from retinanet.bench.run import run

    _make_folder(arguments.out)
    run(arguments.names, arguments.out, console, arguments.scaling, arguments.threads)
    return 0


VERBS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "train a detector on your pictures"),
    "eval": (evaluate, "measure a detector's average precision on a dataset"),
    "detect": (detect, "find objects in pictures; draw them and write them down"),
    "convert": (convert, "turn torchvision's RetinaNet weights into a file of this package"),
    "bench": (bench, "time this package beside torchvision on this machine"),
    "data sample": (data_sample, "make a synthetic dataset to try everything on"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 for an error, 2 for a wrong command line, 130 after Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a letter must not end a training
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if argv[:1] == ["--version"]:
        console.print(f"retinanet {__version__}")
        return 0
    if not argv or argv[0] in ("-h", "--help", "help") or argv in (["data"], ["data", "--help"], ["data", "-h"]):
        _help()
        return 0
    words = 2 if " ".join(argv[:2]) in VERBS or argv[0] == "data" else 1
    verb = " ".join(argv[:words])
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.4)
        hint = f"did you mean 'retinanet {near[0]}'?" if near else f"there are {', '.join(VERBS)}"
        errors.print(f"error: no command {verb!r}; {hint}")
        return 2
    try:
        return VERBS[verb][0](argv[words:])
    except RetinaNetError as error:
        first, *rest = str(error).splitlines()
        errors.print(" | ".join([f"error: {first}", *(" ".join(line.split()) for line in rest)]))
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt as stopped:
        errors.print(f"{stopped}; go on with --resume" if str(stopped) else "stopped")
        return 130
    except (OSError, MemoryError, RuntimeError) as error:
        failure = _machine_failure(error)
        if failure is None:
            raise
        errors.print(f"error: {failure}")
        return 1


def _starting_config(argv: Sequence[str]) -> Config:
    """Defaults of the flags: the recipe's settings, or on ``--resume`` those of the run that is there."""
    last = Path(_option(argv, "--out") or TrainArguments.out) / "last.safetensors"
    recipe = _option(argv, "--recipe")
    if "--resume" in argv and last.exists() and recipe is None:
        from retinanet.zoo.weights import read_info

        return read_info(last).config
    return load_recipe(recipe or "modern")


def _option(argv: Sequence[str], name: str) -> str | None:
    """The value of ``--name value`` or ``--name=value``, needed before the other flags' defaults are known."""
    joined = [word.split("=", 1)[1] for word in argv if word.startswith(f"{name}=")]
    following = [value for word, value in pairwise(argv) if word == name]
    return next(iter([*following, *joined]), None)


def _parse(kind: type[Arguments], argv: Sequence[str], prog: str, default: Arguments | None = None) -> Arguments:
    if default is None:
        return tyro.cli(kind, args=list(argv), prog=prog)
    return tyro.cli(kind, args=list(argv), prog=prog, default=default)


def _make_folder(out: Path, flag: str = "--out ") -> None:
    """Refuse a folder that results cannot go to before the work is done, not after."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RetinaNetError(f"{flag}{out}: no such folder can be made ({error.strerror}); choose another") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise RetinaNetError(f"{flag}{out}: writing there is not permitted; choose another folder")


def _describe(dataset: Dataset) -> None:
    boxes, ignored = int((~dataset.ignore).sum()), int(dataset.ignore.sum())
    counts = sorted(dataset.class_counts().items(), key=lambda item: -item[1])
    names = ", ".join(f"{name} {count}" for name, count in counts[:6]) + (" …" if len(counts) > 6 else "")
    regions = f", {ignored} ignore region{'s' * (ignored != 1)}" if ignored else ""
    console.print(f"{dataset.name}: {len(dataset)} images, {boxes} boxes ({names}){regions}")
    kinds: dict[tuple[str, str], list[str]] = {}
    for problem in dataset.problems:
        # the kind's first words say what it is; coordinates differ from box to box
        kinds.setdefault((problem.kind.split(" (")[0], problem.action), []).append(str(problem))
    for (kind, action), found in kinds.items():
        console.print(f"  {len(found)} × {kind}, {action}:")
        for line in found[:3]:
            console.print(f"    {line}")
        if len(found) > 3:
            console.print(f"    … and {len(found) - 3} more")


def _notes(notes: Sequence[str]) -> None:
    for note in notes[:10]:
        console.print(f"note: {note}")
    if len(notes) > 10:
        console.print(f"note: … and {len(notes) - 10} more")


def _table(metrics: Metrics) -> None:
    for kind in ("AP", "AR"):  # two rows of six fit the narrowest terminal
        chosen = {name: value for name, value in metrics.summary.items() if name.startswith(kind)}
        summary = Table(box=None, pad_edge=False)
        for name in chosen:
            summary.add_column(name, justify="right", min_width=5)
        summary.add_row(*(f"{value:.3f}" if value >= 0 else "–" for value in chosen.values()))
        console.print(summary)
    if len(metrics.per_class) > 1:
        table = Table(box=None, pad_edge=False)
        for name in ("class", "boxes", "AP", "AP50"):
            table.add_column(name, justify="left" if name == "class" else "right")
        for name, row in sorted(metrics.per_class.items(), key=lambda item: -item[1]["boxes"])[:20]:
            table.add_row(name, f"{row['boxes']:.0f}", f"{row['AP']:.3f}", f"{row['AP50']:.3f}")
        console.print(table)
        if len(metrics.per_class) > 20:
            console.print(f"… and {len(metrics.per_class) - 20} more classes in metrics.json")


def _next(command: str) -> None:
    console.print(f"next: {command}")


def _quoted(path: str | Path) -> str:
    import shlex

    return shlex.quote(str(path))


def _help() -> None:
    console.print("usage: retinanet COMMAND …\n\nRetinaNet: train, evaluate and run the focal-loss detector.\n")
    for verb, (_, summary) in VERBS.items():
        console.print(f"  {verb:<14}{summary}")
    console.print("\n'retinanet COMMAND --help' lists a command's settings; 'retinanet --version' prints the version.")


def _machine_failure(error: BaseException) -> str | None:
    """A line for what the machine, not the program, ran out of; None for anything else."""
    text = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    memory = (
        isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "DefaultCPUAllocator" in str(error)
    )
    if memory:
        return f"out of memory ({text}); lower --train.batch or --data.size"
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{os.strerror(error.errno)}"
    if "DataLoader worker" in text:
        return f"an image-loading process ended unexpectedly ({text}); try --data.workers 0"
    return None


if __name__ == "__main__":
    sys.exit(main())
