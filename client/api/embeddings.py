"""POST /v1/embeddings: the last hidden state of each text, behind the final norm."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shoal.client.api.asks import token_ids
from shoal.client.api.body import read_json
from shoal.client.api.embedding_request import EmbeddingRequest, read_embedding
from shoal.client.api.errors import refuse
from shoal.client.api.gate import caller
from shoal.client.api.provenance import headers, provenance
from shoal.client.api.replies import reply
from shoal.client.api.state import API, Api

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from aiohttp import web
    from shoal.client.serving import Embedded

AT_ONCE = 8  # texts of a request that pass through the swarm side by side


async def embeddings(request: web.Request) -> web.StreamResponse:
    """Answer a request. Errors: `ApiError`, and those of `Serving.embed`."""
    api = request.app[API]
    asked = read_embedding(await read_json(request, api.options))
    model = api.check_model(asked.model)
    width = api.serving.model.ends.width
    if asked.dimensions not in (None, width):
        refuse("dimensions", f"This model's embeddings have {width} dimensions and cannot be cut to others.")
    inputs = [await token_ids(api.serving.model, given, "input") for given in asked.inputs]
    api.check_ready()
    with api.admission.enter(1):
        found = await _all(api, inputs, caller(request))
    made = [replace(one.made, index=index) for index, one in enumerate(found)]
    data = [
        {"object": "embedding", "index": index, "embedding": _written(one.hidden[-1].float().cpu(), asked)}
        for index, one in enumerate(found)
    ]
    tokens = sum(map(len, inputs))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    body = {"object": "list", "data": data, "model": model, "usage": usage, "shoal": provenance(made)}
    return reply(body, headers(made))


async def _all(api: Api, inputs: Sequence[list[int]], user: str) -> list[Embedded]:
    """Of each text the last hidden state; the first error ends all."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(ids: list[int]) -> Embedded:
        async with places:
            found = await api.serving.embed(ids, last=True, user=user)
        api.metrics.prompt(len(ids))
        return found

    tasks = [asyncio.create_task(one(ids)) for ids in inputs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _written(vector: torch.Tensor, asked: EmbeddingRequest) -> Any:
    if asked.normalize:
        vector = vector / vector.norm().clamp_min(1e-12)
    if asked.base64:
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
    return vector.tolist()
