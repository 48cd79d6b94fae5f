"""`hfh serve`: flags, sockets, workers and signals. Light to import: the web framework comes when the verb runs."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfh_embed.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from service.settings import Settings

__all__ = ["HELP", "add_arguments", "run"]

HELP = "serve snapshots by HTTP"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, and one flag for each setting."""
    parser.add_argument("paths", nargs="*", type=Path, metavar="FILE_OR_DIR", help="snapshots, or folders of them")
    for name, field in _settings_class().model_fields.items():
        if name != "paths":
            flag = "--" + name.replace("_", "-")
            parser.add_argument(flag, dest=name, metavar="X", help=f"{field.description} (default: {field.default})")


def _settings_class() -> type[Settings]:
    try:
        from service.settings import Settings
    except ImportError as error:
        raise MissingDependencyError(
            f"serving needs {error.name}; install it with: pip install 'hfh-embed[serve]'"
        ) from None
    return Settings


def _settings(args: argparse.Namespace) -> Settings:
    """Flags over environment over defaults."""
    from pydantic import ValidationError

    kind = _settings_class()
    given = {name: value for name in kind.model_fields if (value := getattr(args, name)) not in (None, [])}
    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise InputError(f"--{name} {first.get('input')!r}: {first['msg']}; see hfh serve --help") from None


def run(args: argparse.Namespace) -> int:
    """Serve until a signal asks to stop; returns 0 when every request that had begun was answered."""
    import uvicorn

    settings = _settings(args)
    if settings.workers > 1 and "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="hfh-metrics-")  # before the metrics are imported
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder.name
    from service.app import create_app
    from service.server import Server
    from service.state import State

    state = State.load(
        settings, first=True
    )  # also with several workers: a file that cannot be served is reported once, here
    listener = _listen(settings)
    host, port = listener.getsockname()[:2]
    options: dict[str, Any] = {
        "log_level": settings.log_level,
        "access_log": False,
        "timeout_keep_alive": settings.keep_alive_s,
        "timeout_graceful_shutdown": settings.drain_s,
        "backlog": settings.backlog,
        "server_header": False,
        "date_header": False,
    }
    listener.listen(settings.backlog)  # whoever reads the next line may connect at once
    for number in (
        signal.SIGTERM,
        signal.SIGINT,
    ):  # before uvicorn takes them over, and when it raises them again at its end
        signal.signal(number, lambda *_: sys.exit(0))
    print(f"serving {len(state.catalog)} table{'s' * (len(state.catalog) != 1)} on http://{host}:{port}", flush=True)
    if settings.workers == 1:
        Server(uvicorn.Config(create_app(state), **options), state).run(sockets=[listener])
        return 0
    _export(settings.model_copy(update={"state_file": str(state.snapshots.choice_path or "")}))
    uvicorn.run("service.app:from_environment", factory=True, workers=settings.workers, fd=listener.fileno(), **options)
    return 0


def _export(settings: Settings) -> None:
    """Hand the settings to worker processes."""
    for name, value in settings:
        os.environ[f"HFH_{name.upper()}"] = os.pathsep.join(map(str, value)) if name == "paths" else str(value)


def _listen(settings: Settings) -> socket.socket:
    """A bound socket, or a sentence about why there is none."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        reason = (
            "is in use" if error.errno == errno.EADDRINUSE else f"cannot be listened on ({error.strerror or error})"
        )
        raise InputError(
            f"port {settings.port} of {settings.host} {reason}; give another with --port (0 picks a free one)"
        ) from None
    listener.set_inheritable(True)
    return listener
