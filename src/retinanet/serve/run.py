"""Load the models and run a server, as the command ``retinanet serve`` does."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import re
import socket
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from retinanet.detection.loading import load
from retinanet.errors import ConfigError, RetinaNetError
from retinanet.machine import Precision
from retinanet.optional_packages import explain_missing_packages
from retinanet.serve.settings import ServeSettings

if TYPE_CHECKING:
    from retinanet.detection.detector import Detector
    from retinanet.serve.batcher import MakeJobRunner

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

# Names that do not tell models of several trainings apart; such a model is named after its folder.
_ORDINARY = ("best", "last", "model")

# Seconds for which a thread may keep the others from running Python code. The network needs its turn hundreds of times
# for each image; with Python's 5 ms, a server that refuses many requests would hardly compute.
_SWITCH_INTERVAL = 0.0005


@dataclass(frozen=True)
class ServeOptions:
    """Where the server listens, and how its models run.

    Attributes:
        host: address; only this machine can reach the default.
        port: port; 0: any free one.
        token_file: file with the bearer token that clients need.
        device: see :func:`retinanet.load`.
        precision: see :func:`retinanet.load`.
        threads: see :func:`retinanet.load`.
        settings: how requests are answered.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    device: str = "auto"
    precision: Precision = "auto"
    threads: int | None = None
    settings: ServeSettings = field(default_factory=ServeSettings)


@explain_missing_packages("retinanet serve")
def serve(
    weights: Sequence[str],
    options: ServeOptions,
    say: Callable[[str], object],
    workers: Callable[[], AbstractContextManager[MakeJobRunner]] | None = None,
) -> None:
    """Load models and answer requests until SIGTERM or Ctrl-C.

    Args:
        weights: paths or names of bundled models, each as ``PATH`` or ``NAME=PATH``; the first is the default.
        options: where and how.
        say: called with lines for the user.
        workers: starts what works on the images, such as :func:`retinanet.scale.serving.remote_workers`. Unset: threads
            of this process.

    Raises:
        ConfigError: a name is used twice, or the token is empty.
        CheckpointError: a model cannot be loaded.
        RetinaNetError: the port is in use.
    """
    from retinanet.serve.app import create_app
    from retinanet.serve.batcher import Batcher
    from retinanet.serve.server import Server

    named = model_names(weights)
    token = read_token(options.token_file)
    listener = bind(options.host, options.port)
    with listener, ExitStack() as stack:
        models = _load(named, options)
        make_batcher = Batcher if workers is None else stack.enter_context(workers())
        app = create_app(models, options.settings, token, make_batcher)
        app.state.service.start()
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # it would log the paths of requests
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(_SWITCH_INTERVAL)
        warnings.filterwarnings("ignore", module="PIL")  # about large and damaged images; the answers say it
        shown = f"[{options.host}]" if ":" in options.host else options.host
        if token is None and not is_loopback(options.host):
            say(f"warning: everybody who reaches {options.host} can use the server; require a token with --token-file")
        line = f"serving {', '.join(models)} at http://{shown}:{listener.getsockname()[1]}/ (Ctrl-C ends)"
        Server(app, lambda: say(line)).run(sockets=[listener])
    say("stopped")


def _load(named: Mapping[str, str], options: ServeOptions) -> dict[str, Detector]:
    """Load the models in a thread that ends.

    OpenMP keeps the threads with which a thread has computed. If all of them and those of the network are more than the
    cores, OpenMP puts them to sleep after each layer, and the network takes a third more time.
    """
    with ThreadPoolExecutor(1) as loader:
        single = partial(load, precision=options.precision, device=options.device, threads=options.threads)
        return dict(zip(named, loader.map(single, named.values()), strict=True))


def model_names(weights: Sequence[str]) -> dict[str, str]:
    """Return the path of each model by its name: given as ``NAME=PATH``, or taken from the path.

    Raises:
        ConfigError: a name is used twice, or a given name has other characters than letters, digits, ``.``, ``_``
            and ``-``.
    """
    named: dict[str, str] = {}
    for text in weights:
        name, separator, path = text.partition("=")
        if not separator or "/" in name or Path(text).exists():  # a path that contains "="
            path, stem = text, Path(text).stem
            name = Path(text).absolute().parent.name if stem in _ORDINARY else stem
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:100] or "model"
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{text}: {name!r} cannot name a model; use letters, digits, '.', '_' and '-'")
        if name in named:
            raise ConfigError(f"two models are named {name!r}; name them, as in NAME={path}")
        named[name] = path
    return named


def read_token(path: Path | None) -> str | None:
    """Read the token from a file, or from the variable ``RETINANET_TOKEN``; ``None`` if neither is given.

    Raises:
        ConfigError: the file cannot be read, or the token is empty or not plain text in one line.
    """
    if path is None:
        if (text := os.environ.get("RETINANET_TOKEN")) is None:
            return None
        where = "RETINANET_TOKEN"
    else:
        where = f"--token-file {path}"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: cannot be read ({error}); give a text file with the token") from error
    token = text.strip()
    if not token:
        raise ConfigError(f"{where}: the token is empty; write one, for example with 'openssl rand -hex 32'")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{where}: the token must be one word of ASCII characters")
    return token


def bind(host: str, port: int) -> socket.socket:
    """Reserve an address, before the models are loaded.

    Raises:
        RetinaNetError: the address is in use, does not exist or is not permitted.
    """
    if not 0 <= port < 65536:
        raise ConfigError(f"--port is {port}; it must lie between 0 and 65535")
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1)  # another program that listens already makes this fail
    except OSError as error:
        if listener is not None:
            listener.close()
        reasons = {
            errno.EADDRINUSE: "is in use; end the other program or choose another --port",
            errno.EACCES: "is not permitted; choose a --port from 1024",
            errno.EADDRNOTAVAIL: "is no address of this machine; choose another --host",
        }
        reason = reasons.get(error.errno or 0, f"cannot be used ({error.strerror or error}); choose another --host")
        raise RetinaNetError(f"{host}:{port} {reason}") from error
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
