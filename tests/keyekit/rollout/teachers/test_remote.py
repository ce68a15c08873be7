"""A teacher elsewhere says the same as one at hand; dead and slow ones are retried, then counted."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from keyekit.rollout.teachers.base import TeacherRefused, whose_rows
from keyekit.rollout.teachers.local import LocalTeacher
from keyekit.rollout.teachers.remote import RemoteTeacher
from keyekit.rollout.teachers.server import TeacherServer


@contextmanager
def served(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def url(network, data, monkeypatch):
    monkeypatch.setenv("KEYEKIT_TEACHER_TOKEN", "secret")
    with served(TeacherServer(LocalTeacher.of(network, data.tokenizer), "secret")) as url:
        yield url


@contextmanager
def failing(statuses: list[int], pause: float = 0.0):
    """A server that answers with these codes, one after the other, dripping bytes if it is slow."""
    seen: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(time.monotonic())
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(statuses[min(len(seen), len(statuses)) - 1])
            self.send_header("Content-Length", "20")
            self.end_headers()
            try:
                for _ in range(20):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(pause)
            except OSError:
                pass

        def log_message(self, *args) -> None:
            pass

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url, seen


def dead() -> str:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{place.getsockname()[1]}"


@pytest.mark.parametrize("request_tokens", [1, 8192], ids=["a sample a request", "all at once"])
def test_it_says_what_the_teacher_says(url, network, pack, request_tokens) -> None:
    remote = RemoteTeacher([url], request_tokens=request_tokens)
    rows, _ = whose_rows(pack)
    asked = torch.randint(0, 320, (len(pack.tokens), 3))
    for words in (None, asked):
        found, expected = remote.score(pack, 4, words), LocalTeacher.of(network).score(pack, 4, words)
        assert torch.equal(found.words.indices[rows], expected.words.indices[rows])
        torch.testing.assert_close(found.words.log_probs, expected.words.log_probs, atol=2e-5, rtol=1e-4)
        assert found.answered == (True,) * 6
    assert remote.vocabulary().tokens == tuple(
        LocalTeacher.of(network, None).vocabulary() or remote.vocabulary().tokens
    )


def test_a_dead_server_is_passed_over(url, pack) -> None:
    remote = RemoteTeacher([dead(), url], pause=0.01)
    assert remote.score(pack, 2).answered == (True,) * 6


def test_without_any_server_samples_have_no_answer(pack, monkeypatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("keyekit.rollout.teachers.remote.time.sleep", pauses.append)
    scores = RemoteTeacher([dead()], pause=0.5, tries=4).score(pack, 2)
    assert scores.answered == (False,) * 6
    assert pauses == [0.5, 1.0, 2.0]
    with pytest.raises(TeacherRefused, match=r"no teacher answers at .*: start one with keyekit serve"):
        RemoteTeacher([dead()], pause=0.0, tries=2).vocabulary()


def test_a_slow_server_is_given_up_and_only_its_samples_are_lost(pack) -> None:
    with failing([200], pause=0.2) as (slow, seen):
        scores = RemoteTeacher([slow], seconds=0.5, tries=2, pause=0.01).score(pack, 2)
    assert scores.answered == (False,) * 6
    assert len(seen) == 2


def test_a_busy_server_is_asked_again(pack) -> None:
    with failing([503, 500, 200]) as (url, seen):  # and then it says something that is no answer
        assert not any(RemoteTeacher([url], pause=0.01).score(pack, 2).answered)
    assert len(seen) == 3


def test_a_refusal_stops_at_once(url, pack, monkeypatch) -> None:
    monkeypatch.setenv("KEYEKIT_TEACHER_TOKEN", "wrong")
    with pytest.raises(TeacherRefused, match=r"refuses with 401: .* \(the token is taken from KEYEKIT_TEACHER_TOKEN\)"):
        RemoteTeacher([url]).score(pack, 2)
    with failing([422]) as (wrong, seen), pytest.raises(TeacherRefused, match="refuses with 422"):
        RemoteTeacher([wrong], request_tokens=8192).score(pack, 2)
    assert len(seen) == 1


@pytest.mark.parametrize("urls", [[], ["127.0.0.1:8731"], ["ftp://x"], ["http://"]])
def test_addresses_are_checked(urls) -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        RemoteTeacher(urls)
    with pytest.raises(ValueError, match="tries >= 1"), ExitStack():
        RemoteTeacher(["http://a"], tries=0)
