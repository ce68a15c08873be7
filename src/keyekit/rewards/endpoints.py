"""Asking other models, behind any server that speaks OpenAI's chat protocol, such as vLLM or SGLang."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from keyekit.rewards.json_client import EndpointRefused, JsonClient

__all__ = ["ChatEndpoint", "ChatModel", "EndpointRefused", "said"]


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

    What happens to trouble is said at :class:`~keyekit.rewards.json_client.JsonClient`. Keye-VL sends requests to one of
    several reward servers at random (8B sheet 5.5); here a digest of the request chooses, so that runs can be repeated.

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
        if max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens}: a reply needs at least one")
        self.client = JsonClient(urls, key_variable, seconds, tries, pause, concurrency)
        self.model = model
        self.max_tokens = max_tokens
        self.temperature = temperature

    def ask(self, prompts: Sequence[str]) -> list[str | None]:
        """See :class:`ChatModel`.

        Raises:
            ModuleNotFoundError: If ``httpx`` is not installed.
        """
        return self.client.post([("/chat/completions", self._body(prompt)) for prompt in prompts], said)

    def _body(self, prompt: str) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }


def said(reply: Any) -> str | None:
    """The text of a reply of the chat protocol, ``None`` if there is none.

    Raises:
        LookupError: If it is no such reply; or TypeError.
    """
    text = reply["choices"][0]["message"]["content"]
    return text if isinstance(text, str) else None
