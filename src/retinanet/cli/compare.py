"""``retinanet eval A B DATA``: two detectors on the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from retinanet.cli.terminal import console, describe, make_folder, print_next, print_notes
from retinanet.errors import ConfigError
from retinanet.flags import quoted

if TYPE_CHECKING:
    from retinanet.cli.evaluate import Arguments
    from retinanet.evaluate.compare import Change, Comparison


def run(arguments: Arguments) -> int:
    """Compare the two detectors that ``arguments`` names: weights come before files of detections."""
    from retinanet.config import DataConfig
    from retinanet.data.formats.detect import read_eval
    from retinanet.detect.detector import load
    from retinanet.evaluate.compare import Contestant, compare, shared_classes
    from retinanet.evaluate.compare_page import verdict, write_comparison
    from retinanet.evaluate.detections import read_detections
    from retinanet.evaluate.predict import predict
    from retinanet.files import write_json
    from retinanet.progress import progress_bar

    detectors = [load(weights, arguments.precision, arguments.device) for weights in arguments.weights]
    fractions = sorted(
        {detector.info.config.data.val_fraction for detector in detectors} or {DataConfig().val_fraction}
    )
    dataset, notes = read_eval(arguments.dataset, arguments.split, fractions[0])
    if notes and len(fractions) > 1:  # the notes say that a part of train was set aside
        raise ConfigError(
            f"{arguments.dataset}: no val split, and the two models set different parts of train aside for it "
            f"({fractions[0]:g} and {fractions[1]:g}); name a split with --split"
        )
    describe(dataset)
    print_notes(notes)
    sources = [*arguments.weights, *arguments.detections]
    known = [*(detector.classes for detector in detectors), *(dataset.classes for _ in arguments.detections)]
    # Refuses, before the work, what cannot be compared.
    shared = shared_classes(dataset, (str(sources[0]), str(sources[1])), (known[0], known[1]))
    out = arguments.out or sources[1].parent / "compare"
    make_folder(out)
    read, detected = [], []
    for file in arguments.detections:  # first, so that a mistake in one costs no waiting
        predictions, notes = read_detections(file, dataset)
        print_notes(notes)
        read.append(Contestant(str(file), predictions, dataset.classes))
    for weights, detector in zip(arguments.weights, detectors, strict=True):
        with progress_bar(console, f"images, {weights}", len(dataset)) as bar:
            predictions = predict(detector, dataset, bar.advance)  # labels are the detector's own
        detected.append(Contestant(str(weights), predictions, detector.classes))
    a, b = [*detected, *read]
    counts = dataset.class_counts()
    with progress_bar(console, "resampling, classes", 2 * sum(counts[name] > 0 for name in shared)) as bar:
        comparison = compare(dataset, a, b, progress=bar.advance)
    write_json(out / "compare.json", comparison.to_dict(), indent=2)
    remark = write_comparison(out / "compare.html", comparison)
    _table(comparison)
    console.print(verdict(comparison.total["AP"]))
    print_notes([remark] if remark else [])
    console.print(f"wrote {out}/compare.json and compare.html")
    better = sources[int(comparison.total["AP"].delta >= 0)]
    flag = "--detections " if better in arguments.detections else ""
    split = f" --split {quoted(arguments.split)}" if arguments.split != "val" else ""
    print_next(f"retinanet eval {flag}{quoted(better)} {quoted(arguments.dataset)}{split}")
    return 0


def _table(comparison: Comparison) -> None:
    console.print(f"A: {comparison.names[0]}\nB: {comparison.names[1]}")
    for names, whose in zip(comparison.only, ("A alone knows", "B alone knows", "neither knows"), strict=True):
        if names:
            listed = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
            console.print(f"note: not compared, because {whose} them: {listed}")
    total = Table(box=None, pad_edge=False)
    for name in ("", "A", "B", "B − A", "95 % interval", "B better"):
        total.add_column(name, justify="right" if name else "left")
    for name, change in comparison.total.items():
        total.add_row(name, *_cells(change), f"{change.better:.1%}" if change.better >= 0 else "–")
    console.print(total)
    if len(comparison.per_class) > 1:
        boxes = comparison.dataset.class_counts()
        table = Table(box=None, pad_edge=False)
        for name in ("class", "boxes", "AP of A", "AP of B", "B − A", "95 % interval"):
            table.add_column(name, justify="left" if name == "class" else "right")
        rows = sorted(comparison.per_class.items(), key=lambda item: -boxes[item[0]])
        for name, changes in rows[:20]:
            table.add_row(name, str(boxes[name]), *_cells(changes["AP"]))
        console.print(table)
        if len(rows) > 20:
            console.print(f"… and {len(rows) - 20} more classes in compare.json")


def _cells(change: Change) -> list[str]:
    from retinanet.evaluate.compare_page import number, signed

    interval = f"{signed(change.low)} to {signed(change.high)}"
    return [number(change.a), number(change.b), signed(change.delta), interval]
