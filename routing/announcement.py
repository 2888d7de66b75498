"""Owns what a peer says of itself: the announcement and its strict wire form. Knows no view, no network, no clock.

The body is a msgpack map of short keys; unknown keys are skipped, so that a later version may add some. Identity,
sequence number, expiry and revision stand in the signed `Record` around the body and are never read from the body.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

import msgpack
from shoal.routing.bounds import BLOCK_S, MAX_CHUNK, MAX_FREE_TOKENS, MAX_QUEUE, RTT_S, clamp_count, clamp_upload
from shoal.routing.names import MAX_NAME_CHARS, shown_name

if TYPE_CHECKING:
    from shoal.dht.record import Record

State = Literal["joining", "online", "draining", "paused"]
Reach = Literal["direct", "relayed", "unknown"]

STATES: Final = frozenset(get_args(State))
REACHES: Final = frozenset(get_args(Reach))
MAX_BODY_BYTES: Final = 1500
MAX_ADDRS: Final = 8
MAX_ADDR_CHARS: Final = 256
MAX_RTTS: Final = 12
MAX_RATES: Final = 6
MAX_LABEL_CHARS: Final = MAX_NAME_CHARS
MAX_ID_CHARS: Final = 64
_MAX_KEYS: Final = 64
_MAX_INT: Final = 2**63


class AnnouncementError(Exception):
    """An announcement that is not one: a field is missing, of the wrong type, too long or outside the model."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """One peer's claim: which blocks it serves, how fast, how busy it is and how to reach it.

    `decode_s`: seconds one decode token spends in this peer's engine per block when alone. `prefill_s`: seconds per
    prompt token and block. `queue`: sessions in service. `free_tokens`: KV tokens that somebody new could get.
    `max_chunk`: prompt tokens in one message. `rtts`: (peer id, measured round trip in seconds). `name`: free text for
    people. `reach`: how others get to it. `upload_bps`: bytes/s that it can send, 0 if it does not know; `rates`: (peer
    id, bytes/s) of ways to others that were seen to carry much less. `state`: a `paused` peer keeps its blocks loaded
    and takes nobody; versions that do not know the word read `draining`.
    """

    peer_id: str
    sequence: int
    expiry: float
    start: int
    stop: int
    state: State
    quantization: str
    dtype: str
    decode_s: float
    prefill_s: float
    queue: int
    free_tokens: int
    max_chunk: int
    addrs: tuple[str, ...]
    rtts: tuple[tuple[str, float], ...]
    version: str
    name: str
    revision: str
    reach: Reach = "unknown"
    upload_bps: float = 0.0
    rates: tuple[tuple[str, float], ...] = ()


def encode(announcement: Announcement) -> bytes:
    """Return the record body of `announcement`, at most `MAX_BODY_BYTES` long.

    Figures are clamped as `decode` clamps them; of the round trips the nearest that fit are kept (at most `MAX_RTTS`),
    of the rates the slowest (at most `MAX_RATES`). Raises AnnouncementError for what `decode` would refuse, and if the
    addresses alone are too long.
    """
    body = _body(announcement)
    _fields(body, n_blocks=announcement.stop)
    packed = _pack(body)
    while len(packed) > MAX_BODY_BYTES and (left := body["r"] or body["br"]):
        left.popitem()
        packed = _pack(body)
    if len(packed) > MAX_BODY_BYTES:
        raise AnnouncementError(
            f"the announcement takes {len(packed)} bytes and {MAX_BODY_BYTES} are allowed: announce fewer addresses"
        )
    return packed


def decode(record: Record, n_blocks: int) -> Announcement:
    """Return the announcement inside a verified `record` of a model of `n_blocks` blocks.

    Absurd figures are clamped (see `bounds`). Raises AnnouncementError for anything else that is not an announcement.
    """
    fields = _fields(_unpack(record.body), n_blocks)
    return Announcement(
        peer_id=record.peer_id,
        sequence=record.sequence,
        expiry=record.expiry,
        revision=record.revision,
        **fields,
    )


def _body(announcement: Announcement) -> dict[str, Any]:
    nearest = sorted(announcement.rtts, key=lambda pair: (RTT_S.clamp(pair[1]), pair[0]))[:MAX_RTTS]
    known = ((peer_id, clamp_upload(rate)) for peer_id, rate in announcement.rates)
    slowest = sorted((pair for pair in known if pair[1]), key=lambda pair: (pair[1], pair[0]))[:MAX_RATES]
    return {
        "s": announcement.start,
        "e": announcement.stop,
        "st": "draining" if announcement.state == "paused" else announcement.state,
        **({"pa": True} if announcement.state == "paused" else {}),
        "q": announcement.quantization,
        "dt": announcement.dtype,
        "d": BLOCK_S.clamp(announcement.decode_s),
        "p": BLOCK_S.clamp(announcement.prefill_s),
        "qu": clamp_count(announcement.queue, 0, MAX_QUEUE),
        "f": clamp_count(announcement.free_tokens, 0, MAX_FREE_TOKENS),
        "c": clamp_count(announcement.max_chunk, 1, MAX_CHUNK),
        "a": list(announcement.addrs),
        "r": {peer_id: round(RTT_S.clamp(rtt_s) * 1e6) for peer_id, rtt_s in nearest},  # whole microseconds are short
        "v": announcement.version,
        "n": announcement.name,
        "re": announcement.reach,
        "b": clamp_upload(announcement.upload_bps),
        "br": {peer_id: round(rate) for peer_id, rate in slowest},
    }


def _pack(body: dict[str, Any]) -> bytes:
    return cast(bytes, msgpack.packb(body))


def _unpack(packed: bytes) -> dict[str, Any]:
    if len(packed) > MAX_BODY_BYTES:
        raise AnnouncementError(f"the announcement takes {len(packed)} bytes and {MAX_BODY_BYTES} are allowed")
    try:
        body = msgpack.unpackb(
            packed,
            max_str_len=MAX_ADDR_CHARS * 4,
            max_array_len=_MAX_KEYS,
            max_map_len=_MAX_KEYS,
            max_bin_len=0,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise AnnouncementError(f"the announcement is not msgpack of the expected shape: {error}") from error
    if not isinstance(body, dict):
        raise AnnouncementError("the announcement is not a map")
    return body


def _fields(body: dict[str, Any], n_blocks: int) -> dict[str, Any]:
    start, stop = _int(body, "s"), _int(body, "e")
    if not 0 <= start < stop <= n_blocks:
        raise AnnouncementError(f"blocks {start}:{stop} are not a span of a model of {n_blocks} blocks")
    state = "paused" if body.get("pa") is True else _label(body, "st")
    if state not in STATES:
        raise AnnouncementError(f"state {state!r} is none of {', '.join(sorted(STATES))}")
    reach = _label(body, "re") if "re" in body else "unknown"
    return {
        "start": start,
        "stop": stop,
        "state": state,
        "quantization": _label(body, "q"),
        "dtype": _label(body, "dt"),
        "decode_s": BLOCK_S.clamp(_float(body, "d")),
        "prefill_s": BLOCK_S.clamp(_float(body, "p")),
        "queue": clamp_count(_int(body, "qu"), 0, MAX_QUEUE),
        "free_tokens": clamp_count(_int(body, "f"), 0, MAX_FREE_TOKENS),
        "max_chunk": clamp_count(_int(body, "c"), 1, MAX_CHUNK),
        "addrs": _addrs(body),
        "rtts": _rtts(body),
        "version": _label(body, "v"),
        "name": shown_name(_label(body, "n")),
        "reach": reach if reach in REACHES else "unknown",  # a later version may know more ways
        "upload_bps": clamp_upload(_float(body, "b")) if "b" in body else 0.0,
        "rates": _rates(body) if "br" in body else (),
    }


def _int(body: dict[str, Any], key: str) -> int:
    figure = body.get(key)
    if type(figure) is not int or abs(figure) > _MAX_INT:
        raise AnnouncementError(f"field {key!r} is not a whole number")
    return figure


def _float(body: dict[str, Any], key: str) -> float:
    figure = body.get(key)
    if type(figure) is int and abs(figure) <= _MAX_INT:
        return float(figure)
    if type(figure) is not float:
        raise AnnouncementError(f"field {key!r} is not a number")
    return figure


def _label(body: dict[str, Any], key: str) -> str:
    text = body.get(key)
    if type(text) is not str or len(text) > MAX_LABEL_CHARS or not text.isprintable():
        raise AnnouncementError(f"field {key!r} is not printable text of at most {MAX_LABEL_CHARS} characters")
    return text


def _addrs(body: dict[str, Any]) -> tuple[str, ...]:
    addrs = body.get("a")
    if type(addrs) is not list or len(addrs) > MAX_ADDRS or not all(map(_is_addr, addrs)):
        raise AnnouncementError(f"field 'a' is not a list of at most {MAX_ADDRS} multiaddrs")
    return tuple(addrs)


def _is_addr(addr: object) -> bool:
    return type(addr) is str and addr.startswith("/") and len(addr) <= MAX_ADDR_CHARS and _is_plain(addr)


def _rtts(body: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    return tuple((peer_id, RTT_S.clamp(figure / 1e6)) for peer_id, figure in _by_peer(body, "r", MAX_RTTS))


def _rates(body: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    """What is no rate is left out: it would stand for an unknown one."""
    rates = ((peer_id, clamp_upload(figure)) for peer_id, figure in _by_peer(body, "br", MAX_RATES))
    return tuple(pair for pair in rates if pair[1])


def _by_peer(body: dict[str, Any], key: str, most: int) -> list[tuple[str, float]]:
    figures = body.get(key)
    if type(figures) is not dict or len(figures) > most:
        raise AnnouncementError(f"field {key!r} is not a map of at most {most} peers' figures")
    for peer_id in figures:
        if type(peer_id) is not str or not 0 < len(peer_id) <= MAX_ID_CHARS or not _is_plain(peer_id):
            raise AnnouncementError(f"field {key!r} holds a key that is no peer id")
    return [(peer_id, _float(figures, peer_id)) for peer_id in figures]


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
