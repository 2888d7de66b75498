"""What the endpoints of one server share."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web
from shoal.client.api.causes import api_error, missing_blocks
from shoal.client.api.errors import ApiError

if TYPE_CHECKING:
    from shoal.client.api.admission import Admission
    from shoal.client.api.conversations import Conversations
    from shoal.client.api.metrics import Metrics
    from shoal.client.api.options import ApiOptions
    from shoal.client.api.shapes import Shapes
    from shoal.client.api.tokens import TokenTexts
    from shoal.client.serving import Serving
    from shoal.routing.view import View


@dataclass(frozen=True)
class Api:
    """`created`: when the server began, in seconds since the epoch."""

    serving: Serving
    options: ApiOptions
    admission: Admission
    metrics: Metrics
    texts: TokenTexts
    shapes: Shapes
    conversations: Conversations
    created: int

    @property
    def view(self) -> View:
        """The latest snapshot of the swarm."""
        return self.serving.swarm.view

    @property
    def fingerprint(self) -> str:
        """What determines the answers besides the request: the model's revision."""
        return f"shoal-{self.serving.model.checkpoint.revision[:16]}"

    @property
    def model_names(self) -> tuple[str, ...]:
        """What requests may call the model; the first is its name."""
        return tuple(dict.fromkeys((self.options.name, self.serving.model.checkpoint.path.name)))

    def check_model(self, name: str | None) -> str:
        """The name to answer under. Errors: `ApiError` 404 for a model that is not served here."""
        if name is None or name in self.model_names:
            return name or self.options.name
        text = f"The model {name[:80]!r} is not served here; {self.options.name!r} is."
        raise ApiError(404, text, param="model", code="model_not_found")

    def check_ready(self) -> None:
        """Errors: `ApiError` 503 while blocks are missing and requests are not to wait for them."""
        if not self.options.wait_s and (error := missing_blocks(self.view)) is not None:
            raise error

    def explain(self, error: BaseException) -> ApiError | None:
        """The answer for an error; None for a bug."""
        return api_error(error, self.serving.swarm.presence.there(self.view))


API: web.AppKey[Api] = web.AppKey("api", Api)


def now() -> int:
    """For `created` fields."""
    return int(time.time())
