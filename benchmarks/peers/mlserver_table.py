"""Rows of a dense array by MLServer (Open Inference Protocol v2, JSON). Runs in MLServer's own environment."""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Users(MLModel):
    async def load(self) -> bool:
        rows = self.settings.parameters.extra["rows"]
        self._rows = np.random.default_rng(0).standard_normal((rows, 64), dtype=np.float32)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        ids = NumpyCodec.decode_input(payload.inputs[0])
        output = NumpyCodec.encode_output("rows", self._rows[ids])
        return InferenceResponse(model_name=self.name, outputs=[output])
