from __future__ import annotations

import socket

import pytest

from keyekit.rewards.endpoints import ChatEndpoint, EndpointRefused


def reply(text: object):
    import json

    return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode(), {}


def endpoint(*urls: str, **arguments) -> ChatEndpoint:
    settings = {"seconds": 5.0, "tries": 3, "pause": 0.5, "key_variable": "KEYEKIT_TEST_KEY", **arguments}
    return ChatEndpoint([*urls], "judge", **settings)


def test_replies_come_in_the_order_of_the_prompts(server, monkeypatch):
    monkeypatch.setenv("KEYEKIT_TEST_KEY", "secret")
    server.behave = lambda body, number: reply(body["messages"][0]["content"].upper())
    prompts = [f"prompt {number}" for number in range(20)]
    assert endpoint(server.url + "/", concurrency=4).ask(prompts) == [prompt.upper() for prompt in prompts]
    assert {body["path"] for body in server.asked} == {"/v1/chat/completions"}
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in server.asked} == {("judge", 0.0, 1024)}
    assert set(server.keys) == {"Bearer secret"}


def test_no_key_is_sent_where_there_is_none(server):
    endpoint(server.url).ask(["a"])
    assert server.keys == [None]


def test_no_prompts():
    assert endpoint("http://127.0.0.1:1/v1").ask([]) == []


@pytest.mark.parametrize(
    "trouble",
    [
        (500, b"oops", {}),
        (503, b"", {}),
        (200, b"not json", {}),
        (200, b"[]", {}),
        (200, b'{"choices": []}', {}),
        reply(None),
        reply(["parts"]),
        (200, b"\xff\xfe", {}),
        None,
    ],
    ids=["500", "503", "garbage", "list", "no choices", "no text", "parts", "bytes", "broken off"],
)
def test_trouble_that_passes_is_tried_again(server, naps, trouble):
    server.behave = lambda body, number: trouble if number < 2 else reply("fine")
    assert endpoint(server.url).ask(["a"]) == ["fine"]
    assert naps == [0.5, 1.0]


def test_trouble_that_stays_gives_no_reply(server, naps):
    server.behave = lambda body, number: reply("fine") if body["messages"][0]["content"] == "good" else (500, b"", {})
    assert endpoint(server.url).ask(["bad", "good"]) == [None, "fine"]
    assert len(server.asked) == 4


def test_a_busy_server_is_left_alone_as_long_as_it_asks(server, naps):
    answers = [
        (429, b"", {"Retry-After": "7"}),
        (429, b"", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        reply("fine"),
    ]
    server.behave = lambda body, number: answers[number]
    assert endpoint(server.url).ask(["a"]) == ["fine"]
    assert naps == [7.0, 1.0]


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_told_at_once(server, naps, status):
    server.behave = lambda body, number: (status, b"no such model", {})
    with pytest.raises(EndpointRefused, match=f"{status}: no such model"):
        endpoint(server.url).ask(["a"])
    assert len(server.asked) == 1


def test_a_silent_server_is_given_up(server, naps):
    server.behave = lambda body, number: (server.stop.wait(10), reply("late"))[1]
    assert endpoint(server.url, seconds=0.2, tries=2).ask(["a"]) == [None]


def test_a_server_that_drips_is_given_up(server, naps):
    server.behave = lambda body, number: (*reply("x" * 500)[:2], {"X-Drip": "yes"})
    assert endpoint(server.url, seconds=0.3, tries=1).ask(["a"]) == [None]


def test_a_dead_server_is_gone_round(server, naps):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        assert endpoint(dead, tries=2).ask(["a"]) == [None]
        assert endpoint(dead, server.url, tries=2).ask(list("abcdefgh")) == ["Score: 1"] * 8


def test_prompts_are_spread_over_servers_the_same_way_every_time():
    one = endpoint("http://a", "http://b")
    asked: list[str] = []
    one.client._try = lambda client, url, body, read: (asked.append(url), ("x", "", 0.0))[1]
    prompts = [str(number) for number in range(40)]
    one.ask(prompts)
    first, asked[:] = list(asked), []
    one.ask(prompts)
    assert sorted(asked) == sorted(first)
    assert 10 < first.count("http://a/chat/completions") < 30


@pytest.mark.parametrize(
    "arguments",
    [{"urls": []}, {"urls": ["localhost:8000"]}, {"tries": 0}, {"seconds": 0}, {"concurrency": 0}, {"max_tokens": 0}],
)
def test_arguments(arguments):
    with pytest.raises(ValueError, match=r"expected at least one|need seconds|needs at least one"):
        ChatEndpoint(**{"urls": ["http://a"], "model": "judge", **arguments})
