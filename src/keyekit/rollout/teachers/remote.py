"""A teacher behind ``keyekit serve``, on this machine or another."""

from __future__ import annotations

import http.client
import json
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from urllib.parse import urlsplit

import torch
from torch import Tensor

from keyekit.batch import Batch
from keyekit.data.vocabulary import Vocabulary
from keyekit.objectives.distillation.topk import TopK
from keyekit.rollout.teachers.base import Scores, Teacher, TeacherRefused, whose_rows
from keyekit.rollout.teachers.selection import select_samples
from keyekit.rollout.teachers.server import SCORE, VOCABULARY
from keyekit.rollout.teachers.wire import pack_question, unpack_answer

__all__ = ["RemoteTeacher"]

_log = logging.getLogger(__name__)
_WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_PAUSE = 60.0


class RemoteTeacher(Teacher):
    """Asks one or several servers that hold the same teacher.

    A pack is divided into requests, which go to the servers in turn. Where an answer takes too long, or a server is dead, busy
    or failing, the next one is tried after twice the pause of before, or the time that the server asks for; in the end the
    samples of the request have no answer, and whoever asked counts them.

    Args:
        urls: Servers, such as ``http://127.0.0.1:8731``.
        token_variable: Environment variable that holds the servers' token.
        seconds: Longest time for one answer.
        tries: How often a request is sent at most.
        pause: Seconds before the second try.
        request_tokens: Tokens of a request, if no sample is longer.
        concurrency: Requests under way at a time.

    Raises:
        ValueError: If an address is none, or a number is out of range.
    """

    def __init__(
        self,
        urls: list[str],
        token_variable: str = "KEYEKIT_TEACHER_TOKEN",
        seconds: float = 120.0,
        tries: int = 4,
        pause: float = 1.0,
        request_tokens: int = 8192,
        concurrency: int = 4,
    ) -> None:
        wrong = [url for url in urls if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname]
        if wrong or not urls:
            raise ValueError(f"urls={urls}: expected at least one, each with http:// or https:// and a host")
        if seconds <= 0 or tries < 1 or pause < 0 or request_tokens < 1 or concurrency < 1:
            raise ValueError("need seconds > 0, tries >= 1, pause >= 0, request_tokens >= 1 and concurrency >= 1")
        self.urls = [url.rstrip("/") for url in urls]
        self.token_variable = token_variable
        self.seconds = seconds
        self.tries = tries
        self.pause = pause
        self.request_tokens = request_tokens
        self.concurrency = concurrency
        self._vocabulary: Vocabulary | None = None

    def vocabulary(self) -> Vocabulary | None:
        """See :class:`Teacher`; asked once.

        Raises:
            TeacherRefused: If no server answers, before a run has begun.
        """
        if self._vocabulary is None:
            data = self._ask(0, "GET", VOCABULARY, b"")
            if data is None:
                raise TeacherRefused(f"no teacher answers at {', '.join(self.urls)}: start one with keyekit serve")
            tokens = json.loads(data)["tokens"]
            self._vocabulary = None if tokens is None else Vocabulary(tuple(tokens))
        return self._vocabulary

    def score(self, batch: Batch, topk: int, asked: Tensor | None = None) -> Scores:
        """See :class:`Teacher`."""
        host = batch.to("cpu")
        groups = _groups([sample.stop - sample.start for sample in host.samples], self.request_tokens)
        answered = [False] * len(host.samples)
        width = topk if asked is None else asked.shape[1]
        indices = torch.zeros(len(host.tokens), width, dtype=torch.int64)
        log_probs = torch.zeros(len(host.tokens), width)
        ids = None if asked is None else asked.cpu()
        with ThreadPoolExecutor(self.concurrency) as threads:
            replies = list(threads.map(lambda pair: self._reply(host, pair[1], pair[0], topk, ids), enumerate(groups)))
        for group, reply in zip(groups, replies, strict=True):
            if reply is None:
                continue
            wide = reply.words.indices.shape[1]
            if wide < width:  # of fewer words than were asked for
                indices, log_probs, width = indices[:, :wide], log_probs[:, :wide], wide
            indices[reply.rows], log_probs[reply.rows] = reply.words.indices, reply.words.log_probs
            for number in group:
                answered[number] = True
        device = batch.tokens.device
        words = TopK(indices=indices.to(device), log_probs=log_probs.to(device))
        return Scores(words=words, answered=tuple(answered), meters={})

    def _reply(self, batch: Batch, group: Sequence[int], number: int, topk: int, asked: Tensor | None) -> _Reply | None:
        part = select_samples(batch, group)
        tokens = torch.cat([torch.arange(batch.samples[n].start, batch.samples[n].stop) for n in group])
        rows, _ = whose_rows(part)
        if not len(rows):
            return _Reply(
                tokens[rows], TopK(indices=torch.zeros(0, topk, dtype=torch.int64), log_probs=torch.zeros(0, topk))
            )
        data = self._ask(number, "POST", SCORE, pack_question(part, topk, None if asked is None else asked[tokens]))
        if data is None:
            return None
        try:
            return _Reply(tokens[rows], unpack_answer(data, len(rows)))
        except ValueError as error:
            _log.warning("a teacher answers with something else: %s", error)
            return None

    def _ask(self, first: int, method: str, path: str, body: bytes) -> bytes | None:
        problem = ""
        for number in range(self.tries):
            url = self.urls[(first + number) % len(self.urls)]
            data, problem, wait = self._try(url, method, path, body)
            if data is not None:
                return data
            if number + 1 < self.tries:
                time.sleep(min(max(self.pause * 2**number, wait), _LONGEST_PAUSE))
        _log.warning("no answer of a teacher after %d tries: %s", self.tries, problem)
        return None

    def _try(self, url: str, method: str, path: str, body: bytes) -> tuple[bytes | None, str, float]:
        """An answer, or what went wrong and for how many seconds the server wants to be left alone."""
        place = urlsplit(url)
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        connection = kind(place.hostname or "", place.port, timeout=self.seconds)
        token = os.environ.get(self.token_variable, "")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        end = time.monotonic() + self.seconds
        try:
            connection.request(method, place.path + path, body, headers)
            answer = connection.getresponse()
            received = bytearray()
            while piece := answer.read1(1 << 16):  # a server that sends a byte now and then is slow, too
                received += piece
                if time.monotonic() > end:
                    return None, f"{url} takes longer than {self.seconds:g} seconds", 0.0
        except (OSError, http.client.HTTPException) as error:
            return None, f"{url}: {type(error).__name__}: {error}", 0.0
        finally:
            connection.close()
        if answer.status == 200:
            return bytes(received), "", 0.0
        if answer.status in _WORTH_ANOTHER_TRY:
            return None, f"{url} answers {answer.status}", _seconds(answer.headers.get("Retry-After"))
        raise TeacherRefused(f"{url} refuses with {answer.status}: {_sentence(bytes(received), self.token_variable)}")


class _Reply(NamedTuple):
    rows: Tensor
    words: TopK


def _groups(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Samples side by side until they are long enough."""
    groups: list[list[int]] = []
    room = 0
    for number, length in enumerate(lengths):
        if not groups or length > room:
            groups.append([])
            room = most
        groups[-1].append(number)
        room -= length
    return groups


def _sentence(received: bytes, variable: str) -> str:
    try:
        text = str(json.loads(received)["error"])
    except (ValueError, KeyError, TypeError):
        text = received[:200].decode(errors="replace")
    return f"{text} (the token is taken from {variable})" if "token as" in text else text


def _seconds(header: str | None) -> float:
    try:
        return max(float(header or 0), 0.0)
    except ValueError:
        return 0.0  # a date: the usual pause does
