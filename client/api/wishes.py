"""What chat and completion requests alike may ask of an answer: names and bounds are OpenAI's, and vLLM's for what
OpenAI has not. Pure: data in, data out; knows no model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shoal.client.api.errors import refuse
from shoal.client.api.fields import Fields, flag, items, mapping, number, one_of, text, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_N = 128
MAX_STOPS = 16
MAX_STOP_CHARS = 4096
MAX_TOKENS = 1 << 31
MAX_TOP_LOGPROBS = 20
MAX_BIASED = 4096
MAX_SEED = 1 << 63
LEAST_TOP_P = 1e-9  # what a top_p of 0 means: the most probable token alone
BACKGROUND_TIERS = ("flex",)
# Hints and labels: they change nothing about what is answered.
LABELS = (
    "user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
    "prediction", "request_id", "cache_salt",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What the text must look like: `kind` is json_object, json_schema, regex or choice."""

    kind: str
    value: Any = None


@dataclass(frozen=True)
class Wishes:
    """`max_tokens` None: as many as the server allows. `logit_bias` by token id. `top_logprobs` None: no logprobs.
    `stop_token_ids` end the text as the model's own end tokens do; `ignore_eos` leaves those out."""

    model: str | None = None
    stream: bool = False
    include_usage: bool = False
    usage_in_each: bool = False
    n: int = 1
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stops: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int | None = None
    shape: Shape | None = None
    background: bool = False
    return_token_ids: bool = False


def read_wishes(fields: Fields, max_tokens: int | None, top_logprobs: int | None) -> Wishes:
    """What both kinds of request have in one form; the two arguments have a form of their own in each."""
    stream = fields.take("stream", flag, default=False)
    usage, in_each = _stream_options(fields, stream=stream)
    top_k = fields.take("top_k", whole(-1, 1 << 31), 0)
    fields.ignore(*LABELS)
    fields.cannot("nothing is stored here.", "store")
    fields.cannot("beam search is the Python client's (`model.generate(num_beams=...)`).", "use_beam_search")
    return Wishes(
        model=fields.take("model", text(512), None),
        stream=stream, include_usage=usage, usage_in_each=in_each,
        n=fields.take("n", whole(1, MAX_N), 1),
        max_tokens=max_tokens,
        temperature=fields.take("temperature", number(0, 2), 1.0),
        top_p=max(fields.take("top_p", number(0, 1), 1.0), LEAST_TOP_P),
        top_k=max(top_k, 0),
        min_p=fields.take("min_p", number(0, 1), 0.0),
        repetition_penalty=fields.take("repetition_penalty", number(0.01, 100), 1.0),
        presence_penalty=fields.take("presence_penalty", number(-2, 2), 0.0),
        frequency_penalty=fields.take("frequency_penalty", number(-2, 2), 0.0),
        logit_bias=fields.take("logit_bias", _logit_bias, {}),
        seed=fields.take("seed", _seed, None),
        stops=fields.take("stop", _stops, ()),
        stop_token_ids=fields.take("stop_token_ids", items(whole(0, 1 << 31), MAX_BIASED), ()),
        ignore_eos=fields.take("ignore_eos", flag, default=False),
        top_logprobs=top_logprobs,
        shape=_shape(fields),
        background=_background(fields),
        return_token_ids=fields.take("return_token_ids", flag, default=False),
    )  # fmt: skip


def _stream_options(fields: Fields, *, stream: bool) -> tuple[bool, bool]:
    given = fields.take("stream_options", mapping, None)
    if given is None:
        return False, False
    if not stream:
        refuse("stream_options", "`stream_options` is only for `stream: true`.")
    options = Fields(given, "stream_options")
    usage = options.take("include_usage", flag, default=False)
    in_each = options.take("continuous_usage_stats", flag, default=False)
    options.ignore("include_obfuscation")
    options.end()
    return usage, in_each and usage


