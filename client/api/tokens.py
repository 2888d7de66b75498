"""Tokens as people and programs see them in logprobs: the text of each one by itself, and its very bytes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

_BYTE_TOKEN_CHARS = 6  # <0x0A>


class TokenTexts:
    """`tokenizer`: transformers', or None for a model without one: then a token's text is its number."""

    def __init__(self, tokenizer: Any | None) -> None:
        self._tokenizer: Any = tokenizer
        self._byte_level = tokenizer is not None and _is_byte_level(tokenizer)
        self._special = frozenset(tokenizer.all_special_ids if tokenizer is not None else ())
        self._anchor = list(tokenizer("x", add_special_tokens=False)["input_ids"]) if tokenizer is not None else []
        self.of = lru_cache(maxsize=1 << 16)(self._of)

    def is_special(self, token_id: int) -> bool:
        """Whether texts leave this token out."""
        return token_id in self._special

    def _of(self, token_id: int) -> tuple[str, tuple[int, ...]]:
        """A token's text, with U+FFFD for parts of characters, and its bytes."""
        if self._tokenizer is None:
            return str(token_id), ()
        data = self._bytes(token_id)
        if data is None:
            data = self._behind(token_id).encode("utf-8", "replace")
        return data.decode("utf-8", "replace"), tuple(data)

    def _behind(self, token_id: int) -> str:
        """A token's text behind another token: decoders leave out the space with which a text would begin."""
        anchor = [] if token_id in self._special else self._anchor
        return self._decode([*anchor, token_id])[len(self._decode(anchor)) if anchor else 0 :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _bytes(self, token_id: int) -> bytes | None:
        """From the vocabulary's own writing, where that says it; a decoder would lose parts of characters."""
        piece = self._tokenizer.convert_ids_to_tokens(token_id) if self._tokenizer is not None else None
        if piece is None or token_id in self._special:
            return None
        if self._byte_level and all(char in _BYTES for char in piece):
            return bytes(_BYTES[char] for char in piece)
        if len(piece) == _BYTE_TOKEN_CHARS and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return None


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in str(backend.decoder)


def _byte_chars() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes: printable Latin-1 as it is, the others from 256 up (Radford
    et al. 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_chars()
