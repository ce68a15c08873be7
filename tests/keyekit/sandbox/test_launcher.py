from __future__ import annotations

import json
import subprocess
import sys

import pytest

from keyekit.sandbox.execution import available, run
from keyekit.sandbox.limits import Limits

START = [sys.executable, "-c", "from keyekit.sandbox.launcher import launch; launch()"]


@pytest.mark.parametrize("request_", [b"", b"\x05\0\0\0\0\0\0\0{", b"\xff" * 4])
def test_half_a_request_ends_the_launcher(request_):
    done = subprocess.run(
        START, input=request_, capture_output=True, timeout=30, env={"PYTHONPATH": "src"}, check=False
    )
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.skipif(not available(), reason=f"no sandbox here: {available().why_not}")
def test_what_a_program_finds_around_itself():
    program = """
    import json, os, resource
    names = ("AS", "CPU", "FSIZE", "NPROC", "NOFILE", "CORE")
    limits = {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in names}
    print(json.dumps({"limits": limits, "pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0),
                      "home": os.environ["HOME"], "folder": os.getcwd(), "files": sorted(os.listdir())}))
    """
    limits = Limits(memory=100 * 2**20, cpu_seconds=2.5, disk=3 * 2**20, processes=5)
    outcome = run("\n".join(line[4:] for line in program.splitlines()), {"given": b""}, limits)
    found = json.loads(outcome.stdout)
    assert found["limits"] == {
        "AS": [356 * 2**20] * 2,
        "CPU": [3, 4],
        "FSIZE": [3 * 2**20] * 2,
        "NPROC": [13, 13],
        "NOFILE": [64, 64],
        "CORE": [0, 0],
    }
    assert found["pid"] == found["session"]
    assert found["parent"] == 1
    assert (found["home"], found["folder"]) == ("/tmp", "/tmp")
    assert found["files"] == ["given", "main.py"]
