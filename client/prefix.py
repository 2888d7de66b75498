"""Names for the beginnings of prompts, by which a hop finds KV that it computed for this client before. Bytes only.

A name stands for all that such KV depends on: every token up to its end, the hops that ran before, and the form in
which hidden states travel. Equal names therefore mean equal KV, and a name says nothing to those who lack the secret.
The chain over groups of tokens is that of vLLM's automatic prefix caching, with a keyed hash (BLAKE2b, RFC 7693).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from typing import TYPE_CHECKING

from shoal.peer.wire import KEY_BYTES, MAX_KEYS, PREFIX_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.routing.route import Hop


NONE = -1  # in the place of a last token that is not there


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a session will begin with. `kind`: what else a token's KV depends on (`ModelSpec.length_kind`). `awaited`:
    the session has waited for another one to run it. `user`: who it is, of several whom this client serves."""

    token_ids: tuple[int, ...]
    kind: int = 0
    awaited: bool = False
    user: str = ""


@dataclass(frozen=True)
class Prefix:
    """A prompt's names. `form`: what the KV depends on besides tokens and hops (dtype on the wire, first block).
    `describe(peer_id)`: how a peer computes (quantization, dtype)."""

    prompt: Prompt
    secret: bytes
    form: tuple[str | int, ...]
    describe: Callable[[str], str]

    def keys(self, upstream: Sequence[Hop]) -> tuple[bytes, ...]:
        """One key for every whole group of tokens before the last token, at a hop behind `upstream`."""
        hops = [[hop.peer_id, hop.start, hop.stop, self.describe(hop.peer_id)] for hop in upstream]
        before = self._hash(json.dumps(hops).encode())
        return tuple(self._hash(before + group) for group in self.groups)

    def begins(self, token_ids: Sequence[int], count: int) -> bool:
        """Whether `token_ids` begin with the first `count` tokens of this prompt, and go on."""
        return count < len(token_ids) and tuple(token_ids[:count]) == self.prompt.token_ids[:count]

    def after(self, token_ids: Sequence[int]) -> Prefix:
        """The same for what the KV holds in the end: all of these tokens."""
        return replace(self, prompt=replace(self.prompt, token_ids=(*token_ids, NONE)))

    @cached_property
    def groups(self) -> tuple[bytes, ...]:
        """A chain, without the hops: each one names all tokens up to its end."""
        # The last token must be run in any case: its hidden states are what the client came for.
        ids = self.prompt.token_ids
        count = min((len(ids) - 1) // PREFIX_TOKENS, MAX_KEYS)
        groups = (ids[i * PREFIX_TOKENS : (i + 1) * PREFIX_TOKENS] for i in range(count))
        first = self._hash(json.dumps([self.prompt.kind, self.prompt.user, *self.form]).encode())
        return tuple(accumulate(groups, self._link, initial=first))[1:]

    def _link(self, before: bytes, group: tuple[int, ...]) -> bytes:
        return self._hash(before + json.dumps(group).encode())

    def _hash(self, data: bytes) -> bytes:
        return blake2b(data, key=self.secret, digest_size=KEY_BYTES).digest()
