"""API keys: who may do what. Only hashes of keys are stored.

A key is 256 random bits, so plain SHA-256 is the right hash: there is no dictionary to try, and a slow hash, which protects
passwords that people think up, would only cost every request its time.

    keys:
      - {"name": "feed", "scope": "read", "sha256": "6ca1...", "rate": "100000/second"}
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limits import RateLimitItem, parse

from hfh_embed.errors import InputError
from service.calls import refusal
from service.configuration import read_yaml

__all__ = ["SCOPES", "Key", "Keyring", "needed_scope", "new_key", "parse_rate"]

SCOPES = ("read", "write", "admin")  # each may do what those before it may
READING = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
FIELDS = {"name", "scope", "sha256", "rate"}
MOST_KEYS = 1_000
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class Key:
    """One known key: its name, what it may do, and how many ids it may ask for in which time."""

    name: str
    scope: str
    digest: bytes
    rate: RateLimitItem | None = None

    @property
    def level(self) -> int:
        """The scope as a number: a higher one may do more."""
        return SCOPES.index(self.scope)


class Keyring:
    """The known keys; empty when the service asks for none."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._keys = tuple(keys)
        self._seen: dict[bytes, Key] = {}  # only known keys get in, so it never grows beyond their number

    def __len__(self) -> int:
        return len(self._keys)

    @classmethod
    def load(cls, file: Path) -> Keyring:
        """Read a keys file.

        Raises:
            InputError: it is not one, or two keys have one name.
            OSError: it cannot be read.
        """
        document = read_yaml(file)
        entries = document.get("keys") if isinstance(document, dict) and document.keys() == {"keys"} else None
        if not isinstance(entries, list) or not entries:
            raise InputError(
                f"{file} is not a keys file; it holds `keys:` and a list, whose lines `hfh keys new` prints"
            )
        if len(entries) > MOST_KEYS:
            raise InputError(f"{file} holds {len(entries):,} keys; at most {MOST_KEYS:,} are allowed")
        keys = [_key(entry, f"key {number} in {file}") for number, entry in enumerate(entries, 1)]
        for what in ("name", "digest"):
            if len({getattr(key, what) for key in keys}) < len(keys):
                raise InputError(f"two keys in {file} have one {what}; each must have its own")
        return cls(keys)

    def find(self, key: bytes) -> Key | None:
        """The known key that this is, compared with all in constant time."""
        digest = hashlib.sha256(key).digest()
        found = self._seen.get(digest)
        if found is None:
            for known in self._keys:
                if hmac.compare_digest(known.digest, digest):
                    found = known
            if found is not None:
                self._seen[digest] = found
        return found

    def authorize(self, key: bytes, level: int) -> Key:
        """The key, if it may do what needs this level; 401 or 403 otherwise."""
        found = self.find(key) if key else None
        if found is None:
            problem = "this API key is not known" if key else "an API key is needed"
            message = f"{problem}; send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
            raise refusal(401, "unauthorized", message, {"www-authenticate": "Bearer"})
        if found.level < level:
            message = f"key {found.name!r} has scope {found.scope}; this needs {SCOPES[level]}"
            raise refusal(403, "forbidden", message)
        return found


def needed_scope(method: str, path: str, metrics_open: bool = False) -> int | None:
    """The level of scope that a request needs, None if it needs no key: health, the console's page and the documentation."""
    if path.startswith("/v1/"):
        if path.startswith("/v1/snapshots"):
            return 0 if method in READING else 2
        if method in READING or method == "POST":
            return 1 if method == "POST" and path.endswith("/rows") else 0
        return 1
    if path in OPEN or (metrics_open and path == "/metrics"):
        return None
    if path.startswith("/v2"):
        changes = path.endswith(("/load", "/unload")) or method not in (*READING, "POST")
        return 2 if path.startswith("/v2/repository") and changes else 0
    return 0 if path.startswith(("/v1", "/metrics")) else None


def new_key(name: str, scope: str, rate: str | None = None) -> tuple[str, str]:
    """A new key and its line for a keys file; InputError where the name, the scope or the rate is not usable."""
    key = "hfh_" + secrets.token_urlsafe(32)
    entry: dict[str, Any] = {"name": name, "scope": scope, "sha256": hashlib.sha256(key.encode()).hexdigest()}
    if rate is not None:
        entry["rate"] = rate
    _key(entry, "the new key")
    return key, json.dumps(entry)


def _key(entry: Any, what: str) -> Key:
    if not isinstance(entry, dict) or not {"name", "scope", "sha256"} <= entry.keys() <= FIELDS:
        raise InputError(f"{what} must have name, scope and sha256, and may have rate; make one with `hfh keys new`")
    name, digest = str(entry["name"]), str(entry["sha256"])
    if not _NAME.fullmatch(name):
        raise InputError(f"{what} has the name {name[:80]!r}; give up to 64 letters, digits and ._-")
    if entry["scope"] not in SCOPES:
        raise InputError(f"{what} has the scope {str(entry['scope'])[:40]!r}; allowed are {', '.join(SCOPES)}")
    if not _HASH.fullmatch(digest):
        raise InputError(f"{what} has no valid sha256: 64 hexadecimal digits, not the key itself")
    rate = entry.get("rate")
    return Key(name, entry["scope"], bytes.fromhex(digest), None if rate is None else parse_rate(str(rate), what))


def parse_rate(rate: str, what: str) -> RateLimitItem:
    """``100000/second`` or ``5000 per 10 minutes`` as a limit in ids; InputError where it is none."""
    try:
        item = parse(rate)
    except ValueError:
        raise InputError(f"{what} has the rate {rate[:40]!r}; give ids for a time, such as 100000/second") from None
    if item.amount < 1:
        raise InputError(f"{what} has the rate {rate[:40]!r}; give at least 1 id, or delete the key")
    return item
