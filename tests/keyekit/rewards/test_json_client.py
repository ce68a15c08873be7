"""The client apart from the chat protocol; trouble of all kinds is in ``test_endpoints.py``, through it."""

from __future__ import annotations

import pytest

from keyekit.rewards.json_client import EndpointRefused, JsonClient


def test_results_come_in_order_and_what_cannot_be_read_is_tried_again(server, naps):
    server.behave = lambda body, number: (200, b'{"number": %d}' % (body["messages"] if number else -1), {})

    def read(reply):
        if reply["number"] < 0:
            raise ValueError("not yet")
        return reply["number"]

    client = JsonClient([server.url], seconds=5.0, pause=0.5, concurrency=4)
    assert client.post([("/any", {"messages": number}) for number in range(9)], read) == list(range(9))
    assert naps == [0.5] * 9
    assert {body["path"] for body in server.asked} == {"/v1/any"}


def test_no_more_requests_than_allowed_are_under_way(server):
    most, now = [0], [0]

    def behave(body, number):
        with server.lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        server.stop.wait(0.02)
        with server.lock:
            now[0] -= 1
        return 200, b"[1]", {}

    server.behave = behave
    client = JsonClient([server.url], concurrency=3)
    assert client.post([("/any", {"messages": number}) for number in range(12)], lambda reply: reply[0]) == [1] * 12
    assert 1 < most[0] <= 3


def test_a_refusal_has_its_status(server):
    server.behave = lambda body, number: (413, b"too long", {})
    with pytest.raises(EndpointRefused) as caught:
        JsonClient([server.url]).post([("/any", {"messages": 1})], lambda reply: reply)
    assert caught.value.status == 413
