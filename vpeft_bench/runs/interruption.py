"""Signals that end a run become an exception, so that what is known is recorded before the end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)
"""What users, terminals and schedulers send to end a process that may tidy up."""

_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


class Interrupted(BaseException):
    """A signal asks this process to end.

    It is no ``Exception``, which many places catch and go on from, and no ``KeyboardInterrupt``,
    which Lightning turns into an exit of its own.

    Attributes:
        signal: which one.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"interrupted by {self.signal.name}")

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        """Pickled with what its constructor takes: workers of a sweep send it back."""
        return type(self), (int(self.signal),)

    @property
    def exit_status(self) -> int:
        """As a shell has it for a process that a signal ended."""
        return 128 + self.signal


class _State:
    """What has come of signals in this process."""

    owner: int | None = None
    received: signal.Signals | None = None
    closing = False


def _handle(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _State.owner:
        return  # worker processes that were forked inherit this handler; their parent ends them
    _State.received = _State.received or signal.Signals(number)
    if not _State.closing:
        raise Interrupted(number)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let the signals of :data:`ENDING` raise :class:`Interrupted` in the main thread.

    Signals that are ignored (``nohup``) or that somebody else handles (a launcher of SLURM jobs)
    are left alone. May be nested.
    """
    mine = [s for s in ENDING if signal.getsignal(s) in _DEFAULTS]
    if threading.current_thread() is not threading.main_thread() or not mine:
        yield
        return
    _State.owner, _State.received, _State.closing = os.getpid(), None, False
    before = {number: signal.signal(number, _handle) for number in mine}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.received, _State.closing = None, False


def ignore() -> None:
    """Ignore these signals for good: the process is about to end, with what they ask for done."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def received() -> signal.Signals | None:
    """The signal that came first, if one did."""
    return _State.received


@contextmanager
def closing() -> Iterator[None]:
    """Let no signal cut off what is done inside, which is short: writing how a run ended.

    Raises:
        Interrupted: at the end, where the first signal came meanwhile. After one that came before,
            all further ones are ignored until the outermost :func:`interruptible` is left.
    """
    before, _State.closing = _State.received, True
    try:
        yield
    finally:
        _State.closing = before is not None
    if before is None and _State.received is not None:
        raise Interrupted(_State.received)
