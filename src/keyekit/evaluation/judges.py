"""Models that judge answers: the seam, and a client for servers that speak OpenAI's chat protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from keyekit.rewards.endpoints import said
from keyekit.rewards.json_client import EndpointRefused, JsonClient

__all__ = ["EndpointJudge", "Judge", "ask_until"]

TRIES = 5
"""How often a judge is asked, at temperatures of half the number of the try (Keye-VL 8B sheet 8.3 item 3 and 8.4)."""

Result = TypeVar("Result")


class Judge(ABC):
    """Base of the judges."""

    @abstractmethod
    def ask(self, prompt: str, temperature: float) -> str | None:
        """The reply to a prompt, ``None`` if there was none.

        Args:
            prompt: What is asked.
            temperature: Of the judge's own sampling.
        """


class EndpointJudge(Judge):
    """A model behind a server that speaks OpenAI's chat protocol, such as vLLM or SGLang on this machine.

    Args:
        url: Base of the protocol, such as ``http://127.0.0.1:8000/v1``.
        model: Name of the model; the released scorer of KC-MMBench meant ``gpt-4o-mini`` (8B sheet 8.4).
        key_variable: Environment variable that holds the key; no key is sent if it is not set.
        max_tokens: Longest reply (8B sheet 8.4).
        timeout: Seconds to wait for a reply.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        max_tokens: int = 128,
        timeout: float = 60.0,
    ) -> None:
        self.client = JsonClient([url], key_variable, timeout, tries=1)  # trying again is up to ask_until
        self.model = model
        self.max_tokens = max_tokens

    def ask(self, prompt: str, temperature: float) -> str | None:
        """See :class:`Judge`; a server that cannot be reached or replies with an error gives no reply.

        Raises:
            EndpointRefused: If it refuses every prompt, for the key or the name of the model.
            ModuleNotFoundError: If ``httpx`` is not installed.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "max_tokens": self.max_tokens,
        }
        try:
            (reply,) = self.client.post([("/chat/completions", body)], said)
        except EndpointRefused as error:
            if error.status in (401, 403, 404):
                raise
            return None
        return reply


def ask_until(judge: Judge, prompt: str, read: Callable[[str], Result | None]) -> Result | None:
    """Ask a judge until its reply can be read, at most :data:`TRIES` times, each a little more at random.

    Args:
        judge: The judge.
        prompt: What is asked.
        read: What a reply says; ``None`` if it says nothing.
    """
    for number in range(TRIES):
        reply = judge.ask(prompt, 0.5 * number)
        found = None if reply is None else read(reply)
        if found is not None:
            return found
    return None
