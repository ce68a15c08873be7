"""The process between the toolkit and a confined program: it enters namespaces, starts the program and reports its end.

It runs in a bare interpreter of its own, so that nothing of the toolkit's memory, threads or files is near the program. On
standard input it gets a request, on standard output it answers; :mod:`keyekit.sandbox.execution` is the other side. Three
processes come of it: the launcher itself, the first process of the new namespaces, which watches, and the program.
"""

from __future__ import annotations

import binascii
import json
import os
import resource
import signal
import stat
import struct

from keyekit.sandbox import kernel
from keyekit.sandbox.supervision import supervise
from keyekit.sandbox.system_calls import filter_program
from keyekit.sandbox.view import PACKAGES, TEMPORARY, enter_view

__all__ = ["MAIN", "USER", "launch"]

USER = 1000
"""Number of the program's user within its namespace."""

MAIN = "main.py"
"""Name of the program's file."""

_SPARE_ADDRESSES = 256 * 2**20
"""Addresses beyond the memory limit: libraries reserve more than they touch, and what is touched is watched."""

_SPARE_PROCESSES = 8
"""Processes beyond the limit: an excess is to be seen, and counted, before the kernel refuses more."""

_OPEN_FILES = 64


def launch() -> None:
    """Serve one request."""
    kernel.die_with_parent()
    request = json.loads(_receive(struct.unpack("=Q", _receive(8))[0]))
    try:
        kernel.unshare(sum(kernel.NEW_NAMESPACES.values()))
    except OSError as error:
        _report({"refused": str(error)})
        return
    kernel.die_with_parent()  # other rights may have undone it
    os.write(1, b"1")  # now the other side says who the users of the new namespace are
    _receive(1)
    kernel.forbid_dumps()
    watcher = os.fork()
    if not watcher:
        _watch(request)
        os._exit(0)
    os.waitpid(watcher, 0)


def _watch(request: dict) -> None:
    """Prepare the namespaces as their first process, run the program and report."""
    kernel.die_with_parent()
    kernel.forbid_dumps()
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # the first process is deaf to what it does not handle, whoever sends it
    try:
        if os.getuid() == 0:
            os.setgroups([])
        enter_view(request["python"], request["prefix"], request["packages"], request["limits"]["disk"], USER)
        program, output, errors = _start(request)
    except OSError as error:
        _report({"refused": str(error)})
        return
    outcome, said, complained = supervise(program, output, errors, request["limits"])
    files = {name: content for name in request["collect"] if (content := _collected(name)) is not None}
    outcome["sizes"] = {"stdout": len(said), "stderr": len(complained)}
    outcome["files"] = {name: len(content) for name, content in files.items()}
    _report(outcome, said, complained, *files.values())


def _start(request: dict) -> tuple[int, int, int]:
    """Start the program; returns its process and where its two streams are read.

    Raises:
        OSError: If it could not be confined: it was not executed then.
    """
    for name, content in request["files"].items():
        _write(f"{TEMPORARY}/{name}", binascii.a2b_base64(content))
    _write(f"{TEMPORARY}/.input", binascii.a2b_base64(request["input"]))
    standard_input = os.open(f"{TEMPORARY}/.input", os.O_RDONLY)
    os.unlink(f"{TEMPORARY}/.input")
    (output, say), (errors, complain), (failure, tell) = os.pipe(), os.pipe(), os.pipe()
    program = os.fork()
    if not program:
        try:
            for number, descriptor in enumerate((standard_input, say, complain, tell)):
                os.dup2(descriptor, number, inheritable=number < 3)
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))
            _become_program(request)
        except BaseException as error:
            os.write(3, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    for descriptor in (standard_input, say, complain, tell):
        os.close(descriptor)
    problem = os.read(failure, 4096)
    os.close(failure)
    if problem:
        raise OSError(problem.decode(errors="replace"))
    return program, output, errors


def _become_program(request: dict) -> None:
    """Give up all rights and execute the interpreter."""
    os.setsid()
    os.chdir(TEMPORARY)
    kernel.bound_capabilities()
    _limit(request["limits"])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    kernel.drop_capabilities()
    kernel.forbid_new_privileges()
    kernel.load_filter(filter_program())
    environment = {
        "HOME": TEMPORARY,
        "TMPDIR": TEMPORARY,
        "LANG": "C.UTF-8",
        "PYTHONPATH": PACKAGES,
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",  # each further one reserves 128 MiB of addresses
    }
    os.execve(request["python"], [request["python"], "-s", "-B", MAIN], environment)


def _limit(limits: dict[str, float]) -> None:
    addresses = int(limits["memory"]) + _SPARE_ADDRESSES
    seconds = int(limits["cpu_seconds"]) + 1
    processes = int(limits["processes"]) + _SPARE_PROCESSES
    for kind, soft, hard in (
        (resource.RLIMIT_AS, addresses, addresses),
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_FSIZE, int(limits["disk"]), int(limits["disk"])),
        (resource.RLIMIT_NPROC, processes, processes),
        (resource.RLIMIT_NOFILE, _OPEN_FILES, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
    ):
        resource.setrlimit(kind, (soft, hard))


def _write(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.chown(path, USER, USER)


def _collected(name: str) -> bytes | None:
    """Content of a file that the program left; ``None`` if it is none. A link is none, wherever it leads."""
    try:
        descriptor = os.open(f"{TEMPORARY}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def _receive(size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        chunk = os.read(0, min(size - len(received), 2**20))
        if not chunk:
            os._exit(1)  # the other side is gone
        received += chunk
    return bytes(received)


def _report(outcome: dict, *contents: bytes) -> None:
    head = json.dumps(outcome).encode()
    message = memoryview(b"".join((b"2", struct.pack("=Q", len(head)), head, *contents)))
    while message:
        message = message[os.write(1, message) :]