def _background(fields: Fields) -> bool:
    """OpenAI's cheap tier and vLLM's lower priority both mean: let others go first."""
    tiers = one_of("auto", "default", "priority", "scale", "fast", *BACKGROUND_TIERS)
    tier = fields.take("service_tier", tiers, "auto")
    return tier in BACKGROUND_TIERS or fields.take("priority", whole(-(1 << 31), 1 << 31), 0) > 0


def _seed(value: Any, name: str) -> int:
    """Python's and OpenAI's seeds may be negative; ours count from 0."""
    return whole(-MAX_SEED, MAX_SEED - 1)(value, name) % MAX_SEED


def _stops(value: Any, name: str) -> tuple[str, ...]:
    read = text(MAX_STOP_CHARS, 1)
    return (read(value, name),) if isinstance(value, str) else items(read, MAX_STOPS)(value, name)


def _logit_bias(value: Any, name: str) -> dict[int, float]:
    given = mapping(value, name)
    if len(given) > MAX_BIASED:
        refuse(name, f"`{name}` has {len(given)} tokens; {MAX_BIASED} are allowed.")
    found = {}
    for key, bias in given.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 12):
            refuse(name, f'`{name}` has a key {key[:40]!r}; keys are token ids such as "42".')
        found[int(key)] = number(-100, 100)(bias, f"{name}.{key}")
    return found


# -- the form of the text ----------------------------------------------------------------------------------------


def _shape(fields: Fields) -> Shape | None:
    found = [shape for shape in (fields.take("response_format", _response_format, None), *_guided(fields)) if shape]
    if len(found) > 1:
        refuse("response_format", "Give one of response_format, structured_outputs and guided_*, not several.")
    return found[0] if found else None


def _guided(fields: Fields) -> list[Shape | None]:
    """vLLM's ways to say it, the newer and the older."""
    found = [fields.take("structured_outputs", _structured, None)]
    for kind, read in _GUIDES.items():
        found.append(fields.take(f"guided_{kind}", read, None))
    fields.cannot(
        "use json, regex or choice.", "guided_grammar", "guided_decoding_backend", "guided_whitespace_pattern"
    )
    return found


def _response_format(value: Any, name: str) -> Shape | None:
    fields = Fields(mapping(value, name), name)
    kind = fields.need("type", one_of("text", "json_object", "json_schema"))
    if kind == "text":
        fields.end()
        return None
    if kind == "json_object":
        fields.end()
        return Shape("json_object")
    inner = Fields(fields.need("json_schema", mapping), f"{name}.json_schema")
    fields.end()
    inner.take("name", text(64), "")
    inner.take("description", text(), "")
    inner.take("strict", flag, default=False)
    schema = inner.need("schema", mapping)
    inner.end()
    return Shape("json_schema", schema)


def _structured(value: Any, name: str) -> Shape | None:
    fields = Fields(mapping(value, name), name)
    found = [shape for kind, read in _GUIDES.items() if (shape := fields.take(kind, read, None))]
    if fields.take("json_object", flag, default=False):
        found.append(Shape("json_object"))
    fields.ignore("disable_any_whitespace", "disable_fallback", "disable_additional_properties", "whitespace_pattern")
    fields.cannot("use json, regex or choice.", "grammar", "structural_tag")
    fields.end()
    if len(found) > 1:
        refuse(name, f"`{name}` must ask for one form only.")
    return found[0] if found else None


def _schema(value: Any, name: str) -> Shape:
    if isinstance(value, str):
        from shoal.client.api.jsonbody import parse

        value = parse(value.encode())
    return Shape("json_schema", mapping(value, name))


def _regex(value: Any, name: str) -> Shape:
    return Shape("regex", text(1 << 16, 1)(value, name))


def _choice(value: Any, name: str) -> Shape:
    return Shape("choice", items(text(1 << 16, 1), 1024, 1)(value, name))


_GUIDES = {"json": _schema, "regex": _regex, "choice": _choice}
