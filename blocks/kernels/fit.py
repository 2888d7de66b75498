"""Owns the choice among a kernel's shapes by what a GPU has room for; must not know what the kernels compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from shoal.blocks.errors import UnsupportedDevice
from triton.runtime.errors import OutOfResources

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

Shape = TypeVar("Shape")

_chosen: dict[Hashable, int] = {}


def launch_what_fits(case: Hashable, shapes: Sequence[Shape], launch: Callable[[Shape], object]) -> Shape:
    """Launch with the first of `shapes`, the fastest first, that the GPU has the shared memory for; which it was.

    Triton finds out when it loads a program for the first time, before anything runs; what was found is kept for all
    calls of the `case`, which names the device and all that decides how much a program needs.

    Raises:
        UnsupportedDevice: it has the memory for none.
    """
    first = _chosen.get(case, 0)
    for at, shape in enumerate(shapes[first:], first):
        try:
            launch(shape)
        except OutOfResources as error:
            too_large = error
        else:
            _chosen[case] = at
            return shape
    raise UnsupportedDevice(
        f"A program of this GPU has {too_large.limit} bytes of {too_large.name}, and attention in this model's sizes "
        f"needs {too_large.required}: choose another --dtype, or --device cpu."
    ) from None
