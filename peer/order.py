"""Work on its way to the device thread and its outcome on its way back. Knows no device."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

T = TypeVar("T")
U = TypeVar("U")


class EngineFault(Exception):
    """The device failed (out of memory, driver error); the batch has no outputs."""


@dataclass(frozen=True, slots=True, eq=False)
class Order(Generic[T]):
    """Work on its way to the device thread, and where its outcome is awaited."""

    work: Callable[[], T]
    outcome: asyncio.Future[T]
    examine: Callable[[Exception], None]
    ended: Callable[[Order[Any]], None]  # on the loop, whatever the outcome

    def carry_out(self) -> None:
        """Run on the device thread; the loop learns the outcome."""
        try:
            result = self.work()
        except Exception as error:  # noqa: BLE001 - top of the device thread: the loop gets it as an EngineFault
            fault = fault_of(error)
            fault.__cause__ = error
            self.examine(error)
            self._tell(self._fail, fault)
        else:
            self._tell(self._succeed, result)

    def give_up(self, fault: EngineFault) -> None:
        """The loop learns that there will be no outcome; one that comes late is nobody's."""
        self._tell(self._fail, fault)

    def _tell(self, learn: Callable[[U], None], what: U) -> None:
        with suppress(RuntimeError):  # the loop has ended meanwhile: nobody waits
            self.outcome.get_loop().call_soon_threadsafe(learn, what)

    def _succeed(self, result: T) -> None:
        self.ended(self)
        if not self.outcome.done():
            self.outcome.set_result(result)

    def _fail(self, fault: EngineFault) -> None:
        self.ended(self)
        if not self.outcome.done():
            self.outcome.set_exception(fault)


def fault_of(error: Exception) -> EngineFault:
    """What the loop is told of an error of the device's."""
    return EngineFault(f"{type(error).__name__}: {error}")
