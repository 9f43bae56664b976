"""Write a page of results in Markdown, with the paper's numbers beside the measured ones."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from retinanet.reproduce.results import MeasuredRow, Outcome, Results, pairs_in_order


def page(results: Results) -> str:
    """The content of ``NAME.md``."""
    parts = [f"# {results.title}", f"The paper: {results.claim}"]
    if results.rows:
        parts += [
            _setting(results),
            *([results.note] if results.note else []),
            f"    {results.command}",
            _table(results),
            *_remarks(results.rows),
        ]
    else:
        parts += [f"Made by `{results.command}`."]
    parts += [*_extra(results), f"![{results.title}]({results.name}.png)"]
    return "\n\n".join(parts) + "\n"


def _setting(results: Results) -> str:
    data, train = results.base["data"], results.base["train"]
    longest = f", at most {data['max_size']}" if data["max_size"] else ""
    epochs = f"{train['epochs']} epoch{'s' * (train['epochs'] > 1)}"
    seen, rate = train["epochs"] * results.train_images, train["lr"] * train["batch"] / 16
    with_changes = f" with `{results.base_flags}`" if results.base_flags else ""
    return (
        f"The paper's numbers: {results.where}. Here: {results.data}, {results.train_images:,} images in train and "
        f"{results.val_images:,} in val; {results.base['model']['backbone']}, {data['size']} px{longest}; "
        f"{epochs} ({seen:,} images shown) in batches of {train['batch']}, learning rate {rate:g}, unless a row states "
        f"otherwise. Every row starts from the recipe `paper`{with_changes}. AP is the AP of the "
        "last weights, in points: mean ± standard deviation over the seeds, with the range in brackets. "
        f"{results.machine}."
    )


def _table(results: Results) -> str:
    heads = ["setting", "AP, paper", "AP, here", "AP50", "AP75", "seeds", "diverged", "seconds per run", "flags"]
    lines = [" | ".join(heads), "|".join(["---"] * len(heads))]
    lines += [" | ".join(_cells(row)) for row in results.rows]
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def _cells(row: MeasuredRow) -> list[str]:
    paper = "diverges" if row.paper_diverges else "–" if row.paper is None else f"{row.paper:.1f}"
    flags = f"`{row.flags}`" if row.flags else "(the base)"
    if not row.runs:
        return [row.setting, paper, "not run", "", "", "", "", "", flags]
    found = [run for run in row.runs if run.ap is not None]
    here = _spread(row.aps()) if found else "diverged"
    seconds = [run.seconds for run in row.runs if run.seconds is not None]
    return [
        row.setting,
        paper,
        here,
        *(_mean(getattr(run, key) for run in found) for key in ("ap50", "ap75")),
        ", ".join(str(run.seed) for run in row.runs),
        _diverged(row.runs),
        f"{statistics.median(seconds):.0f}" if seconds else "–",
        flags,
    ]


def _spread(values: Sequence[float]) -> str:
    """Format the mean. If there are several values, add the standard deviation and the range."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {statistics.stdev(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def _mean(values: Iterable[float]) -> str:
    found = list(values)
    return f"{100 * statistics.mean(found):.1f}" if found else "–"


def _diverged(runs: Sequence[Outcome]) -> str:
    steps = [run.diverged for run in runs if run.diverged is not None]
    return f"{len(steps)} of {len(runs)}, at step {', '.join(map(str, steps))}" if steps else "0"


def _remarks(rows: Sequence[MeasuredRow]) -> list[str]:
    """Compare the order of the settings in the paper with the order here."""
    ranked = [row for row in rows if row.runs and (row.paper is not None or row.paper_diverges)]
    if len(ranked) < 2:
        return []
    paper = sorted(ranked, key=lambda row: -1.0 if row.paper_diverges else row.paper or 0.0, reverse=True)
    here = sorted(ranked, key=lambda row: row.standing() or 0.0, reverse=True)
    pairs, agree, apart, apart_agree = pairs_in_order(ranked)
    lines = [
        f"* Best to worst in the paper: {_ordered(paper, [_paper(row) for row in paper])}.",
        f"* Best to worst here: {_ordered(here, [row.standing() for row in here])}{_note_on_diverged(here)}.",
        f"* {agree} of the {pairs} pairs of settings that differ in the paper have the same order here. Of the "
        f"{apart} pairs whose ranges of AP do not overlap here, {apart_agree} have the paper's order.",
    ]
    if max(len(row.runs) for row in ranked) == 1:
        lines.append("* There is one seed, so differences may be due to chance.")
    return ["\n".join(lines)]


