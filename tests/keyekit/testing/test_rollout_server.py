"""The server against the network it serves, and what it does not understand."""

from __future__ import annotations

import json
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import torch

from keyekit.batch import Segments
from keyekit.models.weights.save import save_weights
from keyekit.testing.rollout_server import served
from keyekit.testing.tiny import tiny_vision_language_model


def post(url: str, body: dict) -> dict:
    with urlopen(url, json.dumps(body).encode()) as reply:
        return json.load(reply)


def test_greedy_tokens_are_the_likeliest_and_weights_are_read_when_told(tmp_path) -> None:
    network = tiny_vision_language_model().eval()
    body = {"prompt": [5, 9, 7], "max_tokens": 1, "temperature": 0.0, "top_p": 1.0, "seed": 0, "stop_token_ids": []}

    def likeliest() -> int:
        with torch.no_grad():
            hidden = network.decoder.embed_tokens(torch.tensor([5, 9, 7]))
            positions = torch.arange(3).expand(3, -1)
            output = network.decoder(hidden, positions, Segments.of([3]))
            return int(network.decoder.logits(output.hidden)[-1].argmax())

    with served(network) as server:
        before = post(f"{server.url}/v1/completions", body)["choices"][0]
        assert before["token_ids"] == [likeliest()]
        assert before["finish_reason"] == "length"
        with torch.no_grad():
            network.decoder.lm_head.weight.neg_()
        assert post(f"{server.url}/v1/completions", body)["choices"][0]["token_ids"] == before["token_ids"]
        save_weights(network, tmp_path / "weights")
        post(f"{server.url}/update_weights_from_disk", {"model_path": str(tmp_path / "weights")})
        assert post(f"{server.url}/v1/completions", body)["choices"][0]["token_ids"] == [likeliest()]
        with pytest.raises(HTTPError):
            post(f"{server.url}/unknown", {})
