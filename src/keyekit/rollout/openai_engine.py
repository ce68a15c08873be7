"""Rollouts by servers: vLLM, SGLang, or whatever else speaks OpenAI's protocol with token ids."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from keyekit.data.encode import EncodedSample
from keyekit.data.frames_file import MediaShape
from keyekit.data.sample import ContentItem, Message
from keyekit.data.template import TimeAxis, TimestampedFrames
from keyekit.models.pretrained import CONFIG, continued_config
from keyekit.models.weights.network import is_sharded
from keyekit.models.weights.save import save_weights
from keyekit.rewards.json_client import JsonClient
from keyekit.rewards.lost_samples import LostSamples
from keyekit.rollout.engine import RolloutEngine, RolloutSpec
from keyekit.rollout.server_protocols import Asked, OpenAIProtocol, PromptDiffers, SGLangProtocol, Spoken, data_url
from keyekit.rollout.trajectory import Prompt, Trajectory

__all__ = ["OpenAIEngine", "WeightsNotTaken"]

_log = logging.getLogger(__name__)
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_PROTOCOLS = {"openai": OpenAIProtocol, "sglang": SGLangProtocol}
_PLACED = (
    "its time is told by positions, which no reply shows: set time_axis to true if the servers place frames on the time axis "
    "as the policy does (vLLM as it is does not)"
)


class WeightsNotTaken(RuntimeError):
    """A server does not answer with the weights under training; its responses would be another policy's."""


