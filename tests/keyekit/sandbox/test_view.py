from __future__ import annotations

import json

import pytest

from keyekit.sandbox.execution import available, run

pytestmark = pytest.mark.skipif(not available(), reason=f"no sandbox here: {available().why_not}")

LOOK = """
import json, os
mounts = {}
for line in open("/proc/self/mountinfo"):
    fields = line.split()
    mounts[fields[4]] = fields[5].split(",")
writable = sorted(path for path in ["/", *mounts] if os.access(path, os.W_OK) and os.path.isdir(path))
import numpy, sys
print(json.dumps({"mounts": mounts, "root": sorted(os.listdir("/")), "writable": writable, "dev": sorted(os.listdir("/dev")),
                  "numpy": numpy.__file__, "installed": [p for p in sys.path if p.endswith("-packages") and os.listdir(p)]}))
"""


@pytest.fixture(scope="module")
def seen() -> dict:
    outcome = run(LOOK, packages=["numpy"])
    assert outcome.finished, outcome
    return json.loads(outcome.stdout)


def test_every_mount_but_the_temporary_folder_is_read_only(seen):
    devices = {"/dev/null", "/dev/zero", "/dev/urandom"}
    assert devices <= set(seen["mounts"])
    for place, options in seen["mounts"].items():
        assert "nosuid" in options, place
        assert ("ro" in options) == (place != "/tmp"), place
        assert ("nodev" in options) == (place not in devices), place
    assert "noexec" in seen["mounts"]["/tmp"]
    assert "noexec" in seen["mounts"]["/proc"]
    assert seen["writable"] == ["/tmp"]


def test_nothing_else_is_there(seen):
    assert set(seen["root"]) <= {"dev", "etc", "lib", "lib64", "packages", "proc", "root", "home", "opt", "tmp", "usr"}
    assert seen["dev"] == ["null", "urandom", "zero"]
    assert seen["numpy"].startswith("/packages/numpy/")
    assert seen["installed"] == []  # what the interpreter's own installation holds is hidden
