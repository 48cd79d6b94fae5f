"""Tensors of the Open Inference Protocol, version 2: what an infer request asks, and the answer to it.

A body is JSON; with the binary tensor extension, ``Inference-Header-Content-Length`` bytes of JSON and then the data of the
tensors that have ``binary_data_size``, in their order. BYTES elements are a little-endian uint32 length and the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from service import wire
from service.errors import ApiError, bad_request

__all__ = ["INPUTS", "OUTPUTS", "Question", "answer", "question"]

INPUTS = {"ids": "INT64", "keys": "BYTES", "offsets": "INT64", "per_sample_weights": "FP32"}
OUTPUTS = {"embeddings": "FP32", "embeddings_fp16": "FP16"}
WIDTHS = {"INT64": 8, "FP32": 4}
ROWS: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "FP16": np.dtype("<f2")}
MOST_DIMENSIONS = 8
PARAMETERS = {"binary_data_output", "mode", "include_last_offset"}
MODES = ("sum", "mean", "max")


@dataclass(frozen=True)
class Question:
    """One infer request. ``shape`` is that of the ids or keys; with ``bag`` (arguments of a bag) they are flat."""

    shape: tuple[int, ...]
    ids: npt.NDArray[np.int64] | None
    keys: list[str] | None
    bag: dict[str, Any] | None
    outputs: list[tuple[str, bool]]
    id: str | None = field(default=None)

    @property
    def half(self) -> bool:
        """Whether only float16 rows are asked for."""
        return all(OUTPUTS[name] == "FP16" for name, _ in self.outputs)


def question(body: bytes, header_length: bytes, most: int) -> Question:
    """Read an infer request for at most ``most`` ids; ApiError where it is not a valid one."""
    size = len(body)
    if header_length:
        if not header_length.isdigit() or int(header_length) > size:
            raise bad_request(
                f"Inference-Header-Content-Length is {header_length[:20].decode('latin-1')!r}; give the bytes of JSON, at most {size}"
            )
        size = int(header_length)
    request = wire.decode(wire.JSON, body[:size] if header_length else body)
    _known(request, {"id", "inputs", "outputs", "parameters"}, "the request")
    if not isinstance(name := request.get("id", ""), str):
        raise bad_request("id must be a string")
    inputs = _inputs(_objects(request.get("inputs"), "inputs"), memoryview(body)[size:], most)
    parameters = _object(request.get("parameters", {}), "parameters")
    _known(parameters, PARAMETERS, "parameters")
    if ("ids" in inputs) == ("keys" in inputs):
        raise bad_request("give one of the inputs ids and keys")
    shape, values = inputs["ids"] if "ids" in inputs else inputs["keys"]
    return Question(
        shape,
        values if "ids" in inputs else None,
        values if "keys" in inputs else None,
        _bag(inputs, parameters),
        _outputs(request.get("outputs"), parameters),
        name or None,
    )


def _inputs(tensors: list[dict[str, Any]], data: memoryview, most: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Each input's shape and its flat values."""
    inputs: dict[str, tuple[tuple[int, ...], Any]] = {}
    for tensor in tensors:
        _known(tensor, {"name", "shape", "datatype", "parameters", "data"}, "an input")
        name, shape = tensor.get("name"), tensor.get("shape")
        datatype = INPUTS.get(name) if isinstance(name, str) else None
        if not isinstance(name, str) or datatype is None:
            raise bad_request(f"input {str(name)[:40]!r} is not known; known are {', '.join(INPUTS)}")
        if name in inputs:
            raise bad_request(f"input {name!r} is given twice")
        if tensor.get("datatype") != datatype:
            raise bad_request(f"input {name!r} has datatype {str(tensor.get('datatype'))[:20]!r}; send {datatype}")
        if (
            not isinstance(shape, list)
            or len(shape) > MOST_DIMENSIONS
            or not all(type(size) is int and 0 <= size < 2**63 for size in shape)
        ):
            raise bad_request(f"input {name!r} has no usable shape; give a list of at most {MOST_DIMENSIONS} sizes")
        count = math.prod(shape)
        if count > most:
            raise wire.too_many(count, most)
        own = _object(tensor.get("parameters", {}), "parameters of an input")
        _known(own, {"binary_data_size"}, f"parameters of input {name!r}")
        if ("binary_data_size" in own) == ("data" in tensor):
            raise bad_request(f"input {name!r} needs either data or the parameter binary_data_size")
        if "data" in tensor:
            inputs[name] = tuple(shape), _plain(name, datatype, count, tensor["data"])
        else:
            size = own["binary_data_size"]
            if type(size) is not int or not 0 <= size <= len(data):
                raise bad_request(f"input {name!r} has binary_data_size {str(size)[:20]}; {len(data)} bytes are left")
            inputs[name] = tuple(shape), _binary(name, datatype, count, data[:size])
            data = data[size:]
    if len(data):
        raise bad_request(f"{len(data)} bytes after the last binary tensor; no input has them as binary_data_size")
    return inputs


