"""A small server that answers with a network of ours and speaks the protocols of vLLM and SGLang, as far as rollouts use them.

For tests and for trying :class:`~keyekit.rollout.openai_engine.OpenAIEngine` without either of them; it answers one request at
a time and is no server for anything else.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from typing import Any

import numpy as np
import torch
from PIL import Image

from keyekit.batch import IGNORED_LABEL
from keyekit.data.encode import EncodedSample
from keyekit.data.frames_file import MediaShape
from keyekit.data.sample import ContentItem, Message, Sample
from keyekit.data.template import ChatTemplate, MediaGrid
from keyekit.models.sampling import Sampler
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.models.weights import load_weights
from keyekit.nn.rope.positions import VisualSpan, multimodal_positions
from keyekit.rollout.engine import RolloutSpec
from keyekit.rollout.native import NativeEngine
from keyekit.rollout.trajectory import Prompt, Trajectory

__all__ = ["RolloutServer", "served"]

_MERGED = 2  # patches of a side that become one placeholder


class RolloutServer(ThreadingHTTPServer):
    """The server; see :func:`served`.

    Args:
        network: Answers; a copy is made, so that it knows of no step of training until it is told to read weights.
        tokenizer: Turns chats into tokens; without one only token ids are understood.
        template: How it does so.
    """

    daemon_threads = True

    def __init__(
        self, network: VisionLanguageModel, tokenizer: Any = None, template: ChatTemplate | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.network = deepcopy(network).eval()
        self.tokenizer = tokenizer
        self.template = template or ChatTemplate()
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.trouble: list[int] = []
        """Statuses that the next requests get instead of an answer."""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that give up are part of the tests."""

    def serve(self, path: str, body: dict[str, Any]) -> Any:
        """The reply to a request; one at a time, since the network is one.

        Raises:
            ValueError: If it is not understood.
        """
        with self.lock:
            self.calls.append((path, body))
            if path in ("/collective_rpc", "/update_weights_from_disk"):
                load_weights(self.network, body.get("model_path") or body["kwargs"]["weights_path"])
                return {"success": True}
            if path == "/reset_prefix_cache":
                return None
            if path == "/generate":
                return self._native(body)
            if path in ("/v1/completions", "/v1/chat/completions"):
                return self._completion(body)
        raise ValueError(f"no such path: {path}")

    def _native(self, body: dict[str, Any]) -> dict[str, Any]:
        """A reply in the form of SGLang."""
        sampling = body["sampling_params"]
        pictures = [_picture(url) for url in body.get("image_data", ())]
        said = self._answer(body["input_ids"], pictures, sampling, sampling["max_new_tokens"], 0)
        logged = [[value, token, None] for value, token in zip(said.log_probabilities, said.tokens, strict=True)]
        reason = {"type": "stop", "matched": said.tokens[-1]} if said.end == "stop_token" else {"type": "length"}
        about = {"finish_reason": reason, "prompt_tokens": len(said.prompt), "output_token_logprobs": logged}
        return {"text": "", "meta_info": about}

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        """A reply in the form of vLLM to a completion or a chat."""
        tokens, pictures = body.get("prompt"), []
        if tokens is None:
            tokens, pictures = self._chat(body["messages"])
        most = body.get("max_tokens") or body["max_completion_tokens"]
        said = self._answer(tokens, pictures, body, most, body["seed"])
        names = [f"token_id:{token}" for token in said.tokens]
        values = list(said.log_probabilities)
        logged: dict[str, Any] = {"tokens": names, "token_logprobs": values}
        if "messages" in body:
            pairs = zip(names, values, strict=True)
            logged = {"content": [{"token": name, "logprob": value} for name, value in pairs]}
        reason = "stop" if said.end == "stop_token" else "length"
        choice = {
            "finish_reason": reason,
            "logprobs": logged,
            "token_ids": list(said.tokens),
            "prompt_token_ids": tokens,
        }
        return {"choices": [choice]}

    def _chat(self, messages: list[dict[str, Any]]) -> tuple[list[int], list[np.ndarray]]:
        """A chat as tokens, and its pictures."""
        pictures: list[np.ndarray] = []
        turns = []
        for message in messages:
            items = []
            for part in message["content"]:
                if part["type"] == "text":
                    items.append(ContentItem(kind="text", text=part["text"]))
                else:
                    pictures.append(_picture(part["image_url"]["url"]))
                    items.append(ContentItem(kind="image"))
            turns.append(Message(role=message["role"], content=tuple(items)))
        grids = [MediaGrid(rows=rows, columns=columns) for rows, columns in map(self._grid, pictures)]
        sample = Sample(id="chat", task="", messages=tuple(turns))
        rendered = self.template.render(sample, grids, self.tokenizer, with_answer=False)
        return rendered.tokens, pictures

    def _answer(
        self, tokens: list[int], pictures: list[np.ndarray], sampling: dict[str, Any], most: int, seed: int
    ) -> Trajectory:
        sampler = Sampler(
            temperature=sampling["temperature"], top_p=sampling["top_p"], top_k=max(sampling.get("top_k", 0), 0)
        )
        spec = RolloutSpec(self.network, sampling["stop_token_ids"], most, sampler)
        ((said,),) = NativeEngine(spec).rollout([self._prompt(tokens, pictures)], 1, seed)
        return said

    def _prompt(self, tokens: list[int], pictures: list[np.ndarray]) -> Prompt:
        """A prompt of token ids, in which each run of placeholders is a picture."""
        pad = None if self.tokenizer is None else self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        runs, place = [], 0
        for token, run in groupby(tokens):
            length = len(list(run))
            runs += [(place, length)] if token == pad else []
            place += length
        grids = list(map(self._grid, pictures))
        if [length for _, length in runs] != [rows * columns for rows, columns in grids]:
            raise ValueError(f"placeholders {runs} are not those of pictures of {grids}")
        spans = tuple(
            VisualSpan(start=start, rows=rows, columns=columns)
            for (start, _), (rows, columns) in zip(runs, grids, strict=True)
        )
        encoded = EncodedSample(
            tokens=torch.tensor(tokens),
            labels=torch.full((len(tokens),), IGNORED_LABEL),
            positions=multimodal_positions(len(tokens), spans),
            spans=spans,
            sample=Sample(id="request", task="", messages=()),
            keys=("",) * len(pictures),
            media=tuple(MediaShape(1, picture.shape[0], picture.shape[1], (), 0.0) for picture in pictures),
        )
        return Prompt(encoded=encoded, pictures=[picture[None] for picture in pictures])

    def _grid(self, picture: np.ndarray) -> tuple[int, int]:
        side = self.network.vision.patch_size * _MERGED
        return picture.shape[0] // side, picture.shape[1] // side


@contextmanager
def served(
    network: VisionLanguageModel, tokenizer: Any = None, template: ChatTemplate | None = None
) -> Iterator[RolloutServer]:
    """Serve a copy of a network on this machine as long as the context lasts.

    Args:
        network: Answers.
        tokenizer: Turns chats into tokens; without one only token ids are understood.
        template: How it does so.
    """
    server = RolloutServer(network, tokenizer, template)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: RolloutServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            trouble = self.server.trouble.pop(0) if self.server.trouble else None
        if trouble is not None:
            self._reply(trouble, b"in trouble")
            return
        try:
            reply = self.server.serve(self.path, body)
        except (ValueError, KeyError) as error:
            self._reply(400, str(error).encode())
            return
        self._reply(200, b"" if reply is None else json.dumps(reply).encode())

    def _reply(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _picture(url: str) -> np.ndarray:
    content = base64.b64decode(url.partition("base64,")[2])
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))
