"""Running a program that nobody trusts."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from keyekit.sandbox.launcher import MAIN, USER
from keyekit.sandbox.limits import Limits
from keyekit.sandbox.outcome import Outcome, Reason
from keyekit.sandbox.system_calls import MACHINES

__all__ = ["Availability", "SandboxUnavailable", "available", "run"]

_NOBODY = 65534
_NOTHING: Mapping[str, bytes] = MappingProxyType({})
_GRACE = 30.0
"""Seconds beyond a program's own after which its watcher is taken for dead."""

_START = "import sys; sys.path.append({folder!r}); from keyekit.sandbox.launcher import launch; launch()"


class SandboxUnavailable(RuntimeError):
    """A program cannot be confined on this machine, and was not run."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether programs can be confined here; true if so.

    Args:
        why_not: What is in the way; empty if nothing is.
    """

    why_not: str = ""

    def __bool__(self) -> bool:
        return not self.why_not


@lru_cache(maxsize=1)
def available() -> Availability:
    """Find out, once, whether this machine can confine programs: one is run, and has to find itself confined."""
    program = (
        f"import os, sys; sys.exit(os.getuid() != {USER} or os.path.exists('/etc/passwd') or os.path.exists('/proc/1'))"
    )
    try:
        outcome = run(program)
    except SandboxUnavailable as error:
        return Availability(str(error))
    return Availability() if outcome.finished else Availability(f"a first program was not confined: {outcome}")


def run(
    program: str,
    files: Mapping[str, bytes] = _NOTHING,
    limits: Limits | None = None,
    *,
    standard_input: bytes = b"",
    packages: Iterable[str] = (),
    collect: Iterable[str] = (),
) -> Outcome:
    """Run a Python program in namespaces of its own and wait for its end; no process of it lives afterwards.

    It sees the interpreter with its standard library, the system's libraries, the packages that are named, its own
    processes, and one temporary folder, which it can write to and begins in. It has no network, no rights, nothing of this
    process's environment, and a user of its own. See ``docs/concepts/sandbox.md`` for what this does not protect from.

    Args:
        program: Source text.
        files: Contents of files that lie in its folder, by plain names.
        limits: What it may use.
        standard_input: What it reads from standard input.
        packages: Importable packages of this interpreter that it may use, with their bundled libraries, such as ``numpy``.
        collect: Names of files in its folder to bring back. Links and folders are left behind.

    Raises:
        SandboxUnavailable: If it cannot be confined; it is never run unconfined.
        ValueError: If a file's name is not plain, or a package cannot be found.
    """
    limits = limits or Limits()
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    request = {
        "python": python,
        "prefix": os.path.realpath(sys.base_prefix),
        "packages": _packages(packages),
        "files": {_plain(name): _text(content) for name, content in {**files, MAIN: program.encode()}.items()},
        "input": _text(standard_input),
        "collect": [_plain(name) for name in collect],
        "limits": asdict(limits),
    }
    if os.uname().machine not in MACHINES:
        raise SandboxUnavailable(
            f"system calls of {os.uname().machine} cannot be filtered: only of {', '.join(MACHINES)}"
        )
    return _outcome(_converse(python, json.dumps(request).encode(), limits.seconds + _GRACE))


def _converse(python: str, request: bytes, seconds: float) -> bytes:
    """Have a launcher serve a request, and return its report."""
    start = _START.format(folder=str(Path(__file__).resolve().parents[2]))
    pipe = subprocess.PIPE
    try:
        launcher = subprocess.Popen(
            [python, "-I", "-S", "-B", "-c", start],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env={},
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxUnavailable(f"the launcher cannot be started: {error}") from error
    with launcher:
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it is dead: its report, or its lack, says why
                launcher.stdin.write(struct.pack("=Q", len(request)) + request)
                launcher.stdin.flush()
            answer = os.read(launcher.stdout.fileno(), 1)  # no more: what follows is read below
            if answer == b"1":
                _introduce_users(launcher.pid)
                answer = b""
                report, complaint = launcher.communicate(b"1", timeout=seconds)
            else:
                report, complaint = launcher.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise SandboxUnavailable(f"no report after {seconds:g} seconds: the program was killed") from error
        finally:
            launcher.kill()  # with it goes all it started
    report = answer + report
    if not report.startswith(b"2"):
        raise SandboxUnavailable(
            f"the launcher died: {complaint.decode(errors='replace').strip() or 'it did not say why'}"
        )
    return report[1:]


def _introduce_users(launcher: int) -> None:
    """Say who the users of the launcher's namespace are outside of it: nobody, where this process may choose.

    Raises:
        SandboxUnavailable: If the kernel refuses.
    """
    process = Path(f"/proc/{launcher}")
    user, group = os.geteuid(), os.getegid()
    try:
        if user == 0:
            users = groups = f"0 0 1\n{USER} {_NOBODY} 1\n"
        else:
            (process / "setgroups").write_text("deny")
            users, groups = f"{USER} {user} 1\n", f"{USER} {group} 1\n"
        (process / "uid_map").write_text(users)
        (process / "gid_map").write_text(groups)
    except OSError as error:
        raise SandboxUnavailable(f"a user namespace cannot be given users: {error}") from error


def _outcome(report: bytes) -> Outcome:
    (size,) = struct.unpack_from("=Q", report)
    head: dict[str, Any] = json.loads(report[8 : 8 + size])
    if "refused" in head:
        raise SandboxUnavailable(f"the kernel does not let a program be confined: {head['refused']}")
    place, contents = 8 + size, {}
    sizes = {**head["sizes"], **{f"file {name}": size for name, size in head["files"].items()}}
    for name, size in sizes.items():
        contents[name] = report[place : place + size]
        place += size
    return Outcome(
        reason=Reason(head["reason"]),
        exit=head["exit"],
        stdout=contents["stdout"],
        stderr=contents["stderr"],
        seconds=head["seconds"],
        peak_memory=head["peak_memory"],
        files={name: contents[f"file {name}"] for name in head["files"]},
    )


_DISTRIBUTIONS = {"PIL": "pillow"}
"""Distributions that are not called like their package: their shared libraries lie in a folder of their name."""


def _packages(names: Iterable[str]) -> dict[str, str]:
    """Where packages lie, and the folders in which their wheels bring shared libraries, by the name they are known by."""
    found = {}
    for name in names:
        specification = importlib.util.find_spec(name)
        if specification is None or specification.origin is None:
            raise ValueError(f"packages: {name!r} is not installed here")
        package = specification.submodule_search_locations is not None
        path = Path(specification.origin).resolve()
        path = path.parent if package else path
        found[path.name] = str(path)
        libraries = path.parent / f"{_DISTRIBUTIONS.get(name, name)}.libs"
        if libraries.is_dir():
            found[libraries.name] = str(libraries)
    return found


def _plain(name: str) -> str:
    if not name or "/" in name or "\0" in name or name.startswith("."):
        raise ValueError(f"{name!r} is no plain name of a file: no folders, no leading dot")
    return name


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
