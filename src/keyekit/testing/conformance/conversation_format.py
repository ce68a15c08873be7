"""What every conversation format has to fulfil."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from keyekit.data.errors import BadData
from keyekit.data.sample import Sample
from keyekit.testing.conformance.construction import make

__all__ = ["CHECKS"]

CHECKS = ("check_bad_entries_are_bad_data", "check_can_be_sent_to_other_processes")
"""Functions of this module that make up the suite."""

_PLACE = "somewhere.jsonl:17"
_ENTRIES: tuple[Any, ...] = (None, 3, "text", [], [[]], {}, {"messages": 3}, {"conversations": [None]}, {"text": [1]})


def _outcome(format: Any, entry: Any) -> Sample | str:
    try:
        return format.parse(entry, _PLACE, Path("folder"))
    except BadData as error:
        return str(error)


def check_bad_entries_are_bad_data(cls: type) -> None:
    """Whatever an entry is, it becomes a sample or bad data whose message says where it is."""
    format = make(cls)
    for entry in _ENTRIES:
        outcome = _outcome(format, entry)
        assert isinstance(outcome, Sample) or _PLACE in outcome, f"the error about {entry} does not name {_PLACE}"


def check_can_be_sent_to_other_processes(cls: type) -> None:
    """A copy in another process understands the same."""
    format = make(cls)
    copy = pickle.loads(pickle.dumps(format))
    for entry in _ENTRIES:
        assert _outcome(format, entry) == _outcome(copy, entry), f"a pickled copy reads {entry} in another way"
