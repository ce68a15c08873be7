"""Work in several processes that may hang or die without taking the run with them. Imports no torch: they stay light."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Literal, NamedTuple

__all__ = ["Outcome", "WorkerPool", "require_main_guard", "run_in_processes"]

_log = logging.getLogger(__name__)
_ADVICE = "put the code of your script under `if __name__ == '__main__':`, or ask for workers=1"
_CONTEXT = multiprocessing.get_context("spawn")
_READY = "ready"


def require_main_guard() -> None:
    """Refuse to work in a new process that still imports the script that started it.

    A script without a main guard runs anew in every process that it starts. Call this before waiting for anything that the
    first process may hold, such as a lock: otherwise both wait for each other.

    Raises:
        RuntimeError: If this is such a process.
    """
    # Python's own mark of this phase; it refuses to start further processes in it, but only when it is asked to.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(f"this process still imports the script that started it: {_ADVICE}")


class Outcome(NamedTuple):
    """What became of one item.

    Args:
        key: Name of the item.
        result: What the function returned; ``None`` if its process died.
        died: How the process ended that worked on this item: by a ``crash`` (also for want of memory), or because it took
            longer than it may (``timeout``); ``None`` if it lives.
    """

    key: Any
    result: Any = None
    died: Literal["crash", "timeout"] | None = None


class WorkerPool:
    """Processes that apply one function to a stream of items, results in the order of the items.

    Only so many items are under way as the consumer asks for: a slow consumer slows the processes down, and nothing piles up.
    A process that dies, or that works on one item for longer than ``seconds``, costs that item alone: another takes its place
    and its queue. The processes end with the pool, and by themselves when the process that made them is gone.

    Args:
        function: A function of one argument (it must be picklable).
        workers: Processes.
        seconds: Longest time for one item; ``None`` for no limit.

    Example:
        >>> with WorkerPool(abs, workers=1) as pool:  # doctest: +SKIP
        ...     [outcome.result for outcome in pool.map([-1, -2])]
        [1, 2]
    """

    def __init__(self, function: Callable[[Any], Any], workers: int, seconds: float | None = None) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers}: a pool has at least one process")
        if seconds is not None and seconds <= 0:
            raise ValueError(f"seconds={seconds}: an item needs some time; None sets no limit")
        require_main_guard()
        self.function = function
        self.seconds = seconds
        self.workers = workers
        self._workers: list[_Worker] = []
        self._closed = False
        self._fill()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, whatever they are doing."""
        for worker in self._workers:
            worker.stop()
        self._workers, self._closed = [], True

    def map(self, items: Iterable[Any], ahead: int | None = None) -> Iterator[Outcome]:
        """Apply the function to every item.

        Args:
            items: Read as they are needed.
            ahead: Items that may be under way or finished and not yet taken; four per process by default.

        Yields:
            One outcome per item in the order of the items, named by its number.

        Raises:
            RuntimeError: If the pool is closed, or processes die before they begin, as they do without a main guard.
            Exception: Whatever the function raises.
        """
        if self._closed:
            raise RuntimeError("this pool is closed: make another")
        self._fill()
        stream = enumerate(items)
        outcomes: dict[int, Outcome] = {}
        ahead = 4 * len(self._workers) if ahead is None else max(ahead, 1)
        submitted = taken = 0
        try:
            while True:
                submitted += self._give(stream, ahead - (submitted - taken))
                if taken == submitted:
                    return
                if taken in outcomes:
                    taken += 1
                    yield outcomes.pop(taken - 1)
                else:
                    outcomes.update(self._arrived())
        finally:
            self._forget()

    def _give(self, stream: Iterator[tuple[int, Any]], most: int) -> int:
        """Hand out at most so many items, two to a process: one to work on, one to go on with. Returns how many there were."""
        given = 0
        while given < most:
            worker = min(self._workers, key=lambda worker: len(worker.queue))
            if len(worker.queue) == 2 or (entry := next(stream, None)) is None:
                break
            worker.give(entry)
            given += 1
        return given

    def _arrived(self) -> dict[int, Outcome]:
        """Wait until at least one process answers or dies, and return what came of it."""
        busy = {worker.connection: worker for worker in self._workers if worker.queue}
        arrived: dict[int, Outcome] = {}
        for connection in wait(list(busy)):
            assert isinstance(connection, Connection)
            worker = busy[connection]
            try:
                answer = worker.answer()
            except (EOFError, OSError):
                outcome = self._replace(worker)
                arrived[outcome.key] = outcome
                continue
            if answer is not None:
                number, result, error = answer
                if error is not None:
                    raise error
                arrived[number] = Outcome(number, result)
        return arrived

    def _replace(self, worker: _Worker) -> Outcome:
        """Put another process in the place of a dead one; returns the outcome of the item that it died of."""
        died = worker.how_it_died()
        if not worker.ready:
            raise RuntimeError(f"processes die before they begin: {_ADVICE}")
        (number, _), *left = worker.queue
        _log.warning("a process %s; another takes its place", "took too long" if died == "timeout" else "died")
        successor = _Worker.start(self.function, self.seconds)
        self._workers[self._workers.index(worker)] = successor
        for entry in left:
            successor.give(entry)
        return Outcome(number, died=died)

    def _fill(self) -> None:
        """Have as many processes as there are to be."""
        missing = self.workers - len(self._workers)
        self._workers += [_Worker.start(self.function, self.seconds) for _ in range(missing)]

    def _forget(self) -> None:
        """Leave no item of a stream that was given up in a process: such a process ends, the next stream has another."""
        for worker in [worker for worker in self._workers if worker.queue]:
            worker.stop()
            self._workers.remove(worker)


