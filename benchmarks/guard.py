"""What the guard adds to a request: with nothing asked for, with a key out of 20, with a deadline, with a rate.

    python -m benchmarks.guard

In one process, without sockets: the same application bare and behind the guard, by turns, 5 times, in processor time; a row has
the median and the spread.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import Recorder
from service.auth import Keyring, new_key
from service.calls import CALL
from service.guard import Guard
from service.settings import Settings
from service.state import State

SNAPSHOT = Path(__file__).parent.parent / "tests" / "golden" / "format1" / "exact.hfh"
CALLS, REPEATS, KEYS = 20_000, 5, 20
HEADERS = [
    (b"host", b"localhost"),
    (b"content-type", b"application/octet-stream"),
    (b"accept", b"*/*"),
    (b"content-length", b"512"),
    (b"user-agent", b"benchmark"),
]


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """The least application: it counts 64 ids as a lookup does, and answers three bytes."""
    call = CALL.get()
    if call is not None:
        await call.spend(64)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"x")]})
    await send({"type": "http.response.body", "body": b"abc"})


def guarded(keys: Keyring) -> Guard:
    """The guard around it, as the service makes it."""
    state = State.load(Settings(paths=(SNAPSHOT,)))
    state.keys = keys
    return Guard(answer, state)


async def us_per_call(app: Any, headers: list[tuple[bytes, bytes]]) -> float:
    """Microseconds of processor time of one request."""

    async def nothing(*_: Any) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": "/v1/tables/users/lookup", "headers": headers, "client": None}
    began = time.process_time()
    for _ in range(CALLS):
        await app(scope, nothing, nothing)
    return (time.process_time() - began) / CALLS * 1e6


def main() -> None:
    """Measure, print and record."""
    made = [new_key(f"key-{number}", "read") for number in range(KEYS)]
    rated = new_key("rated", "read", "1000000000/second")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.yaml"
        file.write_text(json.dumps({"keys": [json.loads(line) for _, line in [*made, rated]]}))
        keys = Keyring.load(file)
    bearer = [(b"authorization", b"Bearer " + made[-1][0].encode())]
    variants = {
        "guard": (guarded(Keyring()), []),
        f"guard, a key out of {KEYS + 1}": (guarded(keys), bearer),
        "guard, a deadline": (guarded(Keyring()), [(b"x-hfh-timeout-ms", b"1000")]),
        "guard, a key with a rate": (guarded(keys), [(b"authorization", b"Bearer " + rated[0].encode())]),
    }
    added: dict[str, list[float]] = {name: [] for name in variants}
    recorder = Recorder("guard")
    for _ in range(REPEATS):
        for name, (app, headers) in variants.items():
            bare = asyncio.run(us_per_call(answer, HEADERS))
            added[name].append(asyncio.run(us_per_call(app, HEADERS + headers)) - bare)
    for name, found in added.items():
        median, spread = statistics.median(found), max(found) - min(found)
        recorder.row(what=name, added_us=round(median, 2), spread_us=round(spread, 2), calls=CALLS, repeats=REPEATS)
        print(f"{name:<28} + {median:6.2f} us  (spread {spread:.2f})")


if __name__ == "__main__":
    main()
