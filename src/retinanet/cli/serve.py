"""``retinanet serve``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from retinanet.cli.terminal import console, parse
from retinanet.scale.options import ScaleOptions
from retinanet.serve.settings import ServeSettings


@dataclass(frozen=True)
class Arguments(ServeSettings):
    """Answer requests for detections over HTTP, and show a page for trying a model."""

    weights: Annotated[Positional[tuple[str, ...]], arg(metavar="WEIGHTS...")] = field(kw_only=True)
    """Models: .safetensors files of trainings, exported files (.onnx, .xml), or names of bundled models such as person.
    Requests choose one by its name, which is that of the file or as in NAME=FILE. The first is the default."""
    host: str = "127.0.0.1"
    """Address to listen on. The default is reachable from this machine only; 0.0.0.0 from the network."""
    port: int = 8000
    """Port to listen on. 0: any free port."""
    token_file: Path | None = None
    """File with a token that clients must send (Authorization: Bearer TOKEN). Unset: the variable RETINANET_TOKEN, or
    no token."""
    device: str = "auto"
    """Device that the networks run on, such as cpu or cuda. auto: a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the networks. auto: bf16 if the hardware supports it, else fp32."""
    threads: int | None = None
    """Number of threads that an exported file uses (.onnx, .xml). Unset: one for each core."""
    ray: Annotated[str | None, arg(metavar="[HOST:PORT]")] = None
    """Run the networks on the workers of a Ray cluster, whose number follows the load. Without an address: the cluster
    in the variable RAY_ADDRESS, or workers on this machine. Paths must lead to the same files on all machines."""
    scale: ScaleOptions = field(default_factory=ScaleOptions)


def run(argv: Sequence[str]) -> int:
    """``retinanet serve WEIGHTS...``."""
    given = parse(Arguments, argv, "retinanet serve")
    given.scale.require_ray(given.ray)
    from retinanet.errors import ConfigError
    from retinanet.serve.run import ServeOptions, serve

    if not given.weights:
        raise ConfigError("no model given; name one after 'retinanet serve', such as person")
    settings = ServeSettings(**{each.name: getattr(given, each.name) for each in fields(ServeSettings)})
    options = ServeOptions(
        given.host, given.port, given.token_file, given.device, given.precision, given.threads, settings
    )
    workers = None
    if given.ray is not None:
        from retinanet.scale.serving import remote_workers

        workers = partial(remote_workers, given.ray, given.scale, given.weights, options)
    serve(given.weights, options, console.print, workers)
    return 0
