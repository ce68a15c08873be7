"""The client of a judge against a server on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from keyekit.evaluation.judges import EndpointJudge, ask_until
from keyekit.rewards.endpoints import EndpointRefused


class Server(HTTPServer):
    """Keeps what it was asked; answers what it is told to."""

    reply = json.dumps({"choices": [{"message": {"content": "回答正确"}}]})
    status = 200
    asked: list[dict]
    keys: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append({"path": self.path, **json.loads(body)})
        self.server.keys.append(self.headers["Authorization"])
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.reply.encode())

    def log_message(self, format, *args) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.asked, server.keys = [], []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def judge_of(server: Server) -> EndpointJudge:
    return EndpointJudge(
        f"http://127.0.0.1:{server.server_port}/v1/", "judge", key_variable="KEYEKIT_TEST_KEY", timeout=5
    )


def test_a_server_that_speaks_the_chat_protocol_is_asked(server: Server, monkeypatch):
    monkeypatch.setenv("KEYEKIT_TEST_KEY", "secret")
    assert judge_of(server).ask("对吗？", 0.5) == "回答正确"
    assert server.asked == [
        {
            "path": "/v1/chat/completions",
            "model": "judge",
            "messages": [{"role": "user", "content": "对吗？"}],
            "temperature": 0.5,
            "max_tokens": 128,
        }
    ]
    assert server.keys == ["Bearer secret"]
    monkeypatch.delenv("KEYEKIT_TEST_KEY")
    judge_of(server).ask("?", 0.0)
    assert server.keys[1] is None


@pytest.mark.parametrize(("status", "reply"), [(500, "{}"), (200, "no JSON"), (200, "{}"), (200, '{"choices": []}')])
def test_errors_are_no_reply(server: Server, status: int, reply: str):
    server.status, server.reply = status, reply
    assert ask_until(judge_of(server), "?", lambda said: said) is None
    assert [asked["temperature"] for asked in server.asked] == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_a_wrong_key_is_told_at_once(server: Server):
    server.status, server.reply = 401, "who are you?"
    with pytest.raises(EndpointRefused, match="401: who are you"):
        judge_of(server).ask("?", 0.0)
    server.status = 400  # such as one prompt that is too long
    assert judge_of(server).ask("?", 0.0) is None


def test_a_server_that_is_not_there_gives_no_reply(server: Server):
    judge = EndpointJudge("http://127.0.0.1:1/v1", "judge")
    assert judge.ask("?", 0.0) is None
    with pytest.raises(ValueError, match="each with http"):
        EndpointJudge("ftp://x", "judge")