def _note_on_diverged(rows: Sequence[MeasuredRow]) -> str:
    return " (a diverged seed counts as −1)" if any(row.diverged for row in rows) else ""


def _paper(row: MeasuredRow) -> float | None:
    return None if row.paper_diverges else row.paper


def _ordered(rows: Sequence[MeasuredRow], values: Sequence[float | None]) -> str:
    text = rows[0].setting
    for i in range(1, len(rows)):
        text += (" = " if values[i] == values[i - 1] else " > ") + rows[i].setting
    return text


def _extra(results: Results) -> list[str]:
    extra = results.extra
    if "claims" in extra:
        return [_claims(extra["claims"])]
    if "distribution" in extra:
        return [_distribution(extra["distribution"], results.data)]
    if "speed" in extra:
        return [_speed(results)]
    if results.rows and any(run.shares for row in results.rows for run in row.runs):
        return [_shares(results.rows)]
    return []


def _claims(claims: Sequence[dict[str, float]]) -> str:
    lines = ["| p_t | cross entropy | focal loss, γ = 2 | ratio |", "|---|---|---|---|"]
    for row in claims:
        ratio = row["ce"] / row["fl"]
        lines.append(f"| {row['p_t']:g} | {row['ce']:.4f} | {row['fl']:.3g} | {ratio:.{0 if ratio > 10 else 1}f} |")
    return "\n".join(lines)


def _distribution(found: dict[str, Any], data: str) -> str:
    lines = [
        f"The model: {found['model']}.",
        "",
        f"The anchors of {found['images']} held-out images of {data}: {found['foreground']['anchors']:,} foreground "
        f"anchors and {found['background']['anchors']:,} background anchors. The table shows which fraction of a "
        "group's loss belongs to its hardest anchors, with the loss computed for each γ:",
        "",
    ]
    fractions = list(next(iter(found["background"]["hardest"].values())))
    heads = ["group", "γ", *(f"hardest {100 * float(fraction):g}%" for fraction in fractions)]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for group in ("background", "foreground"):
        for gamma, shares in found[group]["hardest"].items():
            lines.append(f"| {group} | {gamma} | " + " | ".join(f"{shares[f]:.1%}" for f in fractions) + " |")
    return "\n".join(lines)


def _speed(results: Results) -> str:
    lines = ["| setting | ms per image, paper (M40) | ms per image, here | AP, here |", "|---|---|---|---|"]
    for row in results.rows:
        found = results.extra["speed"].get(row.setting)
        here = f"{found['median']:.0f} ({found['low']:.0f}–{found['high']:.0f})" if found else "not measured"
        mean = row.mean()
        ap = "not run" if mean is None else f"{mean:.1f}"
        lines.append(f"| {row.setting} | {row.paper_ms:g} | {here} | {ap} |")
    some = next(iter(results.extra["speed"].values()), None)
    if some:
        lines += [
            "",
            f"From an image file to its detections, one image at a time: median and interquartile range of "
            f"{some['images']} images, {some['threads']} threads, {results.machine}.",
        ]
    return "\n".join(lines)


def _shares(rows: Sequence[MeasuredRow]) -> str:
    lines = [
        "Shares of the classification loss at the end of the training, on training batches (mean over the seeds). "
        "Hard background anchors have a score of 0.5 or more. For OHEM, the shares are those of the cross entropy "
        "before mining:",
        "",
        "| setting | foreground | hard background | easy background |",
        "|---|---|---|---|",
    ]
    for row in rows:
        found = [run.shares for run in row.runs if run.shares]
        keys = ("share_foreground", "share_hard", "share_easy")
        cells = [f"{statistics.mean(share[key] for share in found):.1%}" if found else "–" for key in keys]
        lines.append(f"| {row.setting} | {' | '.join(cells)} |")
    return "\n".join(lines)
