"""Work in several processes that may die without taking the run with them. Imports no torch: these processes stay light."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

__all__ = ["Outcome", "require_main_guard", "run_in_processes"]

_log = logging.getLogger(__name__)
_ADVICE = "put the code of your script under `if __name__ == '__main__':`, or ask for workers=1"


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
        died: Whether the process died while it worked on this item, by a crash or for want of memory.
    """

    key: Any
    result: Any = None
    died: bool = False


def run_in_processes(
    function: Callable[[Any], Any], items: Mapping[Hashable, Any], workers: int, chunk: int = 16
) -> Iterator[Outcome]:
    """Apply a function to items in several processes, in no particular order.

    When a process dies, the items that are left are worked on in a single process, which is started anew after every item
    that kills it: so every item has an outcome, and nobody waits for a dead process.

    Args:
        function: A function of a module (it must be picklable).
        items: Arguments of the function by name.
        workers: Processes.
        chunk: Items handed to a process at a time.

    Raises:
        RuntimeError: If processes die before they begin, as they do when a script has no main guard.
        Exception: Whatever the function raises.
    """
    left = dict(items)
    while left:
        try:
            for key, result in _results(function, list(left.items()), workers, chunk):
                del left[key]
                yield Outcome(key, result)
        except BrokenProcessPool:
            if (workers, chunk) == (1, 1):  # a single process takes items in order: it died on the first that is left
                culprit = next(iter(left))
                del left[culprit]
                yield Outcome(culprit, died=True)
            else:
                _check_that_processes_start()
                _log.warning("a process died; going on with a single one to find out on which of %d items", len(left))
                workers = chunk = 1


def _results(
    function: Callable[[Any], Any], items: Sequence[tuple[Any, Any]], workers: int, chunk: int
) -> Iterator[tuple[Any, Any]]:
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        chunks = [items[start : start + chunk] for start in range(0, len(items), chunk)]
        for future in as_completed([pool.submit(_apply, function, part) for part in chunks]):
            yield from future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _apply(function: Callable[[Any], Any], items: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    return [(key, function(item)) for key, item in items]


def _check_that_processes_start() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            pool.submit(int).result()
        except BrokenProcessPool as error:
            raise RuntimeError(f"processes die before they begin: {_ADVICE}") from error
