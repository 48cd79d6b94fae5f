"""Rows written since a snapshot, as the service's replicas share them in Redis: where they lie, and reading them.

    {prefix:overlay}:meta             hash: incarnation, sequence, rows, bytes; of each table dim:, sequence:, floor:, cleared:
    {prefix:overlay}:rows:TABLE       hash: id in decimal -> sequence number (float64), row (D float32), little-endian
    {prefix:overlay}:changed:TABLE    sorted set: id by the sequence number of its last write or removal
    {prefix:overlay}:log              stream that wakes replicas

The braces keep all keys on one node of a cluster, so that one script can change them together. Sequence numbers are Redis'
own microseconds since 1970, made to ascend: they stay comparable when Redis loses its data. ``floor:`` is the number below
which ``changed`` is incomplete, ``cleared:`` that of the last removal of all rows. A new ``incarnation`` means that the data were lost.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np
import numpy.typing as npt

from hfh_embed.errors import InputError, MissingDependencyError

__all__ = ["Fresh", "Keys", "Target", "every_client", "pack_rows", "parse_url", "read_fresh", "unpack_rows"]

Ids = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
SCHEMES = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
FORMS = "redis://host:6379/0, rediss://host (TLS), redis+sentinel://host1:26379,host2:26379/name/0 or redis+cluster://host1,host2"
PORTS = {"single": 6379, "sentinel": 26379, "cluster": 6379}
TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
BATCH_ROWS = 1_000


class Fresh(NamedTuple):
    """Rows of one table: ids (n,), their sequence numbers (n,), rows (n, D), and the number that they are complete up to."""

    ids: Ids
    sequences: Ids
    rows: F32
    sequence: int


@dataclass(frozen=True)
class Keys:
    """The names of the keys above."""

    prefix: str = "hfh"

    @property
    def meta(self) -> str:
        """The hash with the facts."""
        return f"{{{self.prefix}:overlay}}:meta"

    @property
    def log(self) -> str:
        """The stream that wakes replicas."""
        return f"{{{self.prefix}:overlay}}:log"

    def rows(self, table: str) -> str:
        """The hash of a table's rows."""
        return f"{{{self.prefix}:overlay}}:rows:{table}"

    def changed(self, table: str) -> str:
        """The sorted set of a table's changed ids."""
        return f"{{{self.prefix}:overlay}}:changed:{table}"


@dataclass(frozen=True)
class Target:
    """Where Redis is: ``kind`` is single, sentinel or cluster. Its text has no password."""

    kind: str
    hosts: tuple[tuple[str, int], ...]
    db: int
    service: str
    username: str | None
    password: str | None
    tls: bool
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} {', '.join(f'{host}:{port}' for host, port in self.hosts)}"

    def __repr__(self) -> str:
        return f"Target({self})"

    def connect(self, library: Any, *, asynchronous: bool, **options: Any) -> Any:
        """A client of the ``redis`` package (``redis`` or ``redis.asyncio``). It connects when it is first used."""
        shared: dict[str, Any] = {"username": self.username, "password": self.password, **options}
        if self.tls:
            shared |= {"ssl": True, **dict(self.options)}
        if self.kind == "single":
            host, port = self.hosts[0]
            return library.Redis(host=host, port=port, db=self.db, **shared)
        if self.kind == "sentinel":
            plain = {key: value for key, value in shared.items() if key not in ("username", "password")}
            sentinels = library.Sentinel(list(self.hosts), sentinel_kwargs=plain, db=self.db, **shared)
            return sentinels.master_for(self.service)
        if asynchronous:
            from redis.asyncio.cluster import ClusterNode, RedisCluster
        else:
            from redis.cluster import ClusterNode, RedisCluster  # type: ignore[assignment]
        return RedisCluster(startup_nodes=[ClusterNode(host, port) for host, port in self.hosts], **shared)


def every_client(client: Any) -> list[Any]:
    """What to close: the client and, behind one that sentinels lead, theirs."""
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    return [client, *(manager.sentinels if manager is not None else ())]