def run_in_processes(
    function: Callable[[Any], Any], items: Mapping[Any, Any], workers: int, seconds: float | None = None
) -> Iterator[Outcome]:
    """Apply a function to items in several processes; a process that dies costs the item that killed it alone.

    Args:
        function: A function of one argument (it must be picklable).
        items: Arguments of the function by name.
        workers: Processes.
        seconds: Longest time for one item; ``None`` for no limit.

    Yields:
        One outcome per item, in their order.

    Raises:
        RuntimeError: If processes die before they begin, as they do when a script has no main guard.
        Exception: Whatever the function raises.
    """
    names = list(items)
    with WorkerPool(function, workers, seconds) as pool:
        for outcome in pool.map(items.values(), ahead=8 * workers):
            yield outcome._replace(key=names[outcome.key])


@dataclass(eq=False, slots=True)
class _Worker:
    """One process, and the items that were given to it and not answered yet, in order."""

    process: Any
    connection: Connection
    ready: bool = False
    queue: deque[tuple[int, Any]] = field(default_factory=deque)

    @classmethod
    def start(cls, function: Callable[[Any], Any], seconds: float | None) -> _Worker:
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=_serve, args=(theirs, function, seconds), daemon=True)
        process.start()
        theirs.close()  # so that the pipe ends when the process does
        return cls(process, ours)

    def give(self, entry: tuple[int, Any]) -> None:
        """Queue an item; a process that died meanwhile is found out when its answer is waited for."""
        self.queue.append(entry)
        try:
            self.connection.send(entry)
        except (BrokenPipeError, ConnectionResetError):
            return

    def answer(self) -> tuple[int, Any, Exception | None] | None:
        """The next message: an answer, or nothing but the news that the process has begun.

        Raises:
            EOFError: If the process is dead and everything it said was read.
        """
        message = self.connection.recv()
        if message == _READY:
            self.ready = True
            return None
        self.queue.popleft()
        return message

    def how_it_died(self) -> Literal["crash", "timeout"]:
        self.process.join(10)
        self.stop()
        return "timeout" if self.process.exitcode == -signal.SIGALRM else "crash"

    def stop(self) -> None:
        self.connection.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _serve(connection: Connection, function: Callable[[Any], Any], seconds: float | None) -> None:
    """Work until the pipe ends. Too long an item ends the process: the system's alarm also reaches code that hangs in C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who made the pool decides when it ends
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    connection.send(_READY)
    while True:
        try:
            number, item = connection.recv()
        except (EOFError, OSError):
            return
        signal.setitimer(signal.ITIMER_REAL, seconds or 0)
        try:
            answer = number, function(item), None
        except Exception as error:
            answer = number, None, error
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            connection.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return
