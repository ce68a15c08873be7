"""The server: whom it answers, what it refuses, and how it ends."""

from __future__ import annotations

import http.client
import json
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from keyekit.objectives.distillation.base import target_rows
from keyekit.rollout.teachers.local import LocalTeacher
from keyekit.rollout.teachers.server import ServerLimits, TeacherServer
from keyekit.rollout.teachers.wire import pack_question, unpack_answer

TOKEN = {"Authorization": "Bearer secret"}


@contextmanager
def running(teacher, **settings):
    server = TeacherServer(teacher, "secret", **settings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(server, method: str, path: str, body: bytes = b"", headers=TOKEN):
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


@pytest.fixture(scope="module")
def server(network, data):
    with running(LocalTeacher.of(network, data.tokenizer), limits=ServerLimits(request_bytes=1 << 20, words=8)) as it:
        yield it


def test_a_pack_is_scored(server, pack, log_probs) -> None:
    status, body, headers = ask(server, "POST", "/v1/score", pack_question(pack, 4))
    assert (status, headers["Content-Type"]) == (200, "application/octet-stream")
    rows = target_rows(pack.labels, pack.num_targets)
    words = unpack_answer(body, len(rows))
    assert torch.equal(words.indices, log_probs[rows].topk(4).indices)
    torch.testing.assert_close(words.log_probs, log_probs[rows].topk(4).values)


def test_it_listens_on_this_machine_alone(server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.url.startswith("http://127.0.0.1:")
    with pytest.raises(ValueError, match="token is empty"):
        TeacherServer(server.teacher, "")


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}])
def test_without_the_token_there_is_nothing_but_health(server, pack, headers) -> None:
    status, body, answered = ask(server, "POST", "/v1/score", pack_question(pack, 4), headers)
    assert (status, answered["WWW-Authenticate"]) == (401, "Bearer")
    assert "token" in json.loads(body)["error"]
    assert ask(server, "GET", "/v1/vocabulary", headers=headers)[0] == 401
    assert ask(server, "GET", "/health", headers=headers)[:2] == (200, b'{"status": "ok"}')


def test_tokens_are_listed(server, data) -> None:
    status, body, _ = ask(server, "GET", "/v1/vocabulary")
    assert status == 200
    assert json.loads(body)["tokens"][3] == data.tokenizer.convert_ids_to_tokens(3)


def test_what_is_too_large_is_refused_unread(server, pack, network) -> None:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
    connection.putrequest("POST", "/v1/score")
    connection.putheader("Authorization", "Bearer secret")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert "1048576 are allowed" in json.loads(answer.read())["error"]
    with running(LocalTeacher.of(network), limits=ServerLimits(pack_tokens=50)) as small:
        status, body, _ = ask(small, "POST", "/v1/score", pack_question(pack, 4))
        assert status == 413
        assert "50 are allowed: send smaller packs" in json.loads(body)["error"]


def test_what_cannot_be_read_is_refused_with_the_reason(server, pack) -> None:
    wrong = replace(pack, positions=pack.positions + 1)
    for body, reason in (
        (b"hello", "this is no pack of a student"),
        (pack_question(wrong, 4), "for the teacher (time, row, column)"),
        (pack_question(pack, 9), "9 words for a token, 1 to 8 are allowed"),
    ):
        status, text, _ = ask(server, "POST", "/v1/score", body)
        assert status == 422
        assert reason in json.loads(text)["error"]
    assert ask(server, "POST", "/v1/score", pack_question(pack, 4))[0] == 200  # and it goes on


def test_other_places_and_methods_are_refused(server) -> None:
    assert ask(server, "GET", "/etc/passwd")[0] == 404
    assert ask(server, "GET", "/v1/score")[0] == 405
    assert ask(server, "POST", "/v1/vocabulary")[0] == 405
    assert ask(server, "DELETE", "/v1/score")[0] == 501
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
    connection.putrequest("POST", "/v1/score")
    connection.putheader("Authorization", "Bearer secret")
    connection.endheaders()
    assert connection.getresponse().status == 411


class Slow(LocalTeacher):
    """A teacher that waits until it is let go; one that breaks."""

    def score(self, batch, topk, asked=None):
        self.begun.set()
        self.go.wait(20)
        if topk == 1:
            raise RuntimeError("no memory")
        return super().score(batch, topk, asked)


@pytest.fixture
def slow(network) -> Slow:
    teacher = Slow.of(network)
    teacher.begun, teacher.go = threading.Event(), threading.Event()
    return teacher


def test_who_finds_too_many_waiting_is_sent_away_for_a_while(slow, pack) -> None:
    with running(slow, limits=ServerLimits(waiting=1)) as server:
        first: list = []
        thread = threading.Thread(target=lambda: first.append(ask(server, "POST", "/v1/score", pack_question(pack, 2))))
        thread.start()
        slow.begun.wait(20)
        status, _, headers = ask(server, "POST", "/v1/score", pack_question(pack, 2))
        assert (status, headers["Retry-After"]) == (503, "1")
        slow.go.set()
        thread.join()
        assert first[0][0] == 200


def test_a_request_under_way_is_finished_when_the_server_ends(slow, pack) -> None:
    answers: list = []
    with running(slow) as server:
        thread = threading.Thread(
            target=lambda: answers.append(ask(server, "POST", "/v1/score", pack_question(pack, 2)))
        )
        thread.start()
        slow.begun.wait(20)
        threading.Timer(0.1, slow.go.set).start()
    thread.join()  # the server has answered; the asker may not have read it yet
    assert [status for status, *_ in answers] == [200]


def test_a_failure_of_the_model_is_said_without_details(slow, pack) -> None:
    slow.go.set()
    with running(slow) as server:
        status, body, _ = ask(server, "POST", "/v1/score", pack_question(pack, 1))
        assert status == 500
        assert json.loads(body) == {"error": "the teacher failed; its log says why"}
