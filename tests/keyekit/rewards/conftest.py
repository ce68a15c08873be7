"""A server that speaks OpenAI's chat protocol, and misbehaves on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Server(ThreadingHTTPServer):
    """Does what ``behave`` says with each request: a status, a body and headers; ``None`` for a connection that breaks off."""

    daemon_threads = True
    behave: Callable[[dict, int], tuple[int, bytes, dict[str, str]] | None]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict] = []
        self.keys: list[str | None] = []
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.behave = lambda body, number: replied("Score: 1")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = sum(before["messages"] == body["messages"] for before in self.server.asked)
            self.server.asked.append({"path": self.path, **body})
            self.server.keys.append(self.headers["Authorization"])
        answer = self.server.behave(body, number)
        if answer is None:
            self.close_connection = True
            return
        status, content, headers = answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if headers.get("X-Drip"):
            for byte in content:  # never silent for long, never finished
                if self.server.stop.wait(0.05):
                    return
                self.wfile.write(bytes([byte]))
            return
        self.wfile.write(content)

    def log_message(self, format, *args) -> None:
        """Say nothing."""


def replied(text: object) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode(), {}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.handle_error = lambda request, client_address: None  # clients that give up are part of the tests
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def naps(monkeypatch) -> list[float]:
    """The pauses that an endpoint makes, none of which is waited for."""
    taken: list[float] = []
    monkeypatch.setattr("keyekit.rewards.json_client.time", _Clock(taken))
    return taken


class _Clock:
    def __init__(self, taken: list[float]) -> None:
        self.taken, self.monotonic = taken, time.monotonic

    def sleep(self, seconds: float) -> None:
        self.taken.append(seconds)