def _plain(name: str, datatype: str, count: int, data: Any) -> Any:
    """Values in JSON, flat or nested."""
    for _ in range(MOST_DIMENSIONS):
        if not (isinstance(data, list) and any(isinstance(part, list) for part in data)):
            break
        if not all(isinstance(part, list) for part in data):
            raise bad_request(f"data of input {name!r} is nested unevenly")
        data = [value for part in data for value in part]
    if not isinstance(data, list) or len(data) != count:
        given = f"{len(data)} values" if isinstance(data, list) else f"a {type(data).__name__}"
        raise bad_request(f"data of input {name!r} is {given}; its shape has {count}")
    if datatype == "INT64":
        return wire.integers(data, f"input {name!r}")
    if datatype == "FP32":
        return wire.numbers(data, f"input {name!r}")
    if not all(isinstance(value, str) for value in data):
        raise bad_request(f"input {name!r} must hold strings")
    return data


def _binary(name: str, datatype: str, count: int, data: memoryview) -> Any:
    """Values in the binary part."""
    if datatype == "BYTES":
        return list(_strings(name, count, data))
    if len(data) != count * WIDTHS[datatype]:
        raise bad_request(
            f"input {name!r} has {len(data)} bytes; its shape has {count} values of {WIDTHS[datatype]} bytes"
        )
    return np.frombuffer(data, dtype="<i8" if datatype == "INT64" else "<f4")


def _strings(name: str, count: int, data: memoryview) -> Iterable[str]:
    place = 0
    for _ in range(count):
        end = place + 4 + int.from_bytes(data[place : place + 4], "little")
        if place + 4 > len(data) or end > len(data):
            raise bad_request(f"input {name!r} ends in the middle of a string")
        try:
            yield str(data[place + 4 : end], "utf-8")
        except UnicodeDecodeError:
            raise bad_request(f"input {name!r} holds bytes that are not UTF-8") from None
        place = end
    if place != len(data):
        raise bad_request(f"input {name!r} has {len(data) - place} bytes more than its {count} strings")


def _bag(inputs: dict[str, tuple[tuple[int, ...], Any]], parameters: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments of a bag where offsets are given."""
    if "offsets" not in inputs:
        for wrong in {"per_sample_weights"} & inputs.keys() | {"mode", "include_last_offset"} & parameters.keys():
            raise bad_request(f"{wrong} goes with the input offsets, which asks for bags")
        return None
    mode, last = parameters.get("mode", "mean"), parameters.get("include_last_offset", False)
    if mode not in MODES:
        raise bad_request(f"mode is {str(mode)[:40]!r}; allowed are {', '.join(MODES)}")
    if not isinstance(last, bool):
        raise bad_request("include_last_offset must be true or false")
    arguments = {"offsets": inputs["offsets"][1], "mode": mode, "include_last_offset": last}
    if "per_sample_weights" in inputs:
        arguments["per_sample_weights"] = inputs["per_sample_weights"][1]
    return arguments


def _outputs(given: Any, parameters: dict[str, Any]) -> list[tuple[str, bool]]:
    """Names of the wanted outputs, and whether each is binary."""
    every = parameters.get("binary_data_output", False)
    if not isinstance(every, bool):
        raise bad_request("binary_data_output must be true or false")
    outputs: dict[str, bool] = {}
    for tensor in _objects(given, "outputs") if given else [{"name": "embeddings"}]:
        _known(tensor, {"name", "parameters"}, "an output")
        name = tensor.get("name")
        own = _object(tensor.get("parameters", {}), "parameters of an output")
        _known(own, {"binary_data"}, "parameters of an output")
        binary = own.get("binary_data", every)
        if not isinstance(name, str) or name not in OUTPUTS or name in outputs:
            raise bad_request(f"output {str(name)[:40]!r} is not known or asked twice; known are {', '.join(OUTPUTS)}")
        if not isinstance(binary, bool):
            raise bad_request("binary_data must be true or false")
        if OUTPUTS[name] == "FP16" and not binary:
            raise bad_request(f"output {name!r} is FP16, which has no JSON form; ask for it with binary_data")
        outputs[name] = binary
    return list(outputs.items())


def answer(asked: Question, name: str, version: str, rows: npt.NDArray[Any]) -> tuple[bytes, list[memoryview | bytes]]:
    """The answer's JSON, and the binary data that follow it: rows (n, D) by the outputs that were asked."""
    shape = [*asked.shape, rows.shape[-1]] if asked.bag is None else list(rows.shape)
    document: dict[str, Any] = {"model_name": name, "model_version": version}
    if asked.id is not None:
        document["id"] = asked.id
    binary: list[memoryview | bytes] = []
    outputs = document["outputs"] = []
    for output, raw in asked.outputs:
        datatype = OUTPUTS[output]
        values = rows.astype(ROWS[datatype], copy=False).reshape(-1)
        tensor: dict[str, Any] = {"name": output, "datatype": datatype, "shape": shape}
        if raw:
            tensor["parameters"] = {"binary_data_size": values.nbytes}
            binary.append(values.view(np.uint8).data)
        else:
            tensor["data"] = values
        outputs.append(tensor)
    return wire.json_text(document), binary


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad_request(f"{what} must be an object")
    return value


def _objects(value: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise bad_request(f"{what} must be a list of objects, at least one")
    return value


def _known(given: dict[str, Any], known: set[str], what: str) -> None:
    if unknown := given.keys() - known:
        raise ApiError(
            400,
            "not_supported",
            f"{what} has {sorted(unknown)[0][:40]!r}, which is not supported; known are {', '.join(sorted(known))}",
        )
