"""The web application: which path leads where, and what every answer has. Knows no field of any request."""

from __future__ import annotations

import logging
import time
import uuid
from typing import TYPE_CHECKING

from aiohttp import web
from shoal.client.api import status
from shoal.client.api.admission import Admission
from shoal.client.api.chats import chats
from shoal.client.api.completions import completions
from shoal.client.api.conversations import Conversations
from shoal.client.api.embeddings import embeddings
from shoal.client.api.errors import ApiError
from shoal.client.api.gate import KEYLESS, Gate
from shoal.client.api.metrics import Metrics
from shoal.client.api.replies import reply
from shoal.client.api.shapes import Shapes
from shoal.client.api.state import API, Api
from shoal.client.api.tokens import TokenTexts
from shoal.client.web.pages import add_pages

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.typedefs import Middleware
    from shoal.client.api.options import ApiOptions
    from shoal.client.serving import Serving

    Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]

logger = logging.getLogger(__name__)

HEALTH = ("/health", "/health/live", "/health/ready")
CLIENT_LEFT = 499  # nginx' number for it


def make_app(serving: Serving, options: ApiOptions) -> web.Application:
    """An application that answers for `serving`'s model."""
    gate, admission = Gate(options.doors), Admission(options.max_in_flight)
    counted = Metrics(lambda: serving.swarm.view, lambda: admission.in_flight)
    app = web.Application(middlewares=[_shell(gate)], client_max_size=options.max_body)
    conversations = Conversations(serving.model)
    app.on_cleanup.append(conversations.close)
    app[API] = Api(
        serving, options, admission, counted, TokenTexts(serving.model.tokenizer), Shapes(serving.model), conversations,
        int(time.time()),
    )  # fmt: skip
    app[KEYLESS] = {*HEALTH, *add_pages(app, serving, options.name)}
    app.on_response_prepare.append(gate.allow_origin)
    app.on_response_prepare.append(_name_request)
    app.router.add_get("/v1/models", status.models)
    app.router.add_get("/v1/models/{name:.+}", status.model)
    app.router.add_post("/v1/chat/completions", chats)
    app.router.add_post("/v1/completions", completions)
    app.router.add_post("/v1/embeddings", embeddings)
    app.router.add_get("/health/live", status.live)
    for path in ("/health", "/health/ready"):
        app.router.add_get(path, status.ready)
    app.router.add_get("/metrics", status.metrics)
    return app


def _shell(gate: Gate) -> Middleware:
    """Around every endpoint: who may come in, errors as OpenAI writes them, what is counted."""

    @web.middleware
    async def shell(request: web.Request, handler: Serve) -> web.StreamResponse:
        began, outcome = time.perf_counter(), CLIENT_LEFT
        try:
            response = await _answer(gate, request, handler)
            outcome = response.status
        finally:
            route = request.match_info.route.resource
            endpoint = route.canonical if route is not None else "other"
            request.app[API].metrics.request(endpoint, outcome, time.perf_counter() - began)
        return response

    return shell


async def _answer(gate: Gate, request: web.Request, serve: Serve) -> web.StreamResponse:
    try:
        return await gate.check(request, serve)
    except ConnectionError:
        raise
    except web.HTTPException as error:
        return _refusal(_routing_error(request, error))
    except Exception as error:
        if (known := request.app[API].explain(error)) is not None:
            return _refusal(known)
        logger.exception("%s %s failed", request.method, request.path)
        return _refusal(ApiError(500, "The server made a mistake; its log tells more.", code="internal_error"))


def _routing_error(request: web.Request, error: web.HTTPException) -> ApiError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return ApiError(405, f"{request.path[:200]} takes {allowed}.", code="method_not_allowed")
    if error.status == web.HTTPNotFound.status_code:
        return ApiError(404, f"There is nothing at {request.path[:200]}.", code="not_found")
    return ApiError(error.status, error.reason, code="http_error")


def _refusal(error: ApiError) -> web.Response:
    response = reply(error.body, error.headers)
    response.set_status(error.status)
    return response


async def _name_request(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["x-request-id"] = f"req_{uuid.uuid4().hex}"
    response.headers["Server"] = "shoal"
