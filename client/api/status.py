"""GET endpoints that tell of the server: models, health, metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST
from shoal.client.api.causes import MISSING_RETRY_S
from shoal.client.api.replies import reply
from shoal.client.api.state import API

if TYPE_CHECKING:
    from shoal.client.api.state import Api


async def models(request: web.Request) -> web.Response:
    """GET /v1/models: the one model that the swarm serves."""
    return reply({"object": "list", "data": [_model(request.app[API])]}, {})


async def model(request: web.Request) -> web.Response:
    """GET /v1/models/NAME. Errors: `ApiError` 404."""
    api = request.app[API]
    api.check_model(request.match_info["name"])
    return reply(_model(api), {})


def _model(api: Api) -> dict[str, Any]:
    held = api.serving.model
    return {
        "id": api.options.name,
        "object": "model",
        "created": api.created,
        "owned_by": "shoal",
        "root": held.checkpoint.path.name,
        "revision": held.checkpoint.revision,
        "max_model_len": held.ends.spec.max_position,
    }


async def live(_: web.Request) -> web.Response:
    """GET /health/live: the process answers."""
    return reply({"live": True}, {})


async def ready(request: web.Request) -> web.Response:
    """GET /health and /health/ready: 200 if a request would find every block, else 503 with what is missing."""
    api = request.app[API]
    missing = api.view.missing()
    is_ready = not missing and not api.admission.closed
    response = reply(
        {
            "status": "ok" if is_ready else "shutting down" if api.admission.closed else "blocks missing",
            "live": True,
            "ready": is_ready,
            "model": api.options.name,
            "blocks": api.view.n_blocks,
            "missing_blocks": missing,
            "peers": len(api.view.peers),
            "in_flight": api.admission.in_flight,
        },
        {} if is_ready else {"Retry-After": f"{MISSING_RETRY_S:.0f}"},
    )
    response.set_status(200 if is_ready else 503)
    return response


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics, for Prometheus."""
    text = request.app[API].metrics.text()
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})
