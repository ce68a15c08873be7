from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from keyekit.cli.pipeline.commands import Step
from keyekit.cli.pipeline.record import Record
from keyekit.cli.pipeline.runner import run_stages
from keyekit.cli.pipeline.work import Work


class Seen:
    """Remembers what happened."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.most = 0

    def changed(self, work) -> None:
        self.events.append((work.name, work.state))

    def refresh(self, works) -> None:
        self.most = max(self.most, sum(work.state == "running" for work in works))


def works(tmp_path, needs: dict[str, str], programs: dict[str, str] | None = None) -> dict[str, Work]:
    made = {}
    for name, of in needs.items():
        text = (programs or {}).get(name, "import time; time.sleep(0.2)")
        step = Step(name="fit", words=(), program=(sys.executable, "-c", text))
        made[name] = Work(
            name=name,
            needs=tuple(of.split()),
            folder=tmp_path / name,
            log=tmp_path / f"{name}.log",
            steps=[step],
            record=Record(recipe="r"),
        )
    return made


FAN = {"a": "", "b": "a", "c": "a", "d": "a", "m": "b c d"}


@pytest.mark.parametrize(("jobs", "most"), [(1, 1), (2, 2), (9, 3)])
def test_stages_run_side_by_side_as_far_as_they_may(tmp_path, jobs, most):
    seen, made = Seen(), works(tmp_path, FAN)
    assert run_stages(made, jobs, seen, pause=0.01) is None
    assert seen.most == most
    assert {work.state for work in made.values()} == {"done"}
    order = seen.events
    assert order.index(("b", "running")) > order.index(("a", "done"))
    assert order.index(("m", "running")) > max(order.index((name, "done")) for name in "bcd")


def test_what_is_done_is_not_run_again_and_needs_outside_count_as_done(tmp_path):
    seen, made = Seen(), works(tmp_path, {"b": "outside", "c": "b"})
    made["b"].state = "as it was"
    run_stages(made, 2, seen, pause=0.01)
    assert seen.events == [("c", "running"), ("c", "done")]


def test_after_a_failure_nothing_begins_and_what_runs_is_finished(tmp_path):
    programs = {"b": "raise SystemExit(5)", "c": "import time; time.sleep(1)"}
    seen, made = Seen(), works(tmp_path, FAN, programs)
    run_stages(made, 2, seen, pause=0.01)
    assert {name: work.state for name, work in made.items()} == {
        "a": "done",
        "b": "failed",
        "c": "done",
        "d": "blocked",
        "m": "blocked",
    }


def test_a_signal_stops_the_stages_once_and_is_returned(tmp_path):
    text = "import signal, time; signal.signal(15, lambda *a: exit(143)); print('ready', flush=True); time.sleep(30)"
    made = works(tmp_path, {"a": "", "b": "", "c": "a"}, {"a": text, "b": text})

    def send() -> None:
        while not all(made[name].tail()[-1:] == ["ready"] for name in "ab"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    assert run_stages(made, 2, Seen(), pause=0.01) == signal.SIGTERM
    assert [made[name].state for name in "abc"] == ["stopped", "stopped", "blocked"]
    assert signal.getsignal(signal.SIGTERM) is before
