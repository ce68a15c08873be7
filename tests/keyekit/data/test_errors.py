"""Bad data by policy."""

import logging

import pytest

from keyekit.data.errors import BadData, ErrorPolicy


def test_skip_counts_everything_and_logs_once_per_reason(caplog: pytest.LogCaptureFixture) -> None:
    policy = ErrorPolicy("skip")
    with caplog.at_level(logging.WARNING):
        for reason in ("a", "b", "a", "a"):
            policy.handle(BadData(reason, f"something of kind {reason}"))
    assert policy.counts == {"a": 3, "b": 1}
    assert len(caplog.records) == 2


def test_raise_raises_the_error_itself() -> None:
    with pytest.raises(BadData, match="the message") as caught:
        ErrorPolicy("raise").handle(BadData("reason", "the message"))
    assert caught.value.reason == "reason"


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match="choose 'skip' or 'raise'"):
        ErrorPolicy("ignore")  # pyright: ignore


def test_bad_data_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(BadData("reason", "the message")))
    assert (error.reason, str(error)) == ("reason", "the message")
