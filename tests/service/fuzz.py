"""Mutated requests against the fast path and the lane, in this process.

    python -m tests.service.fuzz --inputs 1000000 --seed 1

Every answer must have a status that is allowed, the one error shape or rows of the right size, and come quickly. An input that fails
is printed with its seed and number, so that it can be made again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import orjson

from hfh_embed.layout import SnapshotSpec
from hfh_embed.snapshot import Snapshot
from service.fast_lane import Lane
from service.fast_path import FastPath
from service.guard import Guard
from service.settings import Settings
from service.state import State
from tests.builders import CASES, random_arrays

STATUSES = frozenset((200, 400, 404, 405, 406, 413, 415, 422))
SLOW_S = 2.0
BINARY, JSON, MSGPACK = b"application/octet-stream", b"application/json", b"application/msgpack"
LOOKUP, BAG, SEVERAL = "/v1/tables/users/lookup", "/v1/tables/users/bag", "/v1/lookup"
PATHS = (
    LOOKUP,
    LOOKUP,
    LOOKUP,
    BAG,
    BAG,
    SEVERAL,
    "/v1/tables/goods/bag",
    "/v1/tables/nobody/lookup",
    "/v1/tables//lookup",
)
MEDIA = (BINARY, BINARY, JSON, JSON, MSGPACK, b"", b"text/plain", b"application/json; charset=utf-8", b"\xff", b";")
ACCEPT = (
    b"",
    b"*/*",
    BINARY,
    BINARY + b";dtype=float16",
    JSON,
    MSGPACK,
    b"text/html",
    b"a;dtype=,,;=",
    b"application/*;q=\xff",
)
QUERIES = (b"", b"", b"mode=sum", b"mode=max", b"mode=", b"mode=x&y", b"&&=", b"mode=sum&mode=mean", b"%00")
TOKENS = (
    *(b"9223372036854775807", b"9223372036854775808", b"-1", b"1e999", b"NaN", b"null", b"true", b"[", b"{", b'"', b"\\u0000"),
    *(b'"ids":', b'"keys":', b'"offsets":', b'"mode":"sum"', b'"per_sample_weights":', b'"tables":', b'"include_last_offset":1'),
    *(b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x00" * 8, b"\x80", b"\xdf\xff\xff\xff\xff", b"\xc1", b"\xc7\xff\x05", b"," * 40),
    *(b"\r\n", b"\r\n\r\n", b"content-length: 8\r\n", b"transfer-encoding: chunked\r\n", b"%2f", b"\x00", b"[" * 2_000),
)  # fmt: skip


def _bodies() -> list[tuple[bytes, bytes]]:
    """Media types and bodies, all of them valid for one of the routes."""
    ids, offsets = [3, 1, 2, 999], [0, 2, 2]
    documents: list[dict[str, Any]] = [
        {"ids": ids},
        {"keys": ["key 1", "key 2"]},
        {"ids": ids, "offsets": offsets, "mode": "sum", "per_sample_weights": [0.5, 1, 2, 3]},
        {"ids": ids, "offsets": [0, 4], "include_last_offset": True, "mode": "max"},
        {"tables": {"users": {"ids": ids}, "goods": {"ids": ids, "offsets": offsets}}},
        {"ids": list(range(400))},
    ]
    packed = [{"ids": np.array(ids, "<i8").tobytes(), "offsets": np.array(offsets, "<i8").tobytes()}, {}]
    arrays = [ids, [len(offsets), *offsets, *ids], list(range(500)), [0], []]
    return [
        *((JSON, orjson.dumps(document)) for document in documents),
        *((MSGPACK, msgpack.packb(document)) for document in [*documents, *packed]),
        *((BINARY, np.array(array, "<i8").tobytes()) for array in arrays),
    ]


def mutated(generator: random.Random, body: bytes) -> bytes:
    """A body with a few things wrong."""
    data = bytearray(body)
    for _ in range(generator.choice((0, 1, 1, 2, 4, 9))):
        place = generator.randrange(len(data) + 1)
        match generator.randrange(6):
            case 0:
                data[place:place] = generator.choice(TOKENS)
            case 1:
                del data[place : place + generator.choice((1, 1, 3, 8, 100))]
            case 2 if place < len(data):
                data[place] ^= 1 << generator.randrange(8)
            case 3 if place < len(data):
                data[place] = generator.randrange(256)
            case 4:
                data[place:place] = data[generator.randrange(len(data) + 1) :][: generator.choice((1, 8, 60))]
            case 5:
                data[place:] = b"" if generator.random() < 0.3 else data[place:]
    return bytes(data)


class Fuzzer:
    """Asks one guarded fast path, and checks what comes back."""

    def __init__(self, app: Guard, seed: int) -> None:
        assert app.lane is not None
        self.app, self.lane, self.seed = app, app.lane, seed
        self.seen: Counter[str] = Counter()
        self._bodies = _bodies()

    async def run(self, inputs: int) -> None:
        """Ask ``inputs`` times; AssertionError tells the first wrong answer."""
        for number in range(inputs):
            generator = random.Random(self.seed * 1_000_003 + number)
            began = time.perf_counter()
            try:
                await (self._by_asgi if number % 2 else self._by_lane)(generator)
            except Exception as error:
                raise AssertionError(f"input {number} of seed {self.seed}: {error!r}") from error
            took = time.perf_counter() - began
            assert took < SLOW_S, f"input {number} of seed {self.seed} took {took:.1f} s"
        assert self.app.state.in_flight.now == 0

    async def _by_asgi(self, generator: random.Random) -> None:
        path, (media, body) = generator.choice(PATHS), self._body(generator)
        if generator.random() < 0.1:
            path = mutated(generator, path.encode()).decode("latin-1")
        headers = [(b"content-type", media), (b"accept", self._header(generator, ACCEPT))]
        if generator.random() < 0.2:
            headers.append((b"content-length", mutated(generator, b"%d" % len(body))))
        scope = {
            "type": "http",
            "method": "POST" if generator.random() < 0.98 else "GET",
            "path": path,
            "query_string": generator.choice(QUERIES),
            "headers": headers,
        }
        cut = generator.randrange(len(body) + 1) if generator.random() < 0.1 else len(body)
        parts = [body[:cut], body[cut:]] if cut < len(body) else [body]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        if sent:
            start, content = sent
            self._check("asgi", start["status"], dict(start["headers"]), bytes(content["body"]))

    async def _by_lane(self, generator: random.Random) -> None:
        media, body = self._body(generator)
        query = generator.choice(QUERIES)
        target = generator.choice(PATHS).encode() + (b"?" + query if query else b"")
        lines = [b"POST %b HTTP/1.1" % target, b"host: x", b"content-length: %d" % len(body)]
        lines += [b"content-type: " + media, b"accept: " + self._header(generator, ACCEPT)]
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        if generator.random() < 0.3:
            head = mutated(generator, head)
        answers: list[tuple[bytes, bytes | memoryview]] = []
        if not self.lane.take(head + body, answers.append):
            assert not answers
            self.seen["lane: the long way"] += 1
            return
        self.lane.flush()
        [(top, content)] = answers
        first, *described = top.removesuffix(b"\r\n\r\n").split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in described)
        self._check("lane", int(first.split()[1]), headers, bytes(content))

    def _body(self, generator: random.Random) -> tuple[bytes, bytes]:
        media, body = generator.choice(self._bodies)
        if generator.random() < 0.1:
            media = self._header(generator, MEDIA)
        return media, mutated(generator, body)

    def _header(self, generator: random.Random, choices: tuple[bytes, ...]) -> bytes:
        value = generator.choice(choices)
        return mutated(generator, value) if generator.random() < 0.1 else value

    def _check(self, way: str, status: int, headers: dict[bytes, bytes], body: bytes) -> None:
        self.seen[f"{way}: {status}"] += 1
        assert status in STATUSES, (status, body[:300])
        assert int(headers[b"content-length"]) == len(body)
        if status != 200:
            assert headers[b"content-type"] == JSON
            error = orjson.loads(body)
            assert list(error) == ["error"]
            assert set(error["error"]) == {"type", "message", "status"}
            assert error["error"]["status"] == status
            assert error["error"]["message"] and "Traceback" not in error["error"]["message"]
        elif headers[b"content-type"] == BINARY:
            rows, dim = map(int, headers[b"x-hfh-shape"].split(b","))
            assert len(body) == rows * dim * {b"float32": 4, b"float16": 2}[headers[b"x-hfh-dtype"]]


async def _not_here(scope: Any, receive: Any, send: Any) -> None:
    """What stands behind the fast path is not what is tried here."""


def guarded(folder: Path) -> Guard:
    """A guarded fast path over two small tables, with small limits."""
    table, pool = CASES["words-1"]
    assert pool is not None
    spec = SnapshotSpec((table, table.replace(name="goods", unknown="zero", padding_id=7)), (pool,))
    keys = [f"key {number}" for number in range(table.num_embeddings)]
    Snapshot(spec, random_arrays(spec), vocabularies={"users": keys}).save(folder / "tables.hfh")
    settings = Settings(paths=(folder / "tables.hfh",), max_ids=500, max_body_bytes=5_000, thread_ids=450)
    state = State.load(settings)
    path = FastPath(_not_here, state)
    return Guard(path, state, Lane(path))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name:
        fuzzer, began = Fuzzer(guarded(Path(name)), arguments.seed), time.monotonic()
        asyncio.run(fuzzer.run(arguments.inputs))
    print(f"{arguments.inputs:,} inputs in {time.monotonic() - began:.0f} s, none answered wrongly:")
    for what, count in sorted(fuzzer.seen.items()):
        print(f"  {what:22}{count:>10,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
