"""A teacher behind HTTP: scores packs, one at a time, for whoever knows the token."""

from __future__ import annotations

import hmac
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from keyekit.rollout.teachers.base import Teacher, whose_rows
from keyekit.rollout.teachers.wire import pack_answer, unpack_question

__all__ = ["SCORE", "VOCABULARY", "ServerLimits", "TeacherServer"]

SCORE, VOCABULARY, HEALTH = "/v1/score", "/v1/vocabulary", "/health"
"""Where packs are scored, tokens are listed, and anybody may ask whether the server lives."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What a request may be.

    Args:
        request_bytes: Most bytes of a request.
        pack_tokens: Most tokens of a pack.
        words: Most words that are listed or scored for a token.
        waiting: Most requests that wait for the model; more are sent away for a while.
        idle_seconds: How long a peer may keep a connection without sending anything.
    """

    request_bytes: int = 256 * 1024 * 1024
    pack_tokens: int = 65_536
    words: int = 1024
    waiting: int = 32
    idle_seconds: float = 60.0


class TeacherServer(ThreadingHTTPServer):
    """Serves a teacher until it is shut down; requests under way are finished then.

    ``POST /v1/score`` takes a pack and returns words (see :mod:`~keyekit.rollout.teachers.wire`); ``GET /v1/vocabulary`` lists
    the tokens; ``GET /health`` says ``ok`` to anybody. Errors are JSON with a sentence under ``error``: 401 without the token,
    413 for a request that is too large, 422 for one that cannot be read or that this teacher reads differently, 503 with
    ``Retry-After`` while too many wait.

    Args:
        teacher: Reads packs.
        token: Secret that requests carry as ``Authorization: Bearer``.
        host: Address to listen on; others than the loopback's are reachable from elsewhere, and nothing is encrypted.
        port: Port; 0 for a free one.
        limits: What a request may be.
        device: Where packs are read.

    Raises:
        ValueError: If the token is empty.

    Example:
        >>> from keyekit.rollout.teachers.local import LocalTeacher
        >>> from keyekit.testing.tiny import tiny_vision_language_model
        >>> with TeacherServer(LocalTeacher.of(tiny_vision_language_model()), token="secret") as server:
        ...     server.server_address[0]
        '127.0.0.1'
    """

    daemon_threads = False  # closing waits for requests under way
    request_queue_size = 64

    def __init__(
        self,
        teacher: Teacher,
        token: str,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: ServerLimits | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not token:
            raise ValueError("the token is empty: everybody would know it")
        self.teacher = teacher
        self.token = token
        self.limits = limits or ServerLimits()
        self.device = torch.device(device)
        self.model = threading.Lock()
        self.places = threading.BoundedSemaphore(self.limits.waiting)
        teacher.move(self.device)
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self.server_address[:2]
        name = host.decode() if isinstance(host, bytes | bytearray) else str(host)
        return f"http://{f'[{name}]' if ':' in name else name}:{port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that goes away is no event; the rest is logged by the handler."""
        _log.debug("connection of %s broke off", client_address, exc_info=True)


class _Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, sentence: str, wait: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.wait = wait


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "keyekit"
    sys_version = ""
    server: TeacherServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.limits.idle_seconds)

    def do_GET(self) -> None:
        self._answer({HEALTH: self._health, VOCABULARY: self._vocabulary}, POST=(SCORE,))

    def do_POST(self) -> None:
        self._answer({SCORE: self._score}, GET=(HEALTH, VOCABULARY))

    def log_message(self, format: str, *args: Any) -> None:
        _log.info("%s %s", self.address_string(), format % args)

    def _answer(self, places: dict[str, Callable[[], tuple[str, bytes]]], **others: tuple[str, ...]) -> None:
        try:
            if self.path != HEALTH:
                self._authorise()
            if self.path not in places:
                for method, paths in others.items():
                    if self.path in paths:
                        raise _Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"{self.path} wants {method}")
                raise _Refusal(HTTPStatus.NOT_FOUND, f"there is {', '.join((SCORE, VOCABULARY, HEALTH))}")
            kind, body = places[self.path]()
            self._send(HTTPStatus.OK, kind, body)
        except _Refusal as refusal:
            self._refuse(refusal)
        except (TimeoutError, ConnectionError):
            self.close_connection = True
        except Exception:
            _log.exception("a request failed")
            self._refuse(_Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "the teacher failed; its log says why"))

    def _authorise(self) -> None:
        given = self.headers.get("Authorization", "")
        expected = f"Bearer {self.server.token}"
        if not hmac.compare_digest(given.encode(), expected.encode()):
            raise _Refusal(HTTPStatus.UNAUTHORIZED, "send the server's token as 'Authorization: Bearer TOKEN'")

    def _health(self) -> tuple[str, bytes]:
        return "application/json", b'{"status": "ok"}'

    def _vocabulary(self) -> tuple[str, bytes]:
        with self.server.model:
            known = self.server.teacher.vocabulary()
        return "application/json", json.dumps({"tokens": None if known is None else known.tokens}).encode()

    def _score(self) -> tuple[str, bytes]:
        limits = self.server.limits
        body = self._body(limits.request_bytes)
        try:
            question = unpack_question(body)
        except ValueError as error:
            raise _Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
        tokens = len(question.batch.tokens)
        if tokens > limits.pack_tokens:
            raise _Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"a pack of {tokens} tokens, {limits.pack_tokens} are allowed: send smaller packs",
            )
        words = question.topk if question.asked is None else question.asked.shape[1]
        if not 1 <= words <= limits.words:
            raise _Refusal(
                HTTPStatus.UNPROCESSABLE_ENTITY, f"{words} words for a token, 1 to {limits.words} are allowed"
            )
        if not self.server.places.acquire(blocking=False):
            raise _Refusal(HTTPStatus.SERVICE_UNAVAILABLE, f"{limits.waiting} requests wait already", wait=1)
        try:
            with self.server.model:
                batch = question.batch.to(self.server.device)
                asked = None if question.asked is None else question.asked.to(self.server.device)
                scores = self.server.teacher.score(batch, question.topk, asked)
        except ValueError as error:
            raise _Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
        finally:
            self.server.places.release()
        return "application/octet-stream", pack_answer(scores.words, whose_rows(batch)[0])

    def _body(self, most: int) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            raise _Refusal(HTTPStatus.LENGTH_REQUIRED, "say the length of the request")
        if int(length) > most:
            self.close_connection = True  # what is not read would be taken for the next request
            raise _Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"a request of {length} bytes, {most} are allowed: send smaller packs",
            )
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionError("the peer went away")
        return body

    def _refuse(self, refusal: _Refusal) -> None:
        if self.command == "POST" and refusal.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND):
            self.close_connection = True  # its body was not read
        headers = {} if refusal.wait is None else {"Retry-After": str(refusal.wait)}
        if refusal.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        self._send(refusal.status, "application/json", json.dumps({"error": str(refusal)}).encode(), headers)

    def _send(self, status: HTTPStatus, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
