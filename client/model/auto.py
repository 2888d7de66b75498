"""The classes that users load models with, by the names that Petals' users know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from shoal.client.model.heads import DistributedModelForCausalLM, DistributedModelForSequenceClassification
    from shoal.client.model.modeling import DistributedModel


class _Auto:
    """Loads one kind of model."""

    _kind: ClassVar[str]

    def __init__(self) -> None:
        name = type(self).__name__
        raise TypeError(f"{name} is not made by itself: use {name}.from_pretrained(...).")

    @classmethod
    def _load(cls, name: str | None, given: dict[str, Any]) -> Any:
        from shoal.client.model import heads, modeling
        from shoal.client.model.loading import Options, open_model

        kind = getattr(heads, cls._kind, None) or getattr(modeling, cls._kind)
        score = kind is heads.DistributedModelForSequenceClassification
        loaded = open_model(name, Options.of(given), score=score)
        try:
            return kind(loaded).eval()
        except BaseException:
            loaded.connection.close()
            raise


class AutoDistributedModel(_Auto):
    """A model without its head."""

    _kind = "DistributedModel"

    @classmethod
    def from_pretrained(cls, name: str | None = None, **options: Any) -> DistributedModel:
        """Load `name` (a directory, a hub name or demo; default: the invite's model) and join its swarm.

        `options`: join=INVITE or a kept name, or initial_peers=[...] with swarm=NAME; revision, dtype, device, codec,
        wait, background: see `loading.Options`. Errors: `BlocksError`, `DhtError` and their kin, each one sentence.
        """
        model: DistributedModel = cls._load(name, options)
        return model


class AutoDistributedModelForCausalLM(_Auto):
    """A model that generates text."""

    _kind = "DistributedModelForCausalLM"

    @classmethod
    def from_pretrained(cls, name: str | None = None, **options: Any) -> DistributedModelForCausalLM:
        """As `AutoDistributedModel.from_pretrained`."""
        model: DistributedModelForCausalLM = cls._load(name, options)
        return model


class AutoDistributedModelForSequenceClassification(_Auto):
    """A model that classifies texts, with the score head of its checkpoint."""

    _kind = "DistributedModelForSequenceClassification"

    @classmethod
    def from_pretrained(cls, name: str | None = None, **options: Any) -> DistributedModelForSequenceClassification:
        """As `AutoDistributedModel.from_pretrained`; `CheckpointError` for a checkpoint without a score head."""
        model: DistributedModelForSequenceClassification = cls._load(name, options)
        return model
