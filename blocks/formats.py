"""How long a row of hidden states is in each form in which it travels. Numbers only: no tensors.

int8 is blockwise: every `BLOCK` neighbouring numbers share one 16-bit scale. A row is its scales, then its whole
numbers, so that rows can be cut and joined like those of the other forms.
"""

from __future__ import annotations

BLOCK = 64
SCALE_BYTES = 2
NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
FORMS = tuple(NUMBER_BYTES)


def scales(width: int) -> int:
    """Scales of an int8 row of `width` numbers."""
    return -(-width // BLOCK)


def row_bytes(form: str, width: int) -> int:
    """Bytes of one row of `width` numbers."""
    return NUMBER_BYTES[form] * width + (SCALE_BYTES * scales(width) if form == "int8" else 0)