class OpenAIEngine(RolloutEngine):
    """Servers answer with the weights under training, which are exported and read anew whenever they have changed.

    Prompts go out as token ids and responses come back as token ids with their log-probabilities; nothing is tokenised again.
    Pictures are sent as the policy sees them, resized. Where a server puts a prompt with pictures into tokens by itself, what
    it reads is compared with what the policy reads: a difference is an error, or for a later turn a response less. Requests
    that fail are tried again with growing pauses; a response that is lost in the end is missing in its group, and when too many
    are lost the run stops.

    Videos go out over OpenAI's protocol as the frames that the policy sees, with their times, in the form in which vLLM takes
    Keye-VL's; one video a prompt is what it allows. Frames after their times as text
    (:class:`~keyekit.data.template.TimestampedFrames`) are checked with the tokens. Where time is an axis of the positions
    (:class:`~keyekit.data.template.TimeAxis`) tokens do not show it: ``time_axis`` has to say that the servers do as the
    policy. SGLang takes a video apart by itself, so it is sent none, nor is any server frames of two sizes.

    Start the server from the folder of ``init_from``, on a machine that sees ``weights`` under the same path. Rank 0 has them
    read new weights; where ``urls`` name the own machine alone, the first process of every machine speaks to its own.

    Args:
        spec: The model and how it is asked.
        urls: Servers with the same model, such as ``http://127.0.0.1:8000``, without the ``/v1`` of the protocol.
        model: Name of the model there.
        weights: Folder that weights are exported to. ``None`` never refreshes them: for a policy that does not change.
        protocol: ``openai`` for vLLM and what is like it, ``sglang`` for SGLang's ``/generate``.
        log_probabilities: What the server logs: ``raw`` at temperature 1, vLLM's default, or ``processed``, those of the
            distribution that was drawn from (vLLM's ``--logprobs-mode processed_logprobs``; SGLang's default).
        reload: Calls that make a server read the folder, each ``{path: body}``, with ``{folder}`` where its name goes;
            by default those of the protocol.
        dtype: Of exported floating-point weights; their own by default.
        experts: ``fused`` or ``separate`` matrices of experts in the export; the released form by default.
        extra: Further fields of every request.
        key_variable: Environment variable that holds the key; no key is sent if it is not set.
        seconds: Longest time for one response, and for reading weights.
        tries: How often a request is sent at most.
        pause: Seconds before the second try.
        concurrency: Requests under way at a time; servers batch them.
        max_lost_share: Largest share of lost responses among the last 256.
        time_axis: Whether the servers place the frames of a video on the time axis of the positions, at the rate they are told.
            Keye patched its vLLM for video (8B sheet 6); vLLM as it is puts frames one behind the other (8B sheet 2.3).

    Raises:
        ValueError: If choices are to be recorded, which no server tells, or the server's log-probabilities cannot be those of
            the distribution that is drawn from.
    """

    def __init__(
        self,
        spec: RolloutSpec,
        urls: list[str],
        model: str,
        weights: str | None,
        protocol: Literal["openai", "sglang"] = "openai",
        log_probabilities: Literal["raw", "processed"] = "raw",
        reload: list[dict[str, dict[str, Any]]] | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        experts: Literal["fused", "separate"] | None = None,
        extra: dict[str, Any] | None = None,
        key_variable: str = "OPENAI_API_KEY",
        seconds: float = 600.0,
        tries: int = 4,
        pause: float = 1.0,
        concurrency: int = 64,
        max_lost_share: float = 0.05,
        time_axis: bool = False,
    ) -> None:
        super().__init__(spec)
        if spec.record:
            raise ValueError(
                "no server tells which experts and keys were chosen: set replay to false, or use NativeEngine"
            )
        if protocol not in _PROTOCOLS or log_probabilities not in ("raw", "processed"):
            raise ValueError(
                f"protocol={protocol!r}, log_probabilities={log_probabilities!r}: choose openai or sglang, raw or processed"
            )
        if log_probabilities == "raw" and not _is_plain(spec) and spec.sampler.temperature > 0:
            raise ValueError(
                f"{spec.sampler} draws from another distribution than the model's: have the server log that one and set "
                "log_probabilities=processed, or draw at temperature 1 without truncation"
            )
        roots = [url.rstrip("/").removesuffix("/v1") for url in urls]
        self.client = JsonClient(roots, key_variable, seconds, tries, pause, concurrency)
        self.servers = [JsonClient([root], key_variable, seconds, tries, pause) for root in roots]
        self.weights = weights
        self.protocol = _PROTOCOLS[protocol](
            model=model,
            stop_tokens=frozenset(spec.stop_tokens),
            max_new_tokens=spec.max_new_tokens,
            sampler=spec.sampler,
            extra=extra or {},
        )
        self.log_probabilities = log_probabilities
        self.reload = reload
        self.dtype: torch.dtype | None = None if dtype is None else getattr(torch, dtype)
        self.experts: Literal["fused", "separate"] | None = experts
        self.lost = LostSamples(max_lost_share, what="a response")
        self.time_axis = time_axis
        self._served: list[tuple[float, float]] | None = None

    def prepare(self) -> None:
        """Have the servers read the weights, if they have changed.

        Raises:
            WeightsNotTaken: If a server does not.
        """
        if self.weights is None:
            return
        present = [_mark(parameter) for parameter in self.spec.network.parameters()]
        if present == self._served:
            return
        first = not dist.is_initialized() or dist.get_rank() == 0
        if first or is_sharded(self.spec.network):
            save_weights(self.spec.network, self.weights, dtype=self.dtype, experts=self.experts)
        if first:
            _describe(self.spec, Path(self.weights))
        _of_all_ranks(None)  # whoever has servers told now finds the weights whole
        problems = _of_all_ranks(self._reloaded() if first or self._has_its_own() else None)
        for problem in filter(None, problems):
            raise WeightsNotTaken(problem)
        self._served = present

    def _has_its_own(self) -> bool:
        """Whether this is the first process of a machine with servers of its own."""
        hosts = {urlsplit(server.urls[0]).hostname for server in self.servers}
        return hosts <= _LOOPBACK and os.environ.get("LOCAL_RANK", "0") == "0"

    def rollout(self, prompts: Sequence[Prompt], responses: int, seed: int) -> list[list[Trajectory]]:
        """See :class:`RolloutEngine`; a response that was lost is missing.

        Raises:
            WeightsNotTaken: If a server does not read the weights.
            PromptDiffers: If a server reads a prompt otherwise than the policy.
            JudgeUnavailable: If too many responses are lost.
            EndpointRefused: If a server refuses what it is asked.
            ValueError: If a prompt has a video that no server can be sent; see :meth:`check`.
        """
        if responses < 1:
            raise ValueError(f"responses={responses}: a prompt needs at least one")
        if not _several_ranks():
            self.prepare()
        elif self.weights is not None and self._served is None:
            raise RuntimeError(
                "several ranks share the servers: call prepare() on all of them before rollouts, as rounds do"
            )
        asked = [
            self._asked(prompt, f"{seed}/{prompt.name}/{number}") for prompt in prompts for number in range(responses)
        ]
        videos = [_addresses(prompt) for prompt in prompts]  # written once, not for every response
        requests = [
            self._request(prompts[place // responses], each, videos[place // responses])
            for place, each in enumerate(asked)
        ]
        spoken = self.client.post(requests, self.protocol.read)
        groups: list[list[Trajectory]] = [[] for _ in prompts]
        for place, (each, response) in enumerate(zip(asked, spoken, strict=True)):
            prompt = prompts[place // responses]
            whole = response is not None and self._read_alike(prompt, each, response)
            self.lost.count(not whole)
            if response is not None and whole:
                groups[place // responses].append(self._trajectory(prompt, response))
        return groups

    def check(self, encoded: EncodedSample) -> None:
        """Refuse a prompt that no server can be sent as the policy sees it.

        Raises:
            ValueError: If it has a video, and the protocol, the layout of videos or the frames do not allow to send it.
        """
        for problem in map(self._problem, filter(_is_video, encoded.media)):
            if problem:
                where = f"{encoded.sample.id} has a video that cannot be sent as it is seen"
                raise ValueError(f"{where}: {problem}, or use NativeEngine")

    def _problem(self, video: MediaShape) -> str:
        """Why a video cannot be sent; empty if it can."""
        layout = None if self.spec.encoder is None else self.spec.encoder.template.video_layout
        if not isinstance(self.protocol, OpenAIProtocol):
            return "SGLang takes videos apart by itself: set protocol to openai"
        if video.fast:
            return "servers are sent frames of one size, and some are small: take a frame_sampler without fast frames"
        if isinstance(layout, TimestampedFrames):
            return ""
        if not isinstance(layout, TimeAxis) or not video.fps:
            return f"servers know no form for {type(layout).__name__} at {video.fps:g} frames a second: take another layout"
        return "" if self.time_axis else _PLACED

    def _request(self, prompt: Prompt, asked: Asked, videos: Sequence[str | None]) -> tuple[str, dict[str, Any]]:
        """Path and body; where the protocol wrote the first frame of a video, all of them stand."""
        path, body = self.protocol.request(asked)
        if not any(videos):
            return path, body
        parts = [part for turn in body["messages"] for part in turn["content"] if part["type"] == "image_url"]
        for part, address in zip(parts, videos, strict=True):
            if address is not None:
                part.clear()
                part.update({"type": "video_url", "video_url": {"url": address}})
        times = self._times([shape for shape in prompt.encoded.media if _is_video(shape)])
        return path, {**body, "mm_processor_kwargs": {**times, **body.get("mm_processor_kwargs", {})}}

    def _times(self, videos: Sequence[MediaShape]) -> dict[str, Any]:
        """What tells a server the times of frames: Keye-VL-8B's processor takes a rate, that of 1.5 seconds."""
        assert self.spec.encoder is not None
        if isinstance(self.spec.encoder.template.video_layout, TimeAxis):
            return {"fps": [shape.fps for shape in videos]}
        timed = all(shape.timestamps for shape in videos)
        return {"timestamps": [list(shape.timestamps) for shape in videos]} if timed else {}

    def _asked(self, prompt: Prompt, name: str) -> Asked:
        self.check(prompt.encoded)
        messages = prompt.messages or ()
        if prompt.pictures and not messages:
            if self.spec.encoder is None:
                raise ValueError("prompts with pictures need RolloutSpec.encoder: they are sent as conversations")
            messages = self.spec.encoder.template.turns(prompt.encoded.sample, with_answer=False)
        if messages:
            messages = self._with_system(messages)
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") >> 1
        return Asked(prompt.encoded.tokens.tolist(), [run[0] for run in prompt.pictures], messages, seed)

    def _with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        system = None if self.spec.encoder is None else self.spec.encoder.template.system
        if system is None or messages[0].role == "system":
            return messages
        return [Message(role="system", content=(ContentItem(kind="text", text=system),)), *messages]

    def _read_alike(self, prompt: Prompt, asked: Asked, spoken: Spoken) -> bool:
        """Whether the server read the tokens that the policy reads, as far as it says."""
        read, own = spoken.prompt, asked.tokens
        if read is None or read == own or read == len(own):
            return True
        where = f"{read} tokens, not {len(own)}"
        if isinstance(read, list):
            place = next(
                (n for n, (a, b) in enumerate(zip(read, own, strict=False)) if a != b), min(len(read), len(own))
            )
            where = f"other tokens from place {place} on: {read[place : place + 5]}, not {own[place : place + 5]}"
        if prompt.messages is not None:  # a later turn: drawn tokens that are not how their text is tokenised
            _log.warning("%s: the server read %s", prompt.name, where)
            return False
        raise PromptDiffers(
            f"{prompt.name}: the server read {where}. Its tokenizer, chat template, default system turn or limits of pictures "
            "are not those of the run"
        )

    def _trajectory(self, prompt: Prompt, spoken: Spoken) -> Trajectory:
        values, unknown = spoken.log_probabilities, (nan,) * len(spoken.tokens)
        sampled = (0.0,) * len(spoken.tokens) if self.spec.sampler.temperature == 0 else values
        known = self.log_probabilities == "raw" or _is_plain(self.spec)
        return Trajectory(
            prompt=prompt,
            tokens=spoken.tokens,
            log_probabilities=values if known else unknown,
            sampling_log_probabilities=sampled,
            end=spoken.end,
        )

    def _reloaded(self) -> str | None:
        """Tell every server to read the folder; returns what went wrong."""
        assert self.weights is not None
        folder = Path(self.weights).absolute()
        calls = self.protocol.reload(str(folder)) if self.reload is None else _filled(self.reload, str(folder))
        for server in self.servers:
            for call in calls:
                try:
                    (taken,) = server.post([call], _taken)
                except RuntimeError as error:
                    return f"{error}; vLLM has {call[0]} with VLLM_SERVER_DEV_MODE=1, another server may need reload="
                if taken is None:
                    return (
                        f"{server.urls[0]} did not read the weights in {folder} after {server.tries} tries ({call[0]})"
                    )
        return None


def _is_video(shape: MediaShape) -> bool:
    """Whether a medium has several frames, or one with a time."""
    return shape.frames > 1 or bool(shape.timestamps)


def _addresses(prompt: Prompt) -> list[str | None]:
    """For each medium of a prompt the address of its frames if it is a video."""
    if not any(map(_is_video, prompt.encoded.media)):
        return [None] * len(prompt.encoded.media)
    media = zip(prompt.encoded.media, prompt.pictures, strict=True)
    return [_frames_url(frames) if _is_video(shape) else None for shape, frames in media]


def _frames_url(frames: np.ndarray) -> str:
    """Frames, ``[N, H, W, 3]`` uint8, as the address of a video that is taken apart already.

    vLLM reads ``video/jpeg`` as pictures with commas between them and leaves none of them out. It opens each by what it holds:
    PNG, in which no pixel changes.
    """
    return "data:video/jpeg;base64," + ",".join(data_url(frame).partition("base64,")[2] for frame in frames)


def _several_ranks() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def _of_all_ranks(own: str | None) -> list[str | None]:
    """What every rank says; all of them have to ask."""
    if not _several_ranks():
        return [own]
    everyone: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return everyone


def _taken(reply: Any) -> bool | None:
    """Whether a call was done: any reply will do, but one that says it failed."""
    return None if isinstance(reply, dict) and reply.get("success") is False else True


def _filled(reload: Sequence[dict[str, dict[str, Any]]], folder: str) -> list[tuple[str, dict[str, Any]]]:
    """Calls with the folder's name in its place."""
    text = json.dumps(folder)[1:-1]
    return [
        (path, json.loads(json.dumps(body).replace("{folder}", text))) for call in reload for path, body in call.items()
    ]


def _describe(spec: RolloutSpec, folder: Path) -> None:
    """Write what a server needs beside the weights to be started on the folder, as far as it is known."""
    try:
        (folder / CONFIG).write_text(json.dumps(continued_config(spec.network), indent=2) + "\n", encoding="utf-8")
    except ValueError as problem:
        _log.debug("%s has no %s: %s", folder, CONFIG, problem)


def _is_plain(spec: RolloutSpec) -> bool:
    """Whether tokens are drawn from the model's own distribution."""
    sampler = spec.sampler
    return sampler.temperature == 1 and not sampler.top_k and sampler.top_p == 1 and sampler.repetition_penalty == 1


@torch.no_grad()
def _mark(parameter: torch.Tensor) -> tuple[float, float]:
    """Two sums by which a change of a parameter is seen."""
    values = parameter.detach().double()
    sums = torch.stack([values.sum(), values.square().sum()])
    whole = sums.full_tensor() if isinstance(sums, DTensor) else sums
    return float(whole[0]), float(whole[1])
