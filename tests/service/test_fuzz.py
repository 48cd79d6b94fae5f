"""A short run of the fuzzer; `make fuzz` makes a long one."""

import asyncio
import random

from service.fast_path import FastPath
from tests.service.fuzz import Fuzzer, guarded, mutated


def test_mutated_requests_get_allowed_answers(tmp_path) -> None:
    fuzzer = Fuzzer(guarded(tmp_path), seed=7)
    asyncio.run(fuzzer.run(6_000))
    assert {"asgi: 200", "asgi: 400", "asgi: 413", "asgi: 415", "asgi: 422", "lane: 200", "lane: 422"} <= set(
        fuzzer.seen
    )


def test_the_fuzzer_finds_a_wrong_answer(tmp_path) -> None:
    app = guarded(tmp_path)
    fuzzer, path = Fuzzer(app, seed=7), app._app
    assert isinstance(path, FastPath)
    path.answer = lambda asked, rows: (b"12", [(b"x-hfh-shape", b"9,9"), (b"x-hfh-dtype", b"float32")])  # type: ignore[method-assign]
    try:
        asyncio.run(fuzzer.run(500))
    except AssertionError as error:
        assert "of seed 7" in str(error)
    else:
        raise AssertionError("a wrong size was not noticed")


def test_mutations_can_be_made_again() -> None:
    assert mutated(random.Random(5), b"abc" * 30) == mutated(random.Random(5), b"abc" * 30)
