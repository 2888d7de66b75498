"""The client: its public names, each imported when it is first used, so that `import shoal.client` costs nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.client.generation import GenerationOptions
    from shoal.client.model.asynchronous import AsyncModel, open_model
    from shoal.client.model.auto import (
        AutoDistributedModel,
        AutoDistributedModelForCausalLM,
        AutoDistributedModelForSequenceClassification,
    )
    from shoal.client.model.cache import SessionCache
    from shoal.client.model.inference import InferenceSession
    from shoal.client.model.remote_sequential import RemoteSequential
    from shoal.client.sampling_options import Sampling

__all__ = [
    "AsyncModel",
    "AutoDistributedModel",
    "AutoDistributedModelForCausalLM",
    "AutoDistributedModelForSequenceClassification",
    "GenerationOptions",
    "InferenceSession",
    "RemoteSequential",
    "Sampling",
    "SessionCache",
    "open_model",
]

_HOMES = {
    "AsyncModel": "model.asynchronous",
    "open_model": "model.asynchronous",
    "AutoDistributedModel": "model.auto",
    "AutoDistributedModelForCausalLM": "model.auto",
    "AutoDistributedModelForSequenceClassification": "model.auto",
    "SessionCache": "model.cache",
    "InferenceSession": "model.inference",
    "RemoteSequential": "model.remote_sequential",
    "GenerationOptions": "generation",
    "Sampling": "sampling_options",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"shoal.client.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
