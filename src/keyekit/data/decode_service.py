"""Decoding on other machines, for trainers that need more processors than they have (``pip install keyekit[ray]``)."""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from keyekit.data.errors import BadData
from keyekit.data.media import Frames
from keyekit.data.reader import MediaReader
from keyekit.data.sample import ContentItem

__all__ = ["DecodeService"]

_log = logging.getLogger(__name__)


class DecodeService:
    """Decodes a stream of media on a Ray cluster; the same stream as :class:`DecodePool`, from any number of machines.

    Files are opened where the decoders run, so paths have to mean the same there (a shared file system). When the cluster does
    not answer any more, it is asked once more; after that media are decoded in this process, with one warning, and no medium
    is lost.

    Args:
        reader: How media are read.
        address: Of the cluster, such as ``"ray://head:10001"`` or ``"auto"``; ``None`` starts one on this machine.
        decoders: Processes over the whole cluster, one processor each.
        seconds: Longest time for one medium.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
        ConnectionError: If there is no cluster at the address.
    """

    def __init__(
        self, reader: MediaReader, address: str | None = None, decoders: int = 4, seconds: float = 600.0
    ) -> None:
        if decoders < 1:
            raise ValueError(f"decoders={decoders}: a service has at least one")
        self.reader = reader
        self.address = address
        self.decoders = decoders
        self.seconds = seconds
        self._ray = _ray()
        self._actors: list[Any] = []
        self._started_here = not self._ray.is_initialized()
        self._connect()

    def __enter__(self) -> DecodeService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the decoders, and the connection if this service made it."""
        actors, self._actors = self._actors, []
        for actor in actors:
            self._end(actor)
        if self._started_here:
            self._ray.shutdown()

    def decode(self, items: Iterable[ContentItem], ahead: int | None = None) -> Iterator[Frames | BadData]:
        """Read media.

        Args:
            items: Read as they are needed.
            ahead: Media that may be under way or decoded and not yet taken; four per decoder by default.

        Yields:
            Each medium in the order of the items, or what is wrong with it.
        """
        stream = iter(items)
        ahead = 4 * self.decoders if ahead is None else max(ahead, 1)
        waiting: deque[tuple[ContentItem, Any]] = deque()
        number = 0
        while True:
            while len(waiting) < ahead and (item := next(stream, None)) is not None:
                waiting.append((item, self._submit(item, number)))
                number += 1
            if not waiting:
                return
            item, answer = waiting.popleft()
            yield self._result(item, answer)

    def _connect(self) -> None:
        options: dict[str, Any] = {"address": self.address, "log_to_driver": False, "logging_level": logging.ERROR}
        if self.address is None:
            options |= {"num_cpus": self.decoders, "include_dashboard": False}
        if not self._ray.is_initialized():
            self._ray.init(**options)
        actor = self._ray.remote(num_cpus=1, max_restarts=-1)(_Decoder)
        self._actors = [actor.remote(self.reader, self.seconds) for _ in range(self.decoders)]

    def _submit(self, item: ContentItem, number: int) -> Any:
        if not self._actors:
            return None
        try:
            return self._actors[number % len(self._actors)].read.remote(item)
        except Exception as error:  # Ray raises many kinds when its cluster is gone
            self._reconnect(error)
            return None

    def _result(self, item: ContentItem, answer: Any) -> Frames | BadData:
        """Wait for an answer; one that never comes is read here."""
        if answer is None or not self._actors:
            return _read(self.reader, item)
        try:
            answered = self._ray.get(answer, timeout=10 * self.seconds)
        except self._ray.exceptions.RayActorError:
            if self._is_alive():
                return self._alone(item)
            self._reconnect(ConnectionError("its decoders are gone"))
            return _read(self.reader, item)
        except Exception as error:
            self._reconnect(error)
            return _read(self.reader, item)
        return answered

    def _alone(self, item: ContentItem) -> Frames | BadData:
        """Read a medium whose decoder died where no other can be the cause."""
        decoder = self._ray.remote(num_cpus=0)(_Decoder).remote(self.reader, self.seconds)
        try:
            return self._ray.get(decoder.read.remote(item))
        except self._ray.exceptions.RayActorError:
            how = f"ends the process that decodes it, by a crash or after {self.seconds:g} s"
            return BadData("broken_media", f"{item.path} {how}")
        finally:
            self._end(decoder)

    def _end(self, actor: Any) -> None:
        """End a decoder; one of a cluster that is gone has ended, and Ray has many words for that."""
        if self._ray.is_initialized():  # otherwise Ray would start a cluster to look for it
            with suppress(Exception):
                self._ray.kill(actor)

    def _is_alive(self) -> bool:
        try:
            return any(node["Alive"] for node in self._ray.nodes())
        except Exception:  # whatever kind of error: a cluster that cannot say who lives does not answer
            return False

    def _reconnect(self, error: Exception) -> None:
        """Ask for the cluster once more; if it is gone, go on without it."""
        if not self._actors:
            return
        self._actors = []
        try:
            self._ray.shutdown()
            if self.address is not None:
                time.sleep(1)
                self._connect()
                _log.warning("the decoding service did not answer (%s); connected again", error)
                return
        except Exception as again:
            error = again
        _log.warning("the decoding service is gone (%s): media are decoded in this process from now on", error)


class _Decoder:
    """What runs on the cluster."""

    def __init__(self, reader: MediaReader, seconds: float) -> None:
        self.reader = reader
        self.seconds = seconds
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, even where it hangs in C; Ray starts another

    def read(self, item: ContentItem) -> Frames | BadData:
        """Read one medium."""
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        try:
            return _read(self.reader, item)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _read(reader: MediaReader, item: ContentItem) -> Frames | BadData:
    try:
        return reader.read(item)
    except BadData as error:
        return error


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a decoding service needs Ray: pip install 'keyekit[ray]'; one machine needs none, DecodePool does the same there"
        ) from error
    return ray
