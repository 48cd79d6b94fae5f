"""Clients of the service: numpy arrays in, numpy arrays out, bytes on the wire.

    with Client("http://127.0.0.1:8000") as client:
        rows = client.lookup("users", [1, 2, 3])          # (3, D) float32
        sums = client.bag("items", ids, offsets, mode="sum")

:class:`AsyncClient` has the same methods to await. Connections are kept and reused; a lookup changes nothing on the server,
so one that met a broken connection is sent again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from service.channel import Channels

if TYPE_CHECKING:
    import aiohttp

__all__ = ["AsyncClient", "Client", "ServiceError"]

Rows = npt.NDArray[Any]
Mode = Literal["sum", "mean", "max"]
Headers = Mapping[str, str]
BINARY, JSON = "application/octet-stream", "application/json"
DTYPES: dict[str, Any] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class ServiceError(Exception):
    """The service refused a request. ``status`` and ``type`` are as it sent them; 0 and "connection" if it was not reached."""

    def __init__(self, status: int, type_: str, message: str) -> None:
        super().__init__(message)
        self.status, self.type = status, type_


class _Call:
    """One request and how its answer is read; the same for both clients."""

    __slots__ = ("body", "dtype", "headers", "method", "path")

    def __init__(self, path: str, body: bytes, media: str, dtype: str | None, method: str = "POST") -> None:
        self.method, self.path, self.body = method, path, body
        self.headers = _headers(media, dtype)
        self.dtype = dtype

    def read(self, status: int, headers: Headers, body: bytes | bytearray) -> Any:
        if status != 200:
            raise _error(status, body)
        if self.dtype is None:
            return json.loads(body)
        first, _, last = headers["x-hfh-shape"].partition(",")
        rows = np.frombuffer(bytearray(body) if isinstance(body, bytes) else body, dtype=DTYPES[headers["x-hfh-dtype"]])
        return rows.reshape(int(first), int(last))  # the caller may write into it


def _error(status: int, body: bytes | bytearray) -> ServiceError:
    try:
        error = json.loads(body)["error"]
        return ServiceError(status, str(error["type"]), str(error["message"]))
    except (ValueError, KeyError, TypeError):
        return ServiceError(status, "http_error", f"status {status} without an explanation; is this an HFH service?")


@lru_cache
def _headers(media: str, dtype: str | None) -> tuple[tuple[str, str], ...]:
    return ("content-type", media), ("accept", f"{BINARY};dtype={dtype}" if dtype else JSON)


@lru_cache(maxsize=1024)
def _path(table: str, route: str) -> str:
    return f"/v1/tables/{quote(table, safe='')}/{route}"


def _ids(ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
    given = np.asarray(ids)
    if given.size == 0:
        return np.empty(0, dtype=np.int64)
    if given.dtype.kind not in "iu" or given.ndim != 1:
        raise ValueError(f"ids are {given.dtype} with {given.ndim} dimensions; give a list or 1-D array of integers")
    return np.ascontiguousarray(given, dtype="<i8")


def _dtype(dtype: npt.DTypeLike) -> str:
    name = NAMES.get(np.dtype(dtype))
    if name is None:
        raise ValueError(f"dtype is {np.dtype(dtype)}; rows come as float32 or float16")
    return name


def _lookup(
    table: str, ids: npt.ArrayLike | None, keys: Sequence[str] | None, dtype: npt.DTypeLike, raw: bool
) -> _Call:
    path = _path(table, "lookup")
    if (ids is None) == (keys is None):
        raise ValueError("give either ids or keys")
    if keys is not None:
        document = {"keys": list(keys)} | ({"raw": True} if raw else {})
        return _Call(path, json.dumps(document).encode(), JSON, _dtype(dtype))
    assert ids is not None
    return _Call(f"{path}?raw=true" if raw else path, _ids(ids).tobytes(), BINARY, _dtype(dtype))


def _bag(
    table: str,
    ids: npt.ArrayLike,
    offsets: npt.ArrayLike,
    mode: Mode,
    weights: npt.ArrayLike | None,
    dtype: npt.DTypeLike,
) -> _Call:
    path = _path(table, "bag")
    own, first = _ids(ids), _ids(offsets)
    if weights is None:
        body = np.concatenate(([len(first)], first, own)).astype("<i8").tobytes()
        return _Call(f"{path}?mode={quote(str(mode), safe='')}", body, BINARY, _dtype(dtype))
    document = {"ids": own.tolist(), "offsets": first.tolist(), "mode": mode}
    document["per_sample_weights"] = np.asarray(weights, dtype=np.float64).tolist()
    return _Call(path, json.dumps(document).encode(), JSON, _dtype(dtype))


def _several(asked: Mapping[str, Mapping[str, Any]]) -> _Call:
    plain = {
        table: {
            key: np.asarray(value).tolist() if key in ("ids", "offsets") else value for key, value in fields.items()
        }
        for table, fields in asked.items()
    }
    return _Call("/v1/lookup", json.dumps({"tables": plain}).encode(), JSON, None)


def _several_rows(answer: Any) -> dict[str, Rows]:
    return {table: np.array(found["embeddings"], dtype=np.float32) for table, found in answer["tables"].items()}


def _identity(api_key: str | None) -> tuple[tuple[str, str], ...]:
    return () if api_key is None else (("authorization", f"Bearer {api_key}"),)


def _get(path: str) -> _Call:
    return _Call(path, b"", JSON, None, "GET")


class Client:
    """A synchronous client, safe to share between threads."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 10.0,
        retries: int = 2,
        connections: int = 8,
        api_key: str | None = None,
    ) -> None:
        self._url, self._identity = url.rstrip("/"), _identity(api_key)
        self._channels = Channels(self._url, timeout_s, retries, connections)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._channels.close()

    def lookup(
        self,
        table: str,
        ids: npt.ArrayLike | None = None,
        *,
        keys: Sequence[str] | None = None,
        dtype: npt.DTypeLike = np.float32,
        raw: bool = False,
    ) -> Rows:
        """The rows of ids (n,), or of string keys: (n, D) float32 or float16. ServiceError tells what was refused.

        ``raw`` rows are those before their last rotation, see :meth:`hfh_embed.Table.lookup`.
        """
        rows: Rows = self._send(_lookup(table, ids, keys, dtype, raw))
        return rows

    def bag(
        self,
        table: str,
        ids: npt.ArrayLike,
        offsets: npt.ArrayLike,
        *,
        mode: Mode = "mean",
        per_sample_weights: npt.ArrayLike | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> Rows:
        """One row for each bag of ids, (bags, D), as ``torch.nn.functional.embedding_bag``."""
        rows: Rows = self._send(_bag(table, ids, offsets, mode, per_sample_weights, dtype))
        return rows

    def lookup_several(self, asked: Mapping[str, Mapping[str, Any]]) -> dict[str, Rows]:
        """Rows of several tables in one request: ``{"users": {"ids": [1]}, "items": {"ids": [2, 3], "offsets": [0]}}``."""
        return _several_rows(self._send(_several(asked)))

    def tables(self) -> list[dict[str, Any]]:
        """What is served: name, sizes, policy and version of each table."""
        tables: list[dict[str, Any]] = self._send(_get("/v1/tables"))["tables"]
        return tables

    def _send(self, call: _Call) -> Any:
        try:
            answer = self._channels.ask(call.method, call.path, call.headers + self._identity, call.body)
        except (OSError, ValueError) as error:
            raise ServiceError(0, "connection", f"{self._url} did not answer ({error})") from error
        return call.read(*answer)


class AsyncClient:
    """The same methods to await, over aiohttp; make it inside a running event loop."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 10.0,
        retries: int = 2,
        connections: int = 64,
        api_key: str | None = None,
    ) -> None:
        import aiohttp

        self._url, self._retries, self._identity = url.rstrip("/"), retries, _identity(api_key)
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout_s), connector=aiohttp.TCPConnector(limit=connections)
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def lookup(
        self,
        table: str,
        ids: npt.ArrayLike | None = None,
        *,
        keys: Sequence[str] | None = None,
        dtype: npt.DTypeLike = np.float32,
        raw: bool = False,
    ) -> Rows:
        """See :meth:`Client.lookup`."""
        rows: Rows = await self._send(_lookup(table, ids, keys, dtype, raw))
        return rows

    async def bag(
        self,
        table: str,
        ids: npt.ArrayLike,
        offsets: npt.ArrayLike,
        *,
        mode: Mode = "mean",
        per_sample_weights: npt.ArrayLike | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> Rows:
        """See :meth:`Client.bag`."""
        rows: Rows = await self._send(_bag(table, ids, offsets, mode, per_sample_weights, dtype))
        return rows

    async def lookup_several(self, asked: Mapping[str, Mapping[str, Any]]) -> dict[str, Rows]:
        """See :meth:`Client.lookup_several`."""
        return _several_rows(await self._send(_several(asked)))

    async def tables(self) -> list[dict[str, Any]]:
        """See :meth:`Client.tables`."""
        tables: list[dict[str, Any]] = (await self._send(_get("/v1/tables")))["tables"]
        return tables

    async def _send(self, call: _Call) -> Any:
        import aiohttp

        for left in range(self._retries, -1, -1):
            try:
                async with self._request(call) as answer:
                    return call.read(answer.status, answer.headers, await answer.read())
            except (aiohttp.ClientError, TimeoutError) as error:
                if not left or isinstance(error, TimeoutError):
                    raise ServiceError(0, "connection", f"{self._url} did not answer ({error or 'timeout'})") from error
        raise AssertionError

    def _request(self, call: _Call) -> aiohttp.client._RequestContextManager:
        headers = dict(call.headers + self._identity)
        return self._session.request(call.method, self._url + call.path, data=call.body, headers=headers)
