"""Decoded and resized media, kept on disk: every file is decoded once. Imports no torch: decoding processes stay light."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from keyekit.data.errors import BadData
from keyekit.data.frames_file import (
    MediaShape,
    drop_pixels,
    has_pixels,
    read_frames,
    read_shape,
    shape_of,
    write_frames,
)
from keyekit.data.media import Frames
from keyekit.data.processes import run_in_processes
from keyekit.data.reader import MediaReader
from keyekit.data.sample import ContentItem

__all__ = ["MediaCache"]

_log = logging.getLogger(__name__)

_WORTH_PROCESSES = 64
"""Fewest media for which processes are started."""

_KEPT = 0.8
"""Share of the limit that is left when room is made, so that not every file makes room again."""

_HEADS_ONLY = 4096
"""Files up to this size hold sizes and times, or little more: dropping their pixels gains nothing."""


class MediaCache:
    """One file per medium in a folder; safe for several processes, since files appear by renaming.

    With a limit, the media that were not used for longest lose their pixels, but keep sizes and times: a sample's length is
    known without decoding it again. A folder in shared memory (``/dev/shm``) makes the cache a hand-over between processes.

    Args:
        folder: Where decoded media are kept.
        reader: How media are read.
        max_bytes: Most that the folder may hold; ``None`` for no limit. It may be exceeded by a tenth for a moment.
        seconds: Longest time that a process may take for one medium in :meth:`prepare`.
    """

    def __init__(
        self, folder: Path | str, reader: MediaReader, max_bytes: int | None = None, seconds: float = 600.0
    ) -> None:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes}: a cache needs some room; None sets no limit")
        self.folder = Path(folder)
        self.reader = reader
        self.max_bytes = max_bytes
        self.seconds = seconds
        self._unchecked = 0  # bytes that this process stored since it last looked at the whole folder
        self._checked = False
        self._is_full = False
        self.folder.mkdir(parents=True, exist_ok=True)

    def load(self, item: ContentItem, key: str | None = None) -> Frames:
        """Return a medium, decoding it first if it is not there.

        Raises:
            BadData: If it cannot be read.
        """
        key = key or self.reader.key(item)
        path = self._path(key)
        try:
            frames = read_frames(path)
        except (FileNotFoundError, ValueError):
            frames = None
        if frames is None:
            return self._decode_and_store(item, key)
        if self.max_bytes is not None:
            os.utime(path)  # last used now
        return frames

    def describe(self, item: ContentItem, key: str) -> MediaShape:
        """Size and times of a medium without its pixels, decoding it first if it is not there.

        Raises:
            BadData: If it cannot be read.
        """
        try:
            return read_shape(self._path(key))
        except (FileNotFoundError, ValueError):
            return shape_of(self._decode_and_store(item, key))

    def prepare(
        self,
        items: Sequence[ContentItem],
        workers: int = 2,
        progress: Callable[[int, int], None] | None = None,
        ensured: Callable[[Iterator[ContentItem]], Iterator[BadData | None]] | None = None,
    ) -> dict[str, BadData]:
        """Decode everything that is not there yet, in several processes.

        Args:
            items: Media; repeated ones are decoded once.
            workers: Processes; 1 decodes in this one.
            progress: Called with the numbers of finished and of all media to decode.
            ensured: Has media stored instead, and answers for each in order, such as a decoding service.

        Returns:
            For each medium that cannot be read, by key, why.
        """
        keyed = {self.reader.key(item): item for item in items}
        wanted = {key: item for key, item in keyed.items() if not self._is_described(key)}
        failures: dict[str, BadData] = {}
        if ensured is None or not wanted:
            answers = self._decode(wanted, workers)
        else:
            answers = zip(wanted, ensured(iter(wanted.values())), strict=True)
        for done, (key, error) in enumerate(answers, 1):
            if error is not None:
                failures[key] = error
            if progress is not None:
                progress(done, len(wanted))
        return failures

    def holds(self, key: str) -> bool:
        """Whether a medium is stored with its pixels; it counts as used now, so that it stays until it is loaded."""
        path = self._path(key)
        if not has_pixels(path):
            return False
        if self.max_bytes is not None:
            os.utime(path)
        return True

    def ensure(self, item: ContentItem) -> BadData | None:
        """Have a medium stored with its pixels; returns what is wrong with it instead of raising it."""
        try:
            key = self.reader.key(item)
            if not has_pixels(self._path(key)):
                self._decode_and_store(item, key)
        except BadData as error:
            return error
        return None

    def keep(self, item: ContentItem, frames: Frames) -> None:
        """Store what somebody else decoded, by the same reader from the same file."""
        self._store(self._path(self.reader.key(item)), frames)

    def give_up(self, item: ContentItem, died: str) -> BadData:
        """Remember that a medium ends the process that decodes it, so that no other process tries again."""
        how = "kills the process that decodes it, by a crash or for want of memory"
        if died == "timeout":
            how = f"is not decoded within {self.seconds:g} s"
        self._deadly(self.reader.key(item)).write_text(how, encoding="utf-8")
        return BadData("broken_media" if died == "crash" else "slow_media", f"{item.path} {how}")

    def _decode(self, wanted: dict[str, ContentItem], workers: int) -> Iterator[tuple[str, BadData | None]]:
        if workers <= 1 or len(wanted) < _WORTH_PROCESSES:
            yield from ((key, self.ensure(item)) for key, item in wanted.items())
            return
        for key, error, died in run_in_processes(partial(_ensure, self), wanted, workers, self.seconds):
            yield key, self.give_up(wanted[key], died) if died else error

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.frames"

    def _deadly(self, key: str) -> Path:
        return self.folder / f"{key}.deadly"

    def _is_described(self, key: str) -> bool:
        try:
            read_shape(self._path(key))
        except (FileNotFoundError, ValueError):
            return False
        return True

    def _decode_and_store(self, item: ContentItem, key: str) -> Frames:
        deadly = self._deadly(key)
        if deadly.exists():
            how = deadly.read_text(encoding="utf-8")
            raise BadData("slow_media" if "within" in how else "broken_media", f"{item.path} {how}")
        frames = self.reader.read(item)
        self._store(self._path(key), frames)
        return frames

    def _store(self, path: Path, frames: Frames) -> None:
        try:
            stored = write_frames(path, frames)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._warn_that_full(error)
            return
        self._unchecked += stored
        if self.max_bytes is not None and (not self._checked or self._unchecked > self.max_bytes / 10):
            self._make_room(self.max_bytes)

    def _warn_that_full(self, error: OSError) -> None:
        if not self._is_full:
            self._is_full = True
            _log.warning(
                "no room is left in the cache %s (%s): media are decoded each time they are needed; make room, give another "
                "folder, or set max_bytes so that the least used go",
                self.folder,
                error.strerror,
            )

    def _make_room(self, max_bytes: int) -> None:
        """Drop the pixels of what was used longest ago, unless another process is at it."""
        self._unchecked, self._checked = 0, True
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            files = _files(self.folder)
            total = sum(size for _, size, _ in files)
            if total <= max_bytes:
                return
            for _, size, path in files:
                if total <= _KEPT * max_bytes:
                    return
                if size > _HEADS_ONLY:
                    total -= size - _drop(path)


def _files(folder: Path) -> list[tuple[int, int, Path]]:
    """``(last use, bytes, path)`` of what is stored, the longest unused first."""
    found = []
    for entry in os.scandir(folder):
        if entry.name.endswith(".frames"):
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
    return sorted(found)


def _drop(path: Path) -> int:
    """Drop a file's pixels, or the file if it is no stored medium; returns the bytes that are left."""
    try:
        drop_pixels(path)
        return path.stat().st_size
    except ValueError:
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    return 0


def _ensure(cache: MediaCache, item: ContentItem) -> BadData | None:
    return cache.ensure(item)
