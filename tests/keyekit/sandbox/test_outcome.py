from __future__ import annotations

import pytest

from keyekit.sandbox.outcome import Outcome, Reason


def outcome(reason: Reason, stderr: bytes = b"", exit: int = 1) -> Outcome:
    return Outcome(reason=reason, exit=exit, stdout=b"", stderr=stderr, seconds=0.0, peak_memory=0)


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (outcome(Reason.FINISHED, b"a warning", exit=0), ""),
        (outcome(Reason.FAILED, b"Traceback\nKeyError: 1\n"), "KeyError: 1"),
        (outcome(Reason.FAILED, exit=3), "failed with status 3"),
        (outcome(Reason.TIME, b"half a line"), "ended by the sandbox: time"),
        (outcome(Reason.CRASHED, b"\xff"), "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_the_complaint_is_one_line(found, complaint):
    assert found.complaint == complaint
    assert found.finished == (not complaint)
