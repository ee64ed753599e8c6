"""A runtime for MLServer: a call's body travels as the one text of a V2 request."""

from __future__ import annotations

from answering_model import load
from mlserver import MLModel
from mlserver.codecs import StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri


class Answering(MLModel):
    async def load(self) -> bool:
        self._answer = load(await get_model_uri(self._settings))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        [text] = StringCodec.decode_input(payload.inputs[0])
        output = StringCodec.encode_output("answer", [self._answer(text.encode())])
        return InferenceResponse(model_name=self.name, outputs=[output])
