"""Decoding on other machines, for trainers that need more processors than they have (``pip install keyekit[ray]``)."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from keyekit.data.cache import MediaCache
from keyekit.data.errors import BadData
from keyekit.data.media import Frames
from keyekit.data.reader import MediaReader
from keyekit.data.sample import ContentItem

__all__ = ["DecodeService"]

_log = logging.getLogger(__name__)

_PROBE = 2.0
"""Seconds that a head may take to accept a connection."""

_TOKEN = Path.home() / ".ray" / "auth_token"
"""Where Ray keeps what its processes authenticate by."""

_START = 120.0
"""Seconds that decoders may take to start; those that do not stand are done without."""


class DecodeService:
    """Decodes a stream of media on a Ray cluster; the same stream as :class:`DecodePool`, from any number of machines.

    Files are opened where the decoders run, so paths have to mean the same there (a shared file system). When the cluster does
    not answer any more, it is asked once more; after that media are decoded in this process, with one warning, and no medium
    is lost. As long as it is away it is looked for now and then, and taken again when it is back.

    Args:
        reader: How media are read.
        address: Of the cluster: ``"ray://head:10001"``, the port of Ray's client server; ``None`` starts one on this machine.
        decoders: Processes over the whole cluster for this trainer, one processor each.
        seconds: Longest time for one medium.
        look_again: Seconds between two looks for a cluster that is away.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
        ConnectionError: If there is no cluster at the address, or none of its processors is free.
        ValueError: If a number makes no sense, or the address is not that of a client server.
    """

    def __init__(
        self,
        reader: MediaReader,
        address: str | None = None,
        decoders: int = 4,
        seconds: float = 600.0,
        look_again: float = 60.0,
    ) -> None:
        if decoders < 1:
            raise ValueError(f"decoders={decoders}: a service has at least one")
        if look_again <= 0:
            raise ValueError(f"look_again={look_again}: seconds between two looks, above 0")
        self._host = _host(address)
        self.reader = reader
        self.address = address
        self.decoders = decoders
        self.seconds = seconds
        self.look_again = look_again
        self._ray = _ray()
        self._actors: list[Any] = []
        self._next_look = self._since = 0.0
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
            with suppress(Exception):  # of a cluster that is gone
                self._ray.shutdown()

    @property
    def away(self) -> float:
        """Seconds for which the cluster has been away; 0 if it is there."""
        return 0.0 if self._actors else max(time.monotonic() - self._since, 1e-3)

    def decode(self, items: Iterable[ContentItem], ahead: int | None = None) -> Iterator[Frames | BadData]:
        """Read media.

        Args:
            items: Read as they are needed.
            ahead: Media that may be under way or decoded and not yet taken; four per decoder by default.

        Yields:
            Each medium in the order of the items, or what is wrong with it.
        """
        for answer in self._answers(items, ahead):
            assert answer is not None
            yield self._killed(answer.item) if answer.died else answer.result

    def ensure(
        self, items: Iterable[ContentItem | None], cache: MediaCache, ahead: int | None = None
    ) -> Iterator[BadData | None]:
        """Have media stored in a cache of this machine.

        Args:
            items: Read as they are needed.
            cache: Reads media as this service does.
            ahead: As in :meth:`decode`.

        Yields:
            For each medium in order what is wrong with it. ``None`` among the items takes its turn.
        """
        for answer in self._answers(items, ahead):
            if answer is None:
                yield None
            elif answer.died:
                yield cache.give_up(answer.item, "crash")
            elif isinstance(answer.result, BadData):
                yield answer.result
            else:
                cache.keep(answer.item, answer.result)
                yield None

    def _answers(self, items: Iterable[ContentItem | None], ahead: int | None) -> Iterator[_Answer | None]:
        stream = iter(items)
        ahead = 4 * self.decoders if ahead is None else max(ahead, 1)
        waiting: deque[tuple[ContentItem | None, Any]] = deque()
        ended, number = False, 0
        while True:
            while not ended and len(waiting) < ahead:
                try:
                    item = next(stream)
                except StopIteration:
                    ended = True
                    break
                waiting.append((item, None if item is None else self._submit(item, number)))
                number += 1
            if not waiting:
                return
            item, promise = waiting.popleft()
            yield None if item is None else self._answer(item, promise)

    def _connect(self) -> None:
        """Reach the cluster and have decoders there.

        Raises:
            ConnectionError: If that is not possible.
        """
        if not self._ray.is_initialized():
            options: dict[str, Any] = {"address": self.address, "log_to_driver": False, "logging_level": logging.ERROR}
            if self._host is None:
                options |= {"num_cpus": self.decoders, "include_dashboard": False}
            else:
                _check_that_it_listens(*self._host)
            self._ray.init(**options)
        actor = self._ray.remote(num_cpus=1, max_restarts=-1)(_Decoder)
        actors = [actor.remote(self.reader, self.seconds) for _ in range(self.decoders)]
        standing = {actor.stands.remote(): actor for actor in actors}
        ready, pending = self._ray.wait(list(standing), num_returns=len(standing), timeout=_START)
        self._actors = [standing[promise] for promise in ready]
        for promise in pending:
            self._end(standing[promise])
        if not ready:
            raise ConnectionError(
                f"no decoder stands after {_START:g} s at {self.address or 'this machine'}: "
                "its processors are taken, or it lacks keyekit"
            )
        if pending:
            _log.warning("%d of %d decoders stand: the service has no more free processors", len(ready), self.decoders)

    def _submit(self, item: ContentItem, number: int) -> Any:
        if not self._actors:
            self._look()
        if not self._actors:
            return None
        try:
            return self._actors[number % len(self._actors)].read.remote(item)
        except Exception as error:  # Ray raises many kinds when its cluster is gone
            self._reconnect(error)
            return None

    def _answer(self, item: ContentItem, promise: Any) -> _Answer:
        """Wait for an answer; one that never comes is read here."""
        if promise is None or not self._actors:
            return _Answer(item, _read(self.reader, item))
        actors = self._actors
        try:
            return _Answer(item, self._ray.get(promise, timeout=10 * self.seconds))
        except self._ray.exceptions.RayActorError:
            if self._is_alive():
                return self._alone(item)
            self._reconnect(ConnectionError("its decoders are gone"))
        except Exception as error:
            if actors is self._actors:  # otherwise the promise was one of a connection that is no more
                self._reconnect(error)
        return _Answer(item, _read(self.reader, item))

    def _alone(self, item: ContentItem) -> _Answer:
        """Read a medium whose decoder died where no other can be the cause."""
        decoder = self._ray.remote(num_cpus=0)(_Decoder).remote(self.reader, self.seconds)
        try:
            return _Answer(item, self._ray.get(decoder.read.remote(item)))
        except self._ray.exceptions.RayActorError:
            if self._is_alive():
                return _Answer(item, None, died=True)
        except Exception as error:
            self._reconnect(error)
        finally:
            self._end(decoder)
        return _Answer(item, _read(self.reader, item))

    def _killed(self, item: ContentItem) -> BadData:
        how = f"ends the process that decodes it, by a crash or after {self.seconds:g} s"
        return BadData("broken_media", f"{item.path} {how}")

    def _end(self, actor: Any) -> None:
        """End a decoder; one of a cluster that is gone has ended, and Ray has many words for that."""
        with suppress(Exception):
            if self._ray.is_initialized():  # otherwise Ray would start a cluster to look for it
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
        again = self._connected_again() if self._host is not None else error
        if again is None:
            _log.warning("the decoding service did not answer (%s); connected again", _short(error))
            return
        self._actors, self._since = [], time.monotonic()
        self._next_look = self._since + self.look_again
        _log.warning(
            "the decoding service is gone (%s): media are decoded in this process%s",
            _short(again),
            " from now on" if self._host is None else " until it is back",
        )

    def _look(self) -> None:
        """Take the cluster again if it is back; a look costs a moment, and there is one now and then."""
        if self._host is None or time.monotonic() < self._next_look:
            return
        if self._connected_again() is None:
            _log.warning("the decoding service is back")
        self._next_look = time.monotonic() + self.look_again

    def _connected_again(self) -> Exception | None:
        """Leave the old connection and make another; what prevents it, or ``None``."""
        self._actors = []
        try:
            self._ray.shutdown()
            self._connect()
        except Exception as error:
            self._actors = []
            return error
        return None


class _Answer(NamedTuple):
    """What became of a medium: ``result`` means nothing if its decoder ``died`` of it, twice."""

    item: ContentItem
    result: Any
    died: bool = False


class _Decoder:
    """What runs on the cluster."""

    def __init__(self, reader: MediaReader, seconds: float) -> None:
        self.reader = reader
        self.seconds = seconds
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, even where it hangs in C; Ray starts another

    def stands(self) -> bool:
        """Answers once there is a process."""
        return True

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


def _host(address: str | None) -> tuple[str, int] | None:
    """Host and port of a client server.

    A process that joins a cluster as a member of it, by another kind of address, is ended by Ray when the cluster goes.
    """
    if address is None:
        return None
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not address.startswith("ray://") or not host or not port.isdigit():
        raise ValueError(
            f"address={address!r}: give the client server of the cluster's head, such as ray://head:10001 "
            "(ray start --head --ray-client-server-port=10001); None starts a cluster on this machine"
        )
    return host.strip("[]"), int(port)


def _check_that_it_listens(host: str, port: int) -> None:
    """Ray itself would try for half a minute."""
    try:
        socket.create_connection((host, port), timeout=_PROBE).close()
    except OSError as error:
        raise ConnectionError(f"nothing listens at {host}:{port} ({error}): is the head of the cluster up?") from error


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _ray() -> Any:
    os.environ.setdefault("RAY_CLIENT_RECONNECT_GRACE_PERIOD", "10")  # seconds; then media are decoded here meanwhile
    token = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ or _TOKEN.is_file()
    if token:  # a head that finds one asks for it, a client that finds one has to be told to show it
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a decoding service needs Ray: pip install 'keyekit[ray]'; one machine needs none, DecodePool does the same there"
        ) from error
    return ray
