"""Rows of a dense array by KServe's model server (Open Inference Protocol v2, binary tensors). Runs in KServe's own environment."""

import argparse
import logging

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.model_server import parser as kserve_parser


class Users(Model):
    """A table of random rows."""

    def __init__(self, rows: int) -> None:
        super().__init__("users")
        self._rows = np.random.default_rng(0).standard_normal((rows, 64), dtype=np.float32)
        self.ready = True

    def predict(self, payload: InferRequest, headers: dict | None = None, **_: object) -> InferResponse:
        rows = self._rows[payload.inputs[0].as_numpy()]
        output = InferOutput("rows", list(rows.shape), "FP32")
        output.set_data_from_numpy(rows, binary_data=True)
        return InferResponse(
            payload.id or "1",
            "users",
            [output],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[kserve_parser])
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments, _ = parser.parse_known_args()
    server = ModelServer(workers=1, enable_grpc=False, enable_docs_url=False, enable_latency_logging=False)
    logging.getLogger("uvicorn.access").disabled = True  # it costs, and ours is off too
    server.start([Users(arguments.rows)])
