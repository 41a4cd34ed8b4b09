"""SIGTERM and Ctrl-C wait until a step of training is done and its state is written."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Two signals within this time count as one: `timeout` signals a process by its number and again with its group.
SAME_SIGNAL_S = 1.0


@dataclass
class Held:
    """The first signal that came, if one did, and the earlier handlers of signals."""

    number: int | None = None
    _when: float = 0.0
    _before: dict[int, Any] = field(default_factory=dict)

    def hold(self, number: int, _frame: FrameType | None) -> None:
        """Note a signal. A second one says that its sender will not wait."""
        if self.number is not None and time.monotonic() - self._when > SAME_SIGNAL_S:
            self.deliver()
        self.number, self._when = number, time.monotonic()

    def take_over(self) -> None:
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # an ignored signal stays ignored
                self._before[number] = signal.signal(number, self.hold)

    def give_back(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def deliver(self) -> None:
        """If a signal came, let it now do what it would have done then."""
        self.give_back()
        if self.number is not None:
            number, self.number = self.number, None
            signal.raise_signal(number)


@contextmanager
def held_signals() -> Iterator[Held]:
    """Within this context, signals that end a process are noted. They are delivered on request, or at its end.

    Only a process's main thread gets signals; in other threads nothing is held.
    """
    held = Held()
    if threading.current_thread() is threading.main_thread():
        held.take_over()
    try:
        yield held
    finally:
        held.deliver()
