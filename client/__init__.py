"""The client: its public names, each imported when it is first used, so that `import shoal.client` costs nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.client.model.asynchronous import AsyncModel, open_model
    from shoal.client.model.auto import (
        AutoDistributedModel,
        AutoDistributedModelForCausalLM,
        AutoDistributedModelForSequenceClassification,
    )
    from shoal.client.model.cache import SessionCache
    from shoal.client.model.inference import InferenceSession
    from shoal.client.model.remote_sequential import RemoteSequential

__all__ = [
    "AsyncModel",
    "AutoDistributedModel",
    "AutoDistributedModelForCausalLM",
    "AutoDistributedModelForSequenceClassification",
    "InferenceSession",
    "RemoteSequential",
    "SessionCache",
    "open_model",
]

_HOMES = {
    "AsyncModel": "asynchronous",
    "open_model": "asynchronous",
    "AutoDistributedModel": "auto",
    "AutoDistributedModelForCausalLM": "auto",
    "AutoDistributedModelForSequenceClassification": "auto",
    "SessionCache": "cache",
    "InferenceSession": "inference",
    "RemoteSequential": "remote_sequential",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"shoal.client.model.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
