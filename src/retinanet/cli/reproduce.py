"""``retinanet reproduce``."""

from __future__ import annotations

from collections.abc import Sequence

from retinanet.cli.terminal import console, make_folder, parse
from retinanet.reproduce.options import Options


def run(argv: Sequence[str]) -> int:
    """``retinanet reproduce NAME [DATA]``."""
    options = parse(Options, argv, "retinanet reproduce")
    from retinanet.reproduce.rows import EXPERIMENTS, find_experiments

    if not options.name:
        for experiment in EXPERIMENTS.values():
            console.print(f"  {experiment.name:<12}{experiment.summary}")
        console.print(f"  {'all':<12}everything above; rows with equal settings are trained once")
        return 0
    experiments = find_experiments([options.name])
    options.check()

    from retinanet.reproduce.plan import make_request
    from retinanet.reproduce.run import print_commands, reproduce

    request = make_request(experiments, options)
    if options.scale == "paper" and any(experiment.rows for experiment in experiments):
        print_commands(request, console)
        if options.dataset is None:
            return 0
    make_folder(options.out)
    reproduce(request, options.parallel_runs(), console, options.report)
    return 0
