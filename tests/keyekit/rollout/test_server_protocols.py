"""Requests and replies of servers, number by number."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from keyekit.data.sample import ContentItem, Message
from keyekit.models.sampling import Sampler
from keyekit.rollout.server_protocols import Asked, OpenAIProtocol, SGLangProtocol, data_url

SETTINGS = {"model": "m", "stop_tokens": frozenset({2}), "max_new_tokens": 9, "sampler": Sampler(temperature=1.0)}


def test_completions_carry_ids_and_read_them_back():
    path, body = OpenAIProtocol(**SETTINGS, extra={"priority": 3}).request(Asked([5, 6], [], (), 7))
    assert path == "/v1/completions"
    assert body["prompt"] == [5, 6]
    assert (body["max_tokens"], body["temperature"], body["seed"], body["stop_token_ids"]) == (9, 1.0, 7, [2])
    assert body["return_token_ids"]
    assert body["priority"] == 3
    assert (body["top_k"], body["top_p"], body["min_p"], body["repetition_penalty"]) == (-1, 1.0, 0.0, 1.0)
    logged = {"tokens": ["token_id:8", "token_id:2"], "token_logprobs": [-1.0, -0.5]}
    choice = {"finish_reason": "stop", "logprobs": logged, "prompt_token_ids": [5, 6]}
    spoken = OpenAIProtocol(**SETTINGS).read({"choices": [choice]})  # of a server that gives no token_ids
    assert spoken == ((8, 2), (-1.0, -0.5), "stop_token", [5, 6])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"finish_reason": "length"}, "run out, but ends with 2"),
        ({"token_ids": [8]}, "1 tokens but 2 log-probabilities"),
        ({"token_ids": [8, 9]}, "stopped, but ends with 9"),
    ],
)
def test_replies_that_contradict_themselves_are_none(change, problem):
    logged = {"tokens": ["token_id:8", "token_id:2"], "token_logprobs": [-1.0, -0.5]}
    choice = {"finish_reason": "stop", "token_ids": [8, 2], "logprobs": logged, **change}
    with pytest.raises(ValueError, match=problem):
        OpenAIProtocol(**SETTINGS).read({"choices": [choice]})


def test_a_response_that_was_aborted_is_none():
    choice = {"finish_reason": "abort", "token_ids": [8], "logprobs": None}
    assert OpenAIProtocol(**SETTINGS).read({"choices": [choice]}) is None
    assert SGLangProtocol(**SETTINGS).read({"meta_info": {"finish_reason": {"type": "abort"}}}) is None


def test_chats_send_pictures_as_they_are_and_tools_in_the_form_of_the_template():
    picture = np.random.default_rng(0).integers(0, 256, (28, 56, 3), dtype=np.uint8)
    text = ContentItem(kind="text", text="seen")
    tool = Message(role="tool", content=(text, ContentItem(kind="image")))
    path, body = OpenAIProtocol(**SETTINGS).request(Asked([5], [picture], [tool], 7))
    assert path == "/v1/chat/completions"
    (turn,) = body["messages"]
    assert turn["role"] == "user"
    assert [part.get("text") for part in turn["content"]] == ["<tool_response>", "seen", None, "</tool_response>"]
    content = base64.b64decode(turn["content"][2]["image_url"]["url"].split(",")[1])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), picture)
    assert data_url(picture) == turn["content"][2]["image_url"]["url"]


def test_sglang_keeps_ids_beside_pictures():
    picture = np.zeros((28, 28, 3), dtype=np.uint8)
    path, body = SGLangProtocol(**SETTINGS).request(Asked([5, 6], [picture], (), 7))
    assert path == "/generate"
    assert body["input_ids"] == [5, 6]
    assert len(body["image_data"]) == 1
    assert body["sampling_params"]["top_k"] == -1
    logged = [[-1.0, 8, None], [-0.5, 2, None]]
    about = {"finish_reason": {"type": "stop", "matched": 2}, "prompt_tokens": 2, "output_token_logprobs": logged}
    assert SGLangProtocol(**SETTINGS).read({"meta_info": about}) == ((8, 2), (-1.0, -0.5), "stop_token", 2)


def test_weights_are_read_by_the_calls_of_each_server():
    assert OpenAIProtocol.reload("/w")[0] == (
        "/collective_rpc",
        {"method": "reload_weights", "kwargs": {"weights_path": "/w"}},
    )
    assert SGLangProtocol.reload("/w") == [("/update_weights_from_disk", {"model_path": "/w", "flush_cache": True})]
