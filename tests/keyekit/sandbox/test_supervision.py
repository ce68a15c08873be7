from __future__ import annotations

import pytest

from keyekit.sandbox.execution import available, run
from keyekit.sandbox.limits import Limits
from keyekit.sandbox.outcome import Reason

pytestmark = pytest.mark.skipif(not available(), reason=f"no sandbox here: {available().why_not}")


def test_orphans_are_buried_while_the_program_runs():
    """More of them than there may be processes, one after the other: zombies would count."""
    program = """
import os, time
for number in range(40):
    child = os.fork()
    if not child:
        if not os.fork(): os._exit(0)
        os._exit(0)
    os.waitpid(child, 0)
    time.sleep(0.03)
print('all')
"""
    outcome = run(program, limits=Limits(processes=4))
    assert (outcome.reason, outcome.stdout) == (Reason.FINISHED, b"all\n")


@pytest.mark.parametrize(
    ("program", "reason", "exit"),
    [
        ("raise MemoryError", Reason.MEMORY, 1),
        ("raise SystemExit(7)", Reason.FAILED, 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", Reason.CRASHED, -11),
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", Reason.CPU, -24),
        ("print('MemoryError')", Reason.FINISHED, 0),
    ],
)
def test_why_a_program_ended_by_itself(program, reason, exit):
    outcome = run(program)
    assert (outcome.reason, outcome.exit) == (reason, exit)


def test_output_is_read_to_the_end_and_cut_at_the_limit():
    whole = run("print('x' * 200_000)", limits=Limits(output=200_001))
    assert (whole.reason, len(whole.stdout)) == (Reason.FINISHED, 200_001)
    more = run("print('x' * 200_000)", limits=Limits(output=200_000))
    assert (more.reason, len(more.stdout)) == (Reason.OUTPUT, 200_000)


def test_the_peak_is_that_of_all_processes_together():
    alone = run("import time; kept = b'1' * 2**25; time.sleep(0.3)").peak_memory
    four = run("import os, time; os.fork(); os.fork(); kept = b'1' * 2**25; time.sleep(0.3)").peak_memory
    assert 2**25 < alone < 2**26
    assert four > 3 * 2**25
