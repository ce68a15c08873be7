"""What servers are asked for a response, and how their replies are read: OpenAI's protocol as vLLM extends it, and SGLang's."""

from __future__ import annotations

import base64
import io
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from keyekit.data.sample import Message
from keyekit.models.sampling import Sampler

__all__ = ["Asked", "OpenAIProtocol", "PromptDiffers", "SGLangProtocol", "ServerProtocol", "Spoken", "data_url"]


class PromptDiffers(RuntimeError):
    """A server reads a prompt otherwise than the policy does: what it says is no answer to what will be trained on."""


class Asked(NamedTuple):
    """A prompt for one response.

    Args:
        tokens: Token ids of the prompt, placeholders of pictures included.
        pictures: ``[height, width, 3]`` uint8, in order.
        messages: The conversation as turns; empty where there are no pictures.
        seed: Seed of the draws.
    """

    tokens: list[int]
    pictures: list[np.ndarray]
    messages: Sequence[Message]
    seed: int


class Spoken(NamedTuple):
    """A response.

    Args:
        tokens: All tokens drawn, with the stop token if one ended it.
        log_probabilities: What the server says about each.
        end: Why it ended.
        prompt: Token ids of the prompt as the server read it, or only their number where it says no more; ``None`` if nothing.
    """

    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    end: Literal["stop_token", "length"]
    prompt: list[int] | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProtocol(ABC):
    """Base of the protocols.

    Args:
        model: Name of the model on the server.
        stop_tokens: Tokens that end a response.
        max_new_tokens: Most tokens of a response.
        sampler: How tokens are drawn.
        extra: Further fields of every request.
    """

    model: str
    stop_tokens: Collection[int]
    max_new_tokens: int
    sampler: Sampler
    extra: dict[str, Any] = field(default_factory=dict)

    @abstractmethod
    def request(self, asked: Asked) -> tuple[str, dict[str, Any]]:
        """Path and body."""

    @abstractmethod
    def read(self, reply: Any) -> Spoken | None:
        """The response in a reply; ``None``, or an error of looking it up, if there is none that ended as it should."""

    @staticmethod
    @abstractmethod
    def reload(folder: str) -> list[tuple[str, dict[str, Any]]]:
        """Calls after which the server answers with the weights in a folder: paths and bodies."""


class OpenAIProtocol(ServerProtocol):
    """Completions with token ids in and out, as vLLM offers them; prompts with pictures go through chat completions.

    A chat is put into tokens by the server, which says what came of it (``return_token_ids``); that has to be our prompt.
    Weights are read anew through vLLM's development endpoints (``VLLM_SERVER_DEV_MODE=1``).
    """

    __slots__ = ()

    def request(self, asked: Asked) -> tuple[str, dict[str, Any]]:
        """See :class:`ServerProtocol`."""
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": self.sampler.temperature,
            # Said even where nothing is cut off: a server would take what the model's generation_config.json says.
            "top_p": self.sampler.top_p,
            "top_k": self.sampler.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": self.sampler.repetition_penalty,
            "seed": asked.seed,
            "stop_token_ids": sorted(self.stop_tokens),
            "skip_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        if not asked.pictures:
            own = {"prompt": asked.tokens, "max_tokens": self.max_new_tokens, "logprobs": 1}
            return "/v1/completions", {**body, **own, **self.extra}
        pictures = iter(asked.pictures)
        messages = [_turn(turn, pictures) for turn in asked.messages]
        own = {"messages": messages, "max_completion_tokens": self.max_new_tokens, "logprobs": True, "top_logprobs": 0}
        return "/v1/chat/completions", {**body, **own, **self.extra}

    def read(self, reply: Any) -> Spoken | None:
        """See :class:`ServerProtocol`."""
        choice = reply["choices"][0]
        reason = choice["finish_reason"]
        if reason not in ("stop", "length"):
            return None
        logged = choice["logprobs"]
        if "content" in logged and logged["content"] is not None:
            names, values = zip(*((each["token"], each["logprob"]) for each in logged["content"]), strict=True)
        else:
            names, values = logged["tokens"], logged["token_logprobs"]
        tokens = choice.get("token_ids")
        if tokens is None:
            tokens = [int(name.removeprefix("token_id:")) for name in names]
        prompt = choice.get("prompt_token_ids", reply.get("prompt_token_ids"))
        return _spoken(tokens, values, reason == "stop", self.stop_tokens, prompt)

    @staticmethod
    def reload(folder: str) -> list[tuple[str, dict[str, Any]]]:
        """See :class:`ServerProtocol`."""
        weights = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        return [("/collective_rpc", weights), ("/reset_prefix_cache", {})]


class SGLangProtocol(ServerProtocol):
    """SGLang's own endpoint: token ids in and out, with pictures beside them.

    Whether a seed is kept depends on the server; where it takes one, name it in ``extra``.
    """

    __slots__ = ()

    def request(self, asked: Asked) -> tuple[str, dict[str, Any]]:
        """See :class:`ServerProtocol`."""
        sampling = {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.sampler.temperature,
            "top_p": self.sampler.top_p,
            "top_k": self.sampler.top_k or -1,
            "repetition_penalty": self.sampler.repetition_penalty,
            "stop_token_ids": sorted(self.stop_tokens),
            "skip_special_tokens": False,
            "no_stop_trim": True,
        }
        body = {"input_ids": asked.tokens, "sampling_params": sampling, "return_logprob": True}
        if asked.pictures:
            body["image_data"] = [data_url(picture) for picture in asked.pictures]
        return "/generate", {**body, **self.extra}

    def read(self, reply: Any) -> Spoken | None:
        """See :class:`ServerProtocol`."""
        about = reply["meta_info"]
        reason = about["finish_reason"]["type"]
        if reason not in ("stop", "length"):
            return None
        values, tokens = zip(*((each[0], each[1]) for each in about["output_token_logprobs"]), strict=True)
        return _spoken(tokens, values, reason == "stop", self.stop_tokens, about.get("prompt_tokens"))

    @staticmethod
    def reload(folder: str) -> list[tuple[str, dict[str, Any]]]:
        """See :class:`ServerProtocol`."""
        return [("/update_weights_from_disk", {"model_path": folder, "flush_cache": True})]


def data_url(picture: np.ndarray) -> str:
    """A picture, ``[height, width, 3]`` uint8, as the address that holds it: PNG, so that no pixel changes."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _turn(turn: Message, pictures: Iterator[np.ndarray]) -> dict[str, Any]:
    """A turn with its pictures; that of a tool as the chat template writes it, which a server's own might not."""
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": item.text}
        if item.kind == "text"
        else {"type": "image_url", "image_url": {"url": data_url(next(pictures))}}
        for item in turn.content
    ]
    if turn.role != "tool":
        return {"role": turn.role, "content": parts}
    before, behind = ({"type": "text", "text": mark} for mark in ("<tool_response>", "</tool_response>"))
    return {"role": "user", "content": [before, *parts, behind]}


def _spoken(
    tokens: Sequence[int],
    values: Sequence[float],
    stopped: bool,
    stop_tokens: Collection[int],
    prompt: list[int] | int | None,
) -> Spoken:
    if len(tokens) != len(values) or not tokens:
        raise ValueError(f"{len(tokens)} tokens but {len(values)} log-probabilities")
    if stopped != (tokens[-1] in stop_tokens):
        raise ValueError(
            f"the response is said to have {'stopped' if stopped else 'run out'}, but ends with {tokens[-1]}"
        )
    end = "stop_token" if stopped else "length"
    return Spoken(tuple(tokens), tuple(map(float, values)), end, prompt)
