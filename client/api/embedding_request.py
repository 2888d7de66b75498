"""A request to /v1/embeddings, read and checked. Pure: data in, data out; knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from shoal.client.api.completion_request import prompts_of
from shoal.client.api.fields import Fields, flag, one_of, text, whole
from shoal.client.api.wishes import LABELS

if TYPE_CHECKING:
    from collections.abc import Mapping


MAX_INPUTS = 2048  # OpenAI's


@dataclass(frozen=True)
class EmbeddingRequest:
    """`normalize`: to length 1. `base64`: little-endian float32 in base64 in place of numbers."""

    inputs: tuple[str | tuple[int, ...], ...]
    model: str | None
    base64: bool
    dimensions: int | None
    normalize: bool


def read_embedding(given: Mapping[str, Any]) -> EmbeddingRequest:
    """Check a request. Errors: `ApiError`."""
    fields = Fields(given)
    found = EmbeddingRequest(
        inputs=fields.need("input", partial(prompts_of, most=MAX_INPUTS)),
        model=fields.take("model", text(512), None),
        base64=fields.take("encoding_format", one_of("float", "base64"), "float") == "base64",
        dimensions=fields.take("dimensions", whole(1, 1 << 20), None),
        normalize=fields.take("normalize", flag, default=True),
    )
    fields.ignore(*LABELS)
    fields.end()
    return found
