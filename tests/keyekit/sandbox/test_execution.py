from __future__ import annotations

import os
import subprocess
import sys

import pytest

from keyekit.sandbox import execution
from keyekit.sandbox.execution import Availability, SandboxUnavailable, available, run
from keyekit.sandbox.outcome import Reason

confined = pytest.mark.skipif(not available(), reason=f"no sandbox here: {available().why_not}")


def test_where_namespaces_can_be_entered_programs_can_be_confined():
    """Without this, an error of the sandbox would skip its tests instead of failing them."""
    enter = "import ctypes, sys; sys.exit(-ctypes.CDLL(None).unshare(0x7E020000))"  # all seven namespaces
    if subprocess.run([sys.executable, "-c", enter], check=False).returncode == 0:
        assert available(), available().why_not


@confined
def test_a_program_gets_files_and_input_and_leaves_files():
    program = (
        "import sys\nprint(open('data.bin', 'rb').read(), sys.stdin.read())\nopen('out', 'wb').write(bytes(range(256)))"
    )
    outcome = run(program, {"data.bin": b"\0\xff"}, standard_input="häß".encode(), collect=["out", "none"])
    assert outcome.reason is Reason.FINISHED
    assert outcome.stdout.decode() == "b'\\x00\\xff' häß\n"
    assert outcome.files == {"out": bytes(range(256))}
    assert 0 < outcome.seconds < 10
    assert outcome.peak_memory > 2**20


@confined
def test_a_large_input_passes_and_files_can_be_imported():
    outcome = run(
        "import sys, helper; print(helper.double(len(sys.stdin.buffer.read())))",
        {"helper.py": b"double = lambda n: 2 * n"},
        standard_input=bytes(3_000_001),
    )
    assert outcome.stdout == b"6000002\n"


@confined
def test_packages_are_there_when_asked_for():
    assert run("import numpy").complaint.startswith("ModuleNotFoundError")
    outcome = run("import numpy; print(numpy.linalg.inv(numpy.eye(2) * 2)[0, 0])", packages=["numpy"])
    assert outcome.stdout == b"0.5\n", outcome


@confined
def test_exit_status_and_error_output():
    outcome = run("import sys; print('so', file=sys.stderr); sys.exit(3)")
    assert (outcome.reason, outcome.exit, outcome.stderr) == (Reason.FAILED, 3, b"so\n")
    assert run("a syntax error").complaint == "SyntaxError: invalid syntax"
    assert run("").finished


@pytest.mark.parametrize("name", ["", "../out", "a/b", ".hidden", "a\0b"])
def test_names_of_files_are_plain(name):
    with pytest.raises(ValueError, match="plain name"):
        run("", {name: b""})


def test_a_package_that_is_not_installed():
    with pytest.raises(ValueError, match="no_such_package"):
        run("", packages=["no_such_package"])


def test_another_machine_is_refused(monkeypatch):
    monkeypatch.setattr(execution, "MACHINES", {"pdp11": (0, 0)})
    with pytest.raises(SandboxUnavailable, match="pdp11"):
        run("print(1)")


def test_nothing_runs_where_users_cannot_be_introduced(monkeypatch, tmp_path):
    def refuse(launcher: int) -> None:
        raise SandboxUnavailable("a user namespace cannot be given users: no")

    monkeypatch.setattr(execution, "_introduce_users", refuse)
    available.cache_clear()
    try:
        assert not available()
        assert "cannot be given users" in available().why_not
    finally:
        available.cache_clear()
    assert Availability()


@confined
@pytest.mark.skipif(
    os.geteuid() != 0, reason="only root may enter a namespace and lower its limits before the launcher starts"
)
def test_a_kernel_without_namespaces_refuses(monkeypatch):
    """The launcher starts in a user namespace that may have no further ones below it."""
    start = subprocess.Popen
    forbid = "import ctypes; ctypes.CDLL(None).unshare(0x10000000); "
    forbid += "open('/proc/sys/user/max_user_namespaces', 'w').write('0'); "
    monkeypatch.setattr(
        execution.subprocess, "Popen", lambda command, **how: start([*command[:-1], forbid + command[-1]], **how)
    )
    with pytest.raises(SandboxUnavailable, match="unshare: No space left"):
        run("print(1)")
