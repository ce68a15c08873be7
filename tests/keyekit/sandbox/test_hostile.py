"""Programs that mean harm: each is contained, counted by reason, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from keyekit.sandbox.execution import available, run
from keyekit.sandbox.limits import Limits
from keyekit.sandbox.outcome import Reason

pytestmark = pytest.mark.skipif(not available(), reason=f"no sandbox here: {available().why_not}")

SMALL = Limits(seconds=20, cpu_seconds=10, memory=96 * 2**20, disk=2**20, processes=12, output=2**16)
SECRET = "the-parent-knows-this"

FORBIDDEN = {
    "ptrace": "libc.ptrace(16, 1, 0, 0)",
    "unshare again": "libc.unshare(0x10000000)",
    "a new namespace by clone": "libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)",
    "mount": "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)",
    "chroot": "libc.chroot(b'/tmp')",
    "join a namespace": "libc.setns(0, 0)",
    "read another's memory": "libc.syscall(310, 1, 0, 0, 0, 0, 0)",
    "keys of the kernel": "libc.syscall(250, 0, -3, 0, 0, 0)",
    "programs in the kernel": "libc.syscall(321, 0, 0, 0)",
    "numbers of the x32 table": "libc.syscall(0x40000000 + 39)",
    "a module of the kernel": "libc.syscall(175, 0, 0, b'')",
}

EXCESSES = {
    "fork bomb": (Reason.PROCESSES, "import os\nwhile True:\n try: os.fork()\n except OSError: pass"),
    "thread bomb": (
        Reason.PROCESSES,
        """
        import threading, time
        while True:
            try: threading.Thread(target=time.sleep, args=(9,)).start()
            except RuntimeError: pass
        """,
    ),
    "memory bomb": (Reason.MEMORY, "kept = []\nwhile True: kept.append(bytes(bytearray(2**20)))"),
    "one huge piece of memory": (Reason.MEMORY, "bytearray(2**34)"),
    "memory of many processes": (
        Reason.MEMORY,
        "import os, time\nos.fork(); os.fork()\nkept = bytearray(b'1' * (40 * 2**20)); time.sleep(9)",
    ),
    "shared memory": (
        Reason.MEMORY,
        "import mmap, time\nkept = [mmap.mmap(-1, 2**26) for _ in '123']\nfor m in kept: m.write(b'1' * 2**26)\ntime.sleep(9)",
    ),
    "endless output": (Reason.OUTPUT, "while True: print('x' * 1000)"),
    "endless complaints": (Reason.OUTPUT, "import sys\nwhile True: sys.stderr.write('x' * 1000)"),
    "endless loop": (Reason.CPU, "while True: pass"),
    "endless loops of many": (Reason.CPU, "import os\nos.fork(); os.fork()\nwhile True: pass"),
    "sleep": (Reason.TIME, "import time; time.sleep(60)"),
    "signals ignored": (
        Reason.TIME,
        """
        import signal, time
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}: signal.signal(number, signal.SIG_IGN)
        while True: time.sleep(1)
        """,
    ),
    "stopped by itself": (Reason.TIME, "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"),
    "a full folder": (Reason.DISK, "with open('/tmp/big', 'wb') as file:\n while True: file.write(b'x' * 4096)"),
    "many files": (Reason.DISK, "for number in range(10**6): open(f'/tmp/{number}', 'w').close()"),
    "crash": (Reason.CRASHED, "import os; os.abort()"),
}

REFUSED = {
    "write to /": "open('/mark', 'w')",
    "write to home": f"import os; os.makedirs({str(Path.home() / 'made')!r}); open({str(Path.home() / 'made/mark')!r}, 'w')",
    "write to the interpreter": "import os; open(os.__file__, 'a')",
    "write to the libraries": "open('/usr/lib/mark', 'w')",
    "read the passwords": "open('/etc/passwd')",
    "raise own limits": "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (10**4, 10**4))",
    "change the watcher's limits": "import resource; resource.prlimit(1, resource.RLIMIT_CPU, (1, 1))",
    "become root": "import os; os.setuid(0)",
    "read the watcher's environment": "open('/proc/1/environ')",
    "the watcher's root": "import os; os.listdir('/proc/1/root/')",
    "settings of the kernel": "open('/proc/sys/kernel/core_pattern', 'w')",
    "write to own memory file": "open('/proc/self/oom_score_adj', 'w').write('1000')",
    "reset the machine": "open('/proc/sysrq-trigger', 'w')",
    "make a device": "import os, stat; os.mknod('/tmp/disk', stat.S_IFBLK | 0o600, os.makedev(254, 0))",
    "memory without a limit": "import os; os.memfd_create('hidden')",
    "run what it wrote": """
        import os
        open('/tmp/tool', 'w').write('#!/bin/true'); os.chmod('/tmp/tool', 0o755); os.execv('/tmp/tool', ['tool'])
    """,
    "a socket of the virtual machine": "import socket; socket.socket(40, socket.SOCK_STREAM)",
    "a link out of the folder": """
        import os
        os.symlink('/etc/passwd', '/tmp/link'); os.symlink('../../../../etc', '/tmp/up')
        assert not os.path.exists('/tmp/link') and os.listdir('/tmp/up') == ['ld.so.cache']
        open('/tmp/up/passwd')
    """,
}


@pytest.fixture(scope="module", autouse=True)
def nobody_is_left():
    yield
    left = [line for line in processes() if "keyekit.sandbox" in line or "main.py" in line]
    assert not left, "processes outlive their run"


def processes() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append((path / "cmdline").read_text())
        except (OSError, UnicodeDecodeError):
            continue
    return found


def attempt(program: str, limits: Limits = SMALL, **arguments):
    return run(textwrap.dedent(program), limits=limits, **arguments)


def limits_for(reason: Reason) -> Limits:
    return replace(SMALL, **{Reason.TIME: {"seconds": 1.0}, Reason.CPU: {"cpu_seconds": 0.5}}.get(reason, {}))


@pytest.fixture(scope="module")
def outcomes():
    """Every program of the tables, a few at a time: most of them wait."""
    forbidden = {name: f"import ctypes\nlibc = ctypes.CDLL(None)\n{act}" for name, act in FORBIDDEN.items()}
    jobs = {name: (program, SMALL) for name, program in (forbidden | REFUSED).items()}
    jobs |= {name: (program, limits_for(reason)) for name, (reason, program) in EXCESSES.items()}
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(jobs, pool.map(lambda job: attempt(*job), jobs.values()), strict=True))


@pytest.mark.parametrize("name", EXCESSES)
def test_an_excess_ends_the_program_and_says_which(outcomes, name):
    reason, _ = EXCESSES[name]
    outcome = outcomes[name]
    assert outcome.reason is reason, outcome
    assert len(outcome.stdout) <= SMALL.output
    assert len(outcome.stderr) <= SMALL.output


@pytest.mark.parametrize("name", FORBIDDEN)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
def test_an_attack_on_the_kernel_is_forbidden(outcomes, name):
    outcome = outcomes[name]
    assert outcome.reason is Reason.FORBIDDEN, outcome
    assert outcome.exit == -signal.SIGSYS


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_its_own_is_refused(outcomes, name):
    outcome = outcomes[name]
    assert outcome.reason is Reason.FAILED, outcome
    refusals = ("PermissionError", "FileNotFoundError", "OSError: [Errno 30]", "ValueError: not allowed to raise")
    assert outcome.complaint.startswith(refusals), outcome.complaint


def test_the_parents_secrets_are_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("KEYEKIT_SECRET", SECRET)
    (tmp_path / "secret.txt").write_text(SECRET)
    outcome = attempt(
        f"""
        import glob, os
        print(dict(os.environ))
        for path in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):
            try: print(open(path).read())
            except OSError as error: print(error)
        print(os.listdir('/proc'), os.path.exists({str(tmp_path)!r}), os.path.exists({str(Path.cwd())!r}))
        print([os.readlink(f'/proc/self/fd/{{name}}') for name in '012'], os.listdir('/proc/self/fd'))
        """
    )
    assert outcome.finished, outcome
    assert SECRET.encode() not in outcome.stdout
    assert b"False False" in outcome.stdout
    assert b"['0', '1', '2', '3']" in outcome.stdout  # 3 is the listing itself


def test_a_listener_of_this_machine_is_out_of_reach():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            pass  # it does listen
        server.accept()[0].close()
        server.settimeout(0.2)
        outcome = attempt(f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1)")
        assert outcome.complaint.startswith("PermissionError")
        with pytest.raises(TimeoutError):
            server.accept()


def test_an_abstract_socket_of_this_machine_is_out_of_reach():
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0keyekit-test")
        server.listen()
        outcome = attempt("import socket; socket.socket(socket.AF_UNIX).connect('\\0keyekit-test')")
    assert outcome.complaint.startswith("ConnectionRefusedError")


def test_nobody_outside_can_be_killed():
    outcome = attempt(
        f"""
        import os, signal
        for process in (1, {os.getpid()}, {os.getppid()}):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
                try: os.kill(process, number)
                except OSError as error: print(type(error).__name__)
        print('alive')
        os.kill(-1, signal.SIGKILL)
        """
    )
    assert b"alive" in outcome.stdout, outcome
    assert outcome.complaint.startswith("ProcessLookupError"), outcome  # nobody is left to be killed
    assert outcome.stdout.count(b"PermissionError") + outcome.stdout.count(b"ProcessLookupError") >= 6, outcome


def test_children_and_zombies_end_with_the_program():
    start = time.monotonic()
    outcome = attempt(
        """
        import os, signal, time
        for number in range(5):
            if not os.fork():
                if number == 0: os._exit(0)
                os.setsid(); signal.signal(signal.SIGTERM, signal.SIG_IGN)
                if os.fork(): os._exit(0)
                time.sleep(60)
        print('done', flush=True)
        os._exit(0)
        """
    )
    assert outcome.finished
    assert outcome.stdout == b"done\n"
    assert time.monotonic() - start < 15  # nobody waited for the grandchildren, which hold the pipes


def test_a_link_is_not_brought_back():
    names = ("link", "folder", "queue", "real", "missing")
    outcome = attempt(
        """
        import os
        os.symlink('/proc/self/environ', 'link'); os.mkdir('folder'); os.mkfifo('queue'); open('real', 'w').write('mine')
        """,
        collect=names,
    )
    assert outcome.files == {"real": b"mine"}


def test_the_program_ends_with_the_process_that_started_it(tmp_path):
    mark = "keyekit-orphan-" + str(os.getpid())
    script = tmp_path / "start.py"
    script.write_text(
        f"from keyekit.sandbox.execution import run\nprint('go', flush=True)\nrun('import time; time.sleep(50) # {mark}')"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env={"PYTHONPATH": "src"}) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        deadline = time.monotonic() + 20
        while not (family := descendants(parent.pid, depth=3)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert family, "launcher, watcher and program did not start"
        parent.kill()
    while any(Path(f"/proc/{number}").exists() for number in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [number for number in family if Path(f"/proc/{number}").exists()]


def descendants(process: int, depth: int) -> list[int]:
    """All descendants, once there are some of this depth."""
    level, found = [process], []
    for _ in range(depth):
        children = [Path(f"/proc/{number}/task/{number}/children") for number in level]
        level = [int(name) for path in children if path.exists() for name in path.read_text().split()]
        if not level:
            return []
        found += level
    return found


def test_runs_side_by_side_do_not_meet():
    found = {}

    def work(number: int) -> None:
        program = f"import os, time\nopen('mark', 'w').write('{number}'); time.sleep(0.2)\n"
        found[number] = attempt(program + "print(open('mark').read(), sorted(os.listdir('/tmp')))")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: outcome.stdout for number, outcome in found.items()} == {
        number: f"{number} ['main.py', 'mark']\n".encode() for number in range(4)
    }
