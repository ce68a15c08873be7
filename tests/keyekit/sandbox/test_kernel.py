from __future__ import annotations

import errno
import re

import pytest

from keyekit.sandbox import kernel
from keyekit.sandbox.execution import available, run


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: kernel.bind("/no/such/place", "/no/such/target"), "bind /no/such/place"),
        (lambda: kernel.mount("tmpfs", "/no/such/target", ""), "mount tmpfs on /no/such/target"),
        (lambda: kernel.protect("/no/such/target"), "mount_setattr /no/such/target"),
    ],
)
def test_refusals_name_the_call_and_its_object(act, said):
    with pytest.raises(OSError, match=re.escape(said)) as problem:
        act()
    assert problem.value.errno in (errno.ENOENT, errno.EPERM)


@pytest.mark.skipif(not available(), reason=f"no sandbox here: {available().why_not}")
def test_a_program_has_no_rights_and_cannot_gain_any():
    status = run("print(open('/proc/self/status').read())").stdout.decode()
    found = dict(re.findall(r"^(\w+):[ \t]*(.*)$", status, re.MULTILINE))
    assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (found["NoNewPrivs"], found["Seccomp"], found["Uid"]) == ("1", "2", "1000\t1000\t1000\t1000")
    assert found["Groups"].strip() in ("", "65534")  # nobody's, where the groups of the starter cannot be given up
