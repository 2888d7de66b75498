"""POST /v1/embeddings: the last hidden state of each text, behind the final norm."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from shoal.client.api.asks import token_ids
from shoal.client.api.body import read_json
from shoal.client.api.embedding_request import EmbeddingRequest, read_embedding
from shoal.client.api.errors import refuse
from shoal.client.api.replies import reply
from shoal.client.api.state import API, Api

if TYPE_CHECKING:
    import torch
    from aiohttp import web


async def embeddings(request: web.Request) -> web.StreamResponse:
    """Answer a request; the inputs pass one after the other. Errors: `ApiError`, and those of `Serving.embed`."""
    api = request.app[API]
    asked = read_embedding(await read_json(request, api.options))
    model = api.check_model(asked.model)
    inputs = [await token_ids(api.serving.model, given, "input") for given in asked.inputs]
    api.check_ready()
    data = []
    with api.admission.enter(1):
        for index, ids in enumerate(inputs):
            data.append({"object": "embedding", "index": index, "embedding": await _embed(api, ids, asked)})
            api.metrics.prompt(len(ids))
    tokens = sum(map(len, inputs))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return reply({"object": "list", "data": data, "model": model, "usage": usage}, {})


async def _embed(api: Api, ids: list[int], asked: EmbeddingRequest) -> Any:
    last = (await api.serving.embed(ids))[-1].float().cpu()
    if asked.dimensions not in (None, len(last)):
        refuse("dimensions", f"This model's embeddings have {len(last)} dimensions and cannot be cut to others.")
    return _written(last / last.norm().clamp_min(1e-12) if asked.normalize else last, asked)


def _written(vector: torch.Tensor, asked: EmbeddingRequest) -> Any:
    if asked.base64:
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
    return vector.tolist()
