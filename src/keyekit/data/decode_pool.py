"""Media decoded ahead of who reads them, in processes that may hang or die. Imports no torch: these processes stay light."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial

from keyekit.data.cache import MediaCache
from keyekit.data.errors import BadData
from keyekit.data.media import Frames
from keyekit.data.processes import WorkerPool
from keyekit.data.sample import ContentItem

__all__ = ["DecodePool"]


class DecodePool:
    """Processes that decode a stream of media into a cache, from which they are taken in order.

    Pixels go through the cache's files, which the system keeps in memory: nothing is sent through a pipe, and what was decoded
    once is not decoded again. A cache folder in ``/dev/shm`` is shared memory and nothing else; give it ``max_bytes``.

    Args:
        cache: Where decoded media are put, and how they are read.
        workers: Processes.

    Example:
        >>> with DecodePool(MediaCache("/dev/shm/clips", MediaReader(), max_bytes=2**30), workers=4) as pool:  # doctest: +SKIP
        ...     for frames in pool.decode(items):
        ...         train_on(frames)
    """

    def __init__(self, cache: MediaCache, workers: int = 2) -> None:
        self.cache = cache
        self._pool = WorkerPool(partial(_ensure, cache), workers, cache.seconds)

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, whatever they are doing."""
        self._pool.close()

    def decode(self, items: Iterable[ContentItem], ahead: int | None = None) -> Iterator[Frames | BadData]:
        """Read media.

        Args:
            items: Read as they are needed.
            ahead: Media that may be under way or decoded and not yet taken; four per process by default.

        Yields:
            Each medium in the order of the items, or what is wrong with it: among the reasons are ``slow_media``, for one that
            took longer than the cache's ``seconds``, and ``broken_media``, for one that killed its process.
        """
        waiting: deque[ContentItem] = deque()

        def noted() -> Iterator[ContentItem]:
            for item in items:
                waiting.append(item)
                yield item

        for outcome in self._pool.map(noted(), ahead):
            item = waiting.popleft()
            if outcome.died:
                yield self.cache.give_up(item, outcome.died)
            elif outcome.result is not None:
                yield outcome.result
            else:
                yield self._load(item)

    def _load(self, item: ContentItem) -> Frames | BadData:
        try:
            return self.cache.load(item)
        except BadData as error:  # the file changed or vanished meanwhile
            return error


def _ensure(cache: MediaCache, item: ContentItem) -> BadData | None:
    return cache.ensure(item)
