"""`hfh serve`: flags, sockets, workers and signals. Light to import: the web framework comes when the verb runs."""

from __future__ import annotations

import argparse
import errno
import ipaddress
import json
import logging
import os
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfh_embed.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from service.configuration import Effective
    from service.settings import Settings

__all__ = ["HELP", "add_arguments", "run"]

HELP = "serve snapshots by HTTP"
OTHER_FILES = 128
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
log = logging.getLogger("hfh.service")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, and one flag for each setting."""
    parser.add_argument("paths", nargs="*", type=Path, metavar="FILE_OR_DIR", help="snapshots, or folders of them")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file of settings; flags and HFH_ variables win"
    )
    parser.add_argument(
        "--show-config", action="store_true", help="print every setting, its value and where that comes from; then stop"
    )
    for name, field in _settings_class().model_fields.items():
        if name != "paths":
            flag = "--" + name.replace("_", "-")
            values = "true|false" if field.annotation is bool else "X"
            shown = "none" if field.default is None else _text(field.default)
            parser.add_argument(flag, dest=name, metavar=values, help=f"{field.description} (default: {shown})")


def _settings_class() -> type[Settings]:
    try:
        from service.settings import Settings
    except ImportError as error:
        raise MissingDependencyError(
            f"serving needs {error.name}; install it with: pip install 'hfh-embed[serve]'"
        ) from None
    return Settings


def _effective(args: argparse.Namespace) -> Effective:
    from service.configuration import resolve

    names = _settings_class().model_fields
    flags = {name: value for name in names if (value := getattr(args, name)) not in (None, [])}
    return resolve(flags, os.environ, args.config)


def _text(value: Any) -> str:
    """A setting's value as one would give it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _show(effective: Effective, as_json: bool) -> None:
    if as_json:
        print(json.dumps(effective.shown(), indent=2))
        return
    lines = [("setting", "value", "from")]
    for shown in effective.shown():
        lines.append((shown["setting"], _text(shown["value"]), shown["from"]))
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    for line in lines:
        print(f"{line[0]:<{widths[0]}}  {line[1]:<{widths[1]}}  {line[2]}")


def run(args: argparse.Namespace) -> int:
    """Serve until a signal asks to stop; returns 0 when every request that had begun was answered."""
    effective = _effective(args)
    settings = effective.settings
    if args.show_config:
        _show(effective, args.json)
        return 0
    with _shared_metrics(settings.workers):
        _serve(settings)
    return 0


@contextmanager
def _shared_metrics(workers: int) -> Iterator[None]:
    """A folder where several workers keep their metrics, named before the metrics are imported."""
    if workers == 1 or METRICS_FOLDER in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="hfh-metrics-") as folder:
        os.environ[METRICS_FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[METRICS_FOLDER]


def _serve(settings: Settings) -> None:
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    from service import logs
    from service.allocator import give_back_large_buffers
    from service.app import create_app
    from service.configuration import WORKER_VARIABLE
    from service.fast_lane import Protocol
    from service.state import State

    logs.configure(settings.log_level, settings.access_log)
    give_back_large_buffers()
    state = State.load(settings)  # also with several workers: a file that cannot be served is reported once, here
    listener = _listen(settings)
    host, port = listener.getsockname()[:2]
    options: dict[str, Any] = {
        "log_config": None,
        "access_log": False,
        "http": Protocol,
        "ws": "none",
        "proxy_headers": False,
        "timeout_keep_alive": settings.keep_alive_s,
        "timeout_graceful_shutdown": settings.drain_s,
        "backlog": settings.backlog,
        "server_header": False,
        "date_header": False,
    }
    _allow_files(settings.max_connections)
    if settings.keys_file is None and not ipaddress.ip_address(host).is_loopback:
        log.warning("no API keys are set (keys_file): whoever reaches %s may read, write and administrate", host)
    server = uvicorn.Server(uvicorn.Config(create_app(state), **options)) if settings.workers == 1 else None

    def stop(*_: object) -> None:
        """Before uvicorn takes the signals over, and when it raises them again at its end."""
        if server is None:
            sys.exit(0)
        server.should_exit = True  # SystemExit could vanish in a callback that swallows what is raised in it

    listener.listen(settings.backlog)  # whoever reads the next line may connect at once
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    print(f"serving {len(state.catalog)} table{'s' * (len(state.catalog) != 1)} on http://{host}:{port}", flush=True)
    if server is not None:
        server.run(sockets=[listener])
        return
    # Workers follow the file that this process chose for the active versions.
    followed = settings.model_copy(update={"state_file": str(state.snapshots.choice_path or "")})
    os.environ[WORKER_VARIABLE] = followed.model_dump_json()
    workers = uvicorn.Config("service.app:from_environment", factory=True, workers=settings.workers, **options)
    # The socket itself, not its number: made from a number it would be taken for a local one, and wait 40 ms for each answer.
    Multiprocess(workers, sockets=[listener]).run()


def _allow_files(connections: int) -> None:
    """Let this process and its workers have as many files open as it may need, and say when the system allows fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + OTHER_FILES
    if soft < needed and hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    if needed < connections + OTHER_FILES:
        log.warning(
            "%d connections are allowed (max_connections), but only %d open files (ulimit -n)", connections, hard
        )


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
