"""An iterator that runs in a thread, ahead of its consumer."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from dlrm_mtl.core.errors import UserError

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """Iterator over the items of ``source()``, which a thread prepares up to ``depth`` items ahead.

    Exceptions of the source are raised in the consumer. :meth:`close` stops the thread and waits for it, at most for its
    current item. It is also called at exhaustion, by ``with``, and when the object is collected.
    """

    def __init__(
        self, source: Callable[[], Iterator[Item]], depth: int, waited: Callable[[float], None] | None = None
    ) -> None:
        """Start the thread. ``waited`` is called with the seconds that the consumer waited for each item."""
        self._channel = _Channel[Item](depth)
        self._waited = waited
        # The thread must not hold a reference to this object, or an abandoned one could never be collected.
        self._thread = threading.Thread(
            target=_produce, args=(source, self._channel), name="batch-prefetch", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Prefetcher[Item]:
        return self

    def __next__(self) -> Item:
        if self._channel.stop.is_set():
            raise StopIteration
        begin = time.perf_counter()
        message = self._channel.items.get()
        if self._waited is not None:
            self._waited(time.perf_counter() - begin)
        if isinstance(message, _End):
            self.close()
            if message.error is not None:
                if isinstance(message.error, UserError):
                    message.error.local = True  # only the process that read the row has seen it
                raise message.error
            raise StopIteration
        self._channel.slots.release()
        return message

    def close(self) -> None:
        """Stop the thread and wait for it; further items are dropped. May be called more than once."""
        self._channel.stop.set()
        self._channel.slots.release()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Prefetcher[Item]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_thread"):
            self.close()


class _Channel(Generic[Item]):
    """State shared by the two threads. The queue is bounded by counting free slots, so that a waiting producer can be woken."""

    def __init__(self, depth: int) -> None:
        self.items: queue.SimpleQueue[Item | _End] = queue.SimpleQueue()
        self.slots = threading.Semaphore(depth)
        self.stop = threading.Event()


class _End:
    """Last message of the producer."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def _produce(source: Callable[[], Iterator[Item]], channel: _Channel[Item]) -> None:
    error: BaseException | None = None
    try:
        items = source()
        while True:
            channel.slots.acquire()
            if channel.stop.is_set():
                break
            try:
                item = next(items)
            except StopIteration:
                break
            channel.items.put(item)
    except BaseException as caught:  # handed to the consumer
        error = caught
    channel.items.put(_End(error))
