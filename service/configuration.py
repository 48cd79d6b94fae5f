"""Where settings come from: flags over environment over a YAML file over defaults. Unknown ones are refused in all of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hfh_embed.errors import InputError
from service.settings import Settings

__all__ = ["CONFIG_VARIABLE", "LIBRARY_VARIABLES", "WORKER_VARIABLE", "Effective", "read_yaml", "resolve"]

PREFIX = "HFH_"
CONFIG_VARIABLE = "HFH_CONFIG"
WORKER_VARIABLE = "HFH_WORKER_SETTINGS"
LIBRARY_VARIABLES = frozenset({"HFH_KERNELS", "HFH_SIMD"})
MOST_FILE_BYTES = 1_048_576
_PASSWORD = re.compile(r"(?<=://)([^/@]*:)?[^/@]*@")


@dataclass(frozen=True)
class Effective:
    """Settings, and for each by name where it came from: a flag, a variable, the file or the default."""

    settings: Settings
    origins: Mapping[str, str]

    def shown(self) -> list[dict[str, Any]]:
        """Name, value and origin of each setting; passwords in URLs are masked."""
        values = self.settings.model_dump(mode="json")
        return [
            {"setting": name, "value": _masked(value), "from": self.origins[name]} for name, value in values.items()
        ]


def resolve(flags: Mapping[str, Any], environ: Mapping[str, str], config: Path | None) -> Effective:
    """The effective settings.

    Args:
        flags: given on the command line, by name of the setting.
        environ: environment variables; empty ones count as not given.
        config: the YAML file; None for the one that HFH_CONFIG names, if any.

    Raises:
        InputError: a setting is unknown or unusable; the sentence says where it stands.
        OSError: the file cannot be read.
    """
    file = config or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    values: dict[str, Any] = {}
    origins = dict.fromkeys(Settings.model_fields, "default")
    for origin, found in (
        (f"file {file}", _from_file(file) if file else {}),
        ("environment", _from_environment(environ)),
        ("flag", flags),
    ):
        values |= found
        origins |= dict.fromkeys(found, origin)
    try:
        return Effective(Settings(**values), origins)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        where = {"flag": f"--{name.replace('_', '-')}", "environment": PREFIX + name.upper()}
        given = _masked(first.get("input"))
        raise InputError(
            f"{where.get(origins[name], f'{name} in {file}')} {given!r}: {first['msg']}; see hfh serve --help"
        ) from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    others = {CONFIG_VARIABLE, WORKER_VARIABLE} | LIBRARY_VARIABLES
    found = {}
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or variable in others:
            continue
        name = variable[len(PREFIX) :].lower()
        if name not in Settings.model_fields or variable != variable.upper():
            known = [PREFIX + field.upper() for field in Settings.model_fields]
            raise InputError(f"environment variable {variable} is not a setting{_near(variable.upper(), known)}")
        if value:
            found[name] = value
    return found


def _from_file(file: Path) -> dict[str, Any]:
    document = read_yaml(file)
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InputError(f"{file} holds a {type(document).__name__}; give settings as lines of `name: value`")
    for name in document:
        if name not in Settings.model_fields:
            raise InputError(f"{str(name)[:80]!r} in {file} is not a setting{_near(str(name), Settings.model_fields)}")
    return document


def read_yaml(file: Path) -> Any:
    """A small YAML (or JSON) document; InputError where it is not one, OSError where it cannot be read."""
    with file.open("rb") as stream:
        text = stream.read(MOST_FILE_BYTES + 1)
    if len(text) > MOST_FILE_BYTES:
        raise InputError(f"{file} is longer than {MOST_FILE_BYTES:,} bytes; is it the right file?")
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        reason = str(getattr(error, "problem", error)).splitlines()[0]
        raise InputError(f"{file} is not valid YAML{place}: {reason}") from None


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]}?" if close else "; see hfh serve --help for all of them"


def _masked(value: Any) -> Any:
    return _PASSWORD.sub("***@", value) if isinstance(value, str) else value
