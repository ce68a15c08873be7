"""Asking other models, behind any server that speaks OpenAI's chat protocol, such as vLLM or SGLang."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["ChatEndpoint", "ChatModel", "EndpointRefused"]

_log = logging.getLogger(__name__)
_WORTH_ANOTHER_TRY = (408, 409, 425, 429, 500, 502, 503, 504)
_LONGEST_PAUSE = 60.0


class EndpointRefused(RuntimeError):
    """The server answers, but refuses what it is asked: trying again would not help."""


class ChatModel(ABC):
    """Base of models that reply to prompts."""

    @abstractmethod
    def ask(self, prompts: Sequence[str]) -> list[str | None]:
        """Replies in the order of the prompts, ``None`` where there was none.

        Args:
            prompts: What is asked.

        Raises:
            EndpointRefused: If asking again would not help, as with a wrong key.
        """


class ChatEndpoint(ChatModel):
    """A model behind one or several servers.

    Where a reply takes too long, or a server is dead, busy or answers with something else, the next server is tried after
    twice the pause of before, or the time that the server asks for; in the end there is no reply. Keye-VL sends requests to
    one of several reward servers at random (8B sheet 5.5); here a digest of the prompt chooses, so that runs can be repeated.

    Args:
        urls: Bases of the protocol, such as ``http://127.0.0.1:8000/v1``, of servers with the same model.
        model: Name of the model there; Keye-VL-2.0 judges with Qwen2.5-VL-72B-Instruct (2.0 sheet 10.3).
        key_variable: Environment variable that holds the key; no key is sent if it is not set.
        max_tokens: Longest reply.
        temperature: Of the replies; 0 makes them as repeatable as the server is.
        seconds: Longest time for one reply.
        tries: How often a prompt is sent at most.
        pause: Seconds before the second try.
        concurrency: Prompts under way at a time.
    """

    def __init__(
        self,
        urls: list[str],
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        max_tokens: int = 1024,
        temperature: float = 0.0,
        seconds: float = 60.0,
        tries: int = 4,
        pause: float = 1.0,
        concurrency: int = 16,
    ) -> None:
        wrong = [url for url in urls if not url.startswith(("http://", "https://"))]
        if wrong or not urls:
            raise ValueError(f"urls={urls}: expected at least one, each with http:// or https://")
        if seconds <= 0 or tries < 1 or pause < 0 or concurrency < 1 or max_tokens < 1:
            raise ValueError("need seconds > 0, tries >= 1, pause >= 0, concurrency >= 1 and max_tokens >= 1")
        self.urls = [url.rstrip("/") for url in urls]
        self.model = model
        self.key_variable = key_variable
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.seconds = seconds
        self.tries = tries
        self.pause = pause
        self.concurrency = concurrency

    def ask(self, prompts: Sequence[str]) -> list[str | None]:
        """See :class:`ChatModel`.

        Raises:
            ModuleNotFoundError: If ``httpx`` is not installed.
        """
        try:
            import httpx
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("asking a server needs httpx: pip install keyekit[rewards]") from error
        key = os.environ.get(self.key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=self.concurrency)
        with (
            httpx.Client(headers=headers, timeout=self.seconds, limits=limits, trust_env=False) as client,
            ThreadPoolExecutor(self.concurrency) as threads,
        ):
            return list(threads.map(lambda prompt: self._ask(client, prompt), prompts))

    def _ask(self, client: Any, prompt: str) -> str | None:
        first = int.from_bytes(hashlib.blake2b(prompt.encode(errors="replace"), digest_size=4).digest(), "big")
        problem = ""
        for number in range(self.tries):
            url = self.urls[(first + number) % len(self.urls)]
            reply, problem, wait = self._try(client, url, prompt)
            if reply is not None:
                return reply
            if number + 1 < self.tries:
                time.sleep(min(max(self.pause * 2**number, wait), _LONGEST_PAUSE))
        _log.warning("no reply of %s after %d tries: %s", self.model, self.tries, problem)
        return None

    def _try(self, client: Any, url: str, prompt: str) -> tuple[str | None, str, float]:
        """A reply, or what went wrong and for how many seconds the server wants to be left alone."""
        import httpx

        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        end = time.monotonic() + self.seconds
        try:
            with client.stream("POST", f"{url}/chat/completions", json=body) as answer:
                received = bytearray()
                for piece in answer.iter_raw():  # a server that sends a byte now and then is slow, too
                    received += piece
                    if time.monotonic() > end:
                        return None, f"{url} takes longer than {self.seconds:g} seconds", 0.0
        except httpx.HTTPError as error:
            return None, f"{url}: {type(error).__name__}: {error}", 0.0
        if answer.status_code in _WORTH_ANOTHER_TRY:
            return None, f"{url} answers {answer.status_code}", _seconds(answer.headers.get("Retry-After"))
        if answer.status_code >= 400:
            text = received[:200].decode(errors="replace")
            raise EndpointRefused(f"{url} refuses the model {self.model} with {answer.status_code}: {text}")
        return _content(answer, bytes(received), url)


def _content(answer: Any, received: bytes, url: str) -> tuple[str | None, str, float]:

    try:
        text = json.loads(received)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None, f"{url} answers {answer.status_code} with something else than a reply", 0.0
    return (text, "", 0.0) if isinstance(text, str) else (None, f"{url} replies with no text", 0.0)


def _seconds(header: str | None) -> float:
    try:
        return max(float(header or 0), 0.0)
    except ValueError:
        return 0.0  # a date: the usual pause does
