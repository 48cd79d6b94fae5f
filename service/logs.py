"""Logs: one JSON object a line on stderr, with the request's id. Never a vector, never a key."""

from __future__ import annotations

import logging
import sys
import time

import orjson

from service.calls import CALL

__all__ = ["JsonFormatter", "configure"]


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "logger", "message", "request"?, "error"?}`` and what a record brings in ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        call = CALL.get()
        if call is not None:
            line["request"] = call.id.decode("latin-1")
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=repr).decode()


def configure(level: str, access_log: bool) -> None:
    """Send the logs of this process, the server's among them, to stderr."""
    logging.raiseExceptions = False  # a full disk or a closed pipe behind stderr costs the line, not the request
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("hfh.access").setLevel(logging.INFO if access_log else logging.CRITICAL)
