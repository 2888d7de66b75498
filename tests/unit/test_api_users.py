"""Who asks `shoal api`, by their API key, is who a prompt's names are made for: at every endpoint, through the app."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from aiohttp.test_utils import TestClient, TestServer
from shoal.blocks.checkpoint import resolve
from shoal.blocks.ends import load_tokenizer
from shoal.blocks.spec import spec_of
from shoal.client.api.app import make_app
from shoal.client.api.options import ApiOptions, Doors
from shoal.client.local import ClientModel
from shoal.client.prefix import Prefix
from shoal.client.serving import Serving
from shoal.peer.errors import NoRouteError
from shoal.routing.view import View

# aiohttp 3.14 advises keys that the older releases we run with do not have.
pytestmark = pytest.mark.filterwarnings("ignore:It is recommended to use web.RequestKey")

TEXT = "def add(a, b):\n" * 40
ENDPOINTS = {
    "/v1/completions": {"prompt": TEXT},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": TEXT}], "n": 2},
    "/v1/embeddings": {"input": TEXT},
}


class Asked:
    """A swarm that has room for nobody, and remembers the prompts for which it was asked."""

    def __init__(self) -> None:
        self.prompts = []
        self.view = View(12, (), 0.0)
        self.presence = SimpleNamespace(there=lambda view: view)

    def session(self, options):
        self.prompts.append(options.prompt)
        raise NoRouteError("nobody is here")


@pytest.fixture(scope="module")
def model() -> ClientModel:
    checkpoint = resolve("demo")
    spec = spec_of(checkpoint)
    ends = SimpleNamespace(spec=spec, width=spec.hidden_size)
    return ClientModel(checkpoint, ends, load_tokenizer(checkpoint), "float32", frozenset())


async def names(model: ClientModel, path: str, keys: frozenset[str], *headers: dict[str, str]) -> list[set[bytes]]:
    """For each request, the names that its prompt's beginnings get."""
    swarm, found = Asked(), []
    app = make_app(Serving(swarm, model), ApiOptions("demo", Doors(keys), wait_s=1.0))
    async with TestClient(TestServer(app)) as client:
        for one in headers:
            swarm.prompts.clear()
            answer = await client.post(path, json=ENDPOINTS[path], headers=one)
            assert answer.status == 503, await answer.text()
            (prompt,) = set(swarm.prompts)
            found.append({*Prefix(prompt, b"s" * 32, (), str).keys(())})
    assert all(len(each) >= 2 for each in found)
    return found


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_prompts_of_two_keys_have_no_name_in_common_and_those_of_one_key_all(model, path):
    bearer, other, header = {"Authorization": "Bearer one"}, {"Authorization": "Bearer two"}, {"X-Api-Key": "one"}
    first, second, again = await names(model, path, frozenset({"one", "two"}), bearer, other, header)
    assert not first & second
    assert again == first


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_where_no_key_is_asked_for_all_are_one_user(model, path):
    first, again = await names(model, path, frozenset(), {}, {"Authorization": "Bearer two"})
    assert again == first
