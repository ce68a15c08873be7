"""JSON over HTTP with patience: several servers, growing pauses, a limit of requests at a time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["EndpointRefused", "JsonClient"]

_log = logging.getLogger(__name__)
_WORTH_ANOTHER_TRY = (408, 409, 425, 429, 500, 502, 503, 504)
_LONGEST_PAUSE = 60.0

Result = TypeVar("Result")


class EndpointRefused(RuntimeError):
    """The server answers, but refuses what it is asked: trying again would not help.

    Args:
        message: What was refused, by whom.
        status: The HTTP status.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class JsonClient:
    """Sends JSON to one or several servers that do the same.

    Where a reply takes too long, or a server is dead, busy or answers with something else, the next server is tried after
    twice the pause of before, or the time that the server asks for; in the end there is no reply. A digest of the request
    chooses the first server, so that runs can be repeated.

    Args:
        urls: Bases of the servers.
        key_variable: Environment variable that holds the key; no key is sent if it is not set.
        seconds: Longest time for one reply.
        tries: How often a request is sent at most.
        pause: Seconds before the second try.
        concurrency: Requests under way at a time.

    Raises:
        ValueError: If there is no server, an address is none, or a number makes no sense.
    """

    def __init__(
        self,
        urls: Sequence[str],
        key_variable: str = "OPENAI_API_KEY",
        seconds: float = 60.0,
        tries: int = 4,
        pause: float = 1.0,
        concurrency: int = 16,
    ) -> None:
        wrong = [url for url in urls if not url.startswith(("http://", "https://"))]
        if wrong or not urls:
            raise ValueError(f"urls={list(urls)}: expected at least one, each with http:// or https://")
        if seconds <= 0 or tries < 1 or pause < 0 or concurrency < 1:
            raise ValueError("need seconds > 0, tries >= 1, pause >= 0 and concurrency >= 1")
        self.urls = [url.rstrip("/") for url in urls]
        self.key_variable = key_variable
        self.seconds = seconds
        self.tries = tries
        self.pause = pause
        self.concurrency = concurrency

    def post(
        self, requests: Sequence[tuple[str, dict[str, Any]]], read: Callable[[Any], Result | None]
    ) -> list[Result | None]:
        """Send requests, several at a time.

        Args:
            requests: Path behind the base, such as ``/chat/completions``, and body of each.
            read: Makes a result of a reply. ``None``, or an error that comes of a reply of another form, is tried again.

        Returns:
            Results in the order of the requests, ``None`` where there was none.

        Raises:
            EndpointRefused: If trying again would not help, as with a wrong key.
            ModuleNotFoundError: If ``httpx`` is not installed.
        """
        try:
            import httpx
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("asking a server needs httpx: pip install keyekit[rewards]") from error
        if not requests:
            return []
        key = os.environ.get(self.key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=self.concurrency)
        with (
            httpx.Client(headers=headers, timeout=self.seconds, limits=limits, trust_env=False) as client,
            ThreadPoolExecutor(self.concurrency) as threads,
        ):
            return list(threads.map(lambda request: self._post(client, request[0], request[1], read), requests))

    def _post(
        self, client: Any, path: str, body: dict[str, Any], read: Callable[[Any], Result | None]
    ) -> Result | None:
        first = int.from_bytes(hashlib.blake2b(json.dumps(body).encode(), digest_size=4).digest(), "big")
        problem = ""
        for number in range(self.tries):
            url = self.urls[(first + number) % len(self.urls)]
            result, problem, wait = self._try(client, f"{url}{path}", body, read)
            if result is not None:
                return result
            if number + 1 < self.tries:
                time.sleep(min(max(self.pause * 2**number, wait), _LONGEST_PAUSE))
        _log.warning("no reply to %s after %d tries: %s", path, self.tries, problem)
        return None

    def _try(
        self, client: Any, url: str, body: dict[str, Any], read: Callable[[Any], Result | None]
    ) -> tuple[Result | None, str, float]:
        """A result, or what went wrong and for how many seconds the server wants to be left alone."""
        import httpx

        end = time.monotonic() + self.seconds
        try:
            with client.stream("POST", url, json=body) as answer:
                received = bytearray()
                for piece in answer.iter_raw():  # a server that sends a byte now and then is slow, too
                    received += piece
                    if time.monotonic() > end:
                        return None, f"{url} takes longer than {self.seconds:g} seconds", 0.0
        except httpx.HTTPError as error:
            return None, f"{url}: {type(error).__name__}: {error}", 0.0
        status = answer.status_code
        if status in _WORTH_ANOTHER_TRY:
            return None, f"{url} answers {status}", _seconds(answer.headers.get("Retry-After"))
        if status >= 400:
            text = received[:200].decode(errors="replace")
            raise EndpointRefused(f"{url} refuses the request with {status}: {text}", status)
        try:
            result = read(json.loads(bytes(received) or b"null"))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            return None, f"{url} answers {status} with something else than expected: {error!r}", 0.0
        return result, f"{url} answers {status} with nothing to go on with", 0.0


def _seconds(header: str | None) -> float:
    try:
        return max(float(header or 0), 0.0)
    except ValueError:
        return 0.0  # a date: the usual pause does
