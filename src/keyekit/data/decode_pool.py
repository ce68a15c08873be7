"""Media decoded ahead of who reads them, in processes that may hang or die. Imports no torch: these processes stay light."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Protocol, TypeVar

from keyekit.data.cache import MediaCache
from keyekit.data.errors import BadData
from keyekit.data.media import Frames
from keyekit.data.processes import WorkerPool
from keyekit.data.sample import ContentItem

__all__ = ["DecodePool", "Decoding", "decoded_ahead", "in_groups"]

Group = TypeVar("Group")


class Decoding(Protocol):
    """What has media decoded into a cache, such as a :class:`~keyekit.data.decode_service.DecodeService`."""

    def ensure(
        self, items: Iterable[ContentItem | None], cache: MediaCache, ahead: int | None = None
    ) -> Iterator[BadData | None]:
        """Have media stored; for each in order what is wrong with it. ``None`` among them takes its turn."""
        ...


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

        for problem in self.ensure(noted(), ahead):
            item = waiting.popleft()
            yield self._load(item) if problem is None else problem

    def groups(
        self, groups: Iterable[Group], media: Callable[[Group], Iterable[ContentItem]], ahead: int | None = None
    ) -> Iterator[Group]:
        """Groups of media, such as packs, in order, each as soon as its media are in the cache; nothing is loaded.

        What cannot be decoded holds nothing up: whoever reads it is told why.

        Args:
            groups: Read as they are needed.
            media: The media of a group; those that are in the cache, or on their way there, are not decoded again.
            ahead: Media, or groups without any to decode, that may be under way; four per process by default.
        """
        yield from in_groups(groups, media, self.cache, lambda items: self.ensure(items, ahead))

    def ensure(self, items: Iterable[ContentItem | None], ahead: int | None = None) -> Iterator[BadData | None]:
        """Have media stored; for each in order what is wrong with it. ``None`` among them takes its turn."""
        waiting: deque[ContentItem | None] = deque()

        def noted() -> Iterator[ContentItem | None]:
            for item in items:
                waiting.append(item)
                yield item

        for outcome in self._pool.map(noted(), ahead):
            item = waiting.popleft()
            yield self.cache.give_up(item, outcome.died) if outcome.died and item else outcome.result

    def _load(self, item: ContentItem) -> Frames | BadData:
        try:
            return self.cache.load(item)
        except BadData as error:  # the file changed or vanished meanwhile
            return error


def in_groups(
    groups: Iterable[Group],
    media: Callable[[Group], Iterable[ContentItem]],
    cache: MediaCache,
    ensured: Callable[[Iterator[ContentItem | None]], Iterator[BadData | None]],
) -> Iterator[Group]:
    """Groups of media in order, each as soon as its media are in the cache.

    Args:
        groups: Read as they are needed.
        media: The media of a group; those that are in the cache, or on their way there, are not asked for again.
        cache: Where media are.
        ensured: Has media stored, and answers for each in order; ``None`` among them takes its turn.
    """
    planned: deque[tuple[Group, int]] = deque()
    order: deque[str] = deque()
    coming: set[str] = set()

    def missing() -> Iterator[ContentItem | None]:
        for group in groups:
            wanted = {key: item for key, item in _missing(cache, media(group)).items() if key not in coming}
            coming.update(wanted)
            planned.append((group, max(len(wanted), 1)))
            order.extend(wanted or [""])
            yield from wanted.values() or [None]  # a group without media takes its turn, too

    done = 0
    for _ in ensured(missing()):
        coming.discard(order.popleft())
        done += 1
        if done == planned[0][1]:
            done = 0
            yield planned.popleft()[0]


def decoded_ahead(
    groups: Iterable[Group],
    media: Callable[[Group], Iterable[ContentItem]],
    cache: MediaCache,
    workers: int,
    ahead: int | None = None,
    service: Decoding | None = None,
) -> Generator[Group, None, None]:
    """:meth:`DecodePool.groups` by processes that start when something has to be decoded, and end with the last group.

    Args:
        groups: Read as they are needed.
        media: The media of a group.
        cache: Where decoded media are put, and how they are read. One with a limit has to have room for what is ahead.
        workers: Processes; 0 decodes nothing ahead, so that whoever reads a medium decodes it.
        ahead: Media that may be under way; four per process by default.
        service: Decodes instead of processes here, and stays when the last group has come.
    """
    stream = iter(groups)
    for group in stream:
        if (workers or service is not None) and _missing(cache, media(group)):
            everything = chain([group], stream)
            if service is not None:
                yield from in_groups(everything, media, cache, lambda items: service.ensure(items, cache, ahead))
                return
            with DecodePool(cache, workers) as pool:
                yield from pool.groups(everything, media, ahead)
            return
        yield group


def _missing(cache: MediaCache, items: Iterable[ContentItem]) -> dict[str, ContentItem]:
    """Media that are not in the cache, by key."""
    keyed = {cache.reader.key(item): item for item in items}
    return {key: item for key, item in keyed.items() if not cache.holds(key)}


def _ensure(cache: MediaCache, item: ContentItem | None) -> BadData | None:
    return None if item is None else cache.ensure(item)
