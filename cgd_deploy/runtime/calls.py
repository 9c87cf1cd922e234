"""Counts the running calls of a resource, and frees the resource after the last call. Knows no resource."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Condition, Thread, get_ident

from ..errors import EngineError


class Calls:
    """The running calls of one resource. Threads share it; ``with calls:`` is one call.

    A nested call of the same thread belongs to the outer call.

    name   the name of the resource in error messages
    free   frees the resource; ``close`` calls it once
    """

    def __init__(self, name: str, free: Callable[[], object]) -> None:
        self._name = name
        self._free: Callable[[], object] | None = free
        self._process = os.getpid()
        self._change = Condition()  # its lock is reentrant: a signal handler may close in the middle of a call
        self._threads: list[int] = []
        self._last_frees = False
        self.closed = False

    def check(self) -> None:
        """Raise EngineError if further calls are refused."""
        if self.closed:
            raise EngineError(f"{self._name} is closed; load it again.")

    def enter(self) -> bool:
        """Begin a call of the current thread; False if the call is refused. ``leave`` ends the call."""
        thread = get_ident()
        # No lock is needed: a call is added first and then reads ``closed``; ``close`` sets it first, then reads calls.
        self._threads.append(thread)
        if self.closed and self._threads.count(thread) == 1:
            self.leave()
            return False
        return True

    def enter_thread(self, thread: Thread) -> None:
        """Count a started thread as a running call, even after ``refuse``. The thread calls ``leave``.

        Another call must run meanwhile, and the thread must not leave before this function returns.
        """
        self._threads.append(thread.ident or 0)

    def leave(self) -> None:
        """End a call of the current thread."""
        self._threads.remove(get_ident())
        if self.closed:
            with self._change:
                self._change.notify_all()
                if self._last_frees and not self._threads:
                    self._free_once()

    def refuse(self) -> bool:
        """Refuse further calls; False if calls were refused already."""
        with self._change:
            was_open, self.closed = not self.closed, True
        return was_open

    def close(self) -> None:
        """Refuse further calls, wait for the running calls, then free the resource. Does nothing in a forked process.

        Inside a call, ``close`` returns at once and the last call frees the resource: a thread cannot wait for itself.
        """
        if os.getpid() != self._process:
            return
        with self._change:
            self.closed = True
            if get_ident() in self._threads:
                self._last_frees = True
                return
            self._change.wait_for(lambda: not self._threads)
            self._free_once()

    def __enter__(self) -> None:
        if not self.enter():
            self.check()

    def __exit__(self, *_: object) -> None:
        self.leave()

    def _free_once(self) -> None:
        free, self._free = self._free, None
        if free:
            free()