def parse_url(url: str) -> Target:
    """A Redis URL; InputError says what is wrong with it, without its password.

    ``redis://[user:password@]host[:port][/db]``, ``rediss://`` with TLS, ``redis+sentinel://hosts/service[/db]`` (hosts
    separated by commas) and ``redis+cluster://hosts``. With TLS ``?ssl_ca_certs=FILE&ssl_certfile=FILE&ssl_keyfile=FILE``.
    """
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme not in SCHEMES:
        raise InputError(f"a Redis URL begins with {scheme[:40] or 'no scheme'!r}; give one like {FORMS}")
    kind, tls = SCHEMES[scheme]
    split = urlsplit(url)
    credentials, _, names = split.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    hosts = tuple(_host(name, PORTS[kind]) for name in names.split(","))
    if kind == "single" and len(hosts) > 1:
        raise InputError(f"{scheme}:// takes one host; for several give redis+sentinel:// or redis+cluster://")
    path = [unquote(part) for part in split.path.split("/") if part]
    service = ""
    if kind == "sentinel":
        if not path:
            raise InputError(
                "redis+sentinel:// needs the service's name after the hosts: redis+sentinel://host/mymaster"
            )
        service = path.pop(0)
    if kind == "cluster" and path:
        raise InputError("redis+cluster:// takes no database; a cluster has only one")
    if len(path) > 1 or (path and not path[0].isdecimal()):
        raise InputError(
            f"the database in a Redis URL is {'/'.join(path)[:40]!r}; give a number, as in redis://host:6379/0"
        )
    options = tuple(parse_qsl(split.query, keep_blank_values=True))
    unknown = [key for key, _ in options if key not in TLS_OPTIONS]
    if unknown or (options and not tls):
        raise InputError(
            f"parameter {(unknown or [options[0][0]])[0][:40]!r} of a Redis URL is not known here; "
            f"allowed are {', '.join(TLS_OPTIONS)}, with rediss://"
        )
    db = int(path[0]) if path else 0
    return Target(kind, hosts, db, service, unquote(user) or None, unquote(password) or None, tls, options)


def _host(text: str, port: int) -> tuple[str, int]:
    try:
        split = urlsplit(f"//{text}")
        host, given = split.hostname, split.port
    except ValueError:
        host, given = None, None
    if not host:
        raise InputError(f"{text[:80]!r} in a Redis URL is not a host with a port; give one like {FORMS}")
    return host, port if given is None else given


def pack_rows(sequences: Ids, rows: F32) -> bytes:
    """The stored values of rows (n, D) with their sequence numbers (n,), one after the other."""
    packed = np.empty((len(rows), 8 + rows.shape[1] * 4), dtype=np.uint8)
    packed[:, :8] = sequences.astype("<f8")[:, None].view(np.uint8)
    packed[:, 8:] = np.ascontiguousarray(rows, dtype="<f4").view(np.uint8)
    return packed.tobytes()


def unpack_rows(ids: list[bytes], values: list[bytes | None], dim: int) -> tuple[Ids, Ids, F32]:
    """Ids, sequence numbers and rows of stored values; what is missing or of another length is left out."""
    size = 8 + 4 * dim
    there = [number for number, value in enumerate(values) if value is not None and len(value) == size]
    found = np.array([int(ids[number]) for number in there], dtype=np.int64)
    raw = np.frombuffer(b"".join(values[number] or b"" for number in there), dtype=np.uint8).reshape(len(there), size)
    sequences = np.ascontiguousarray(raw[:, :8]).view("<f8").reshape(-1).astype(np.int64)
    rows = np.ascontiguousarray(raw[:, 8:]).view("<f4").reshape(len(there), dim).astype(np.float32)
    return found, sequences, rows


def read_fresh(url: str, table: str, prefix: str = "hfh", timeout_s: float = 10.0) -> Fresh:
    """All rows of a table; none when nothing was written.

    Raises:
        InputError: the URL is wrong, or Redis does not answer.
        MissingDependencyError: the ``redis`` package is not installed.
    """
    target, keys = parse_url(url), Keys(prefix)
    try:
        import redis
    except ImportError:
        raise MissingDependencyError(
            "rows in Redis need redis; install it with: pip install 'hfh-embed[redis]'"
        ) from None
    parts, times = [], {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    try:
        with contextlib.ExitStack() as stack:
            client = target.connect(redis, asynchronous=False, **times)
            for each in every_client(client):
                stack.callback(each.close)
            meta = client.hgetall(keys.meta)
            dim = int(meta.get(f"dim:{table}".encode(), 0))
            cursor = 0
            while True:
                cursor, page = client.hscan(keys.rows(table), cursor, count=BATCH_ROWS)
                parts.append(unpack_rows(list(page), list(page.values()), dim))
                if not cursor:
                    break
    except (redis.RedisError, OSError) as error:
        raise InputError(f"Redis ({target}) does not answer: {error}") from None
    ids, sequences, rows = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    ids, first = np.unique(ids, return_index=True)  # a scan may tell one twice
    return Fresh(ids, sequences[first], rows[first], int(float(meta.get(b"sequence", 0))))
