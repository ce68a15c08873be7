"""The system calls that Python does not wrap, as functions that raise ``OSError`` with the name of the call."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

__all__ = [
    "NEW_NAMESPACES",
    "bind",
    "bound_capabilities",
    "die_with_parent",
    "drop_capabilities",
    "enter_root",
    "forbid_dumps",
    "forbid_new_privileges",
    "load_filter",
    "make_mounts_private",
    "mount",
    "protect",
    "unshare",
]

_LIBC = ctypes.CDLL(None, use_errno=True)

NEW_NAMESPACES = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "network": 0x40000000,
}
"""``CLONE_NEW*`` of every namespace that a program gets for itself (``linux/sched.h``)."""

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x2, 0x4, 0x8
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442  # the same on every machine, as all calls since Linux 5.1
_CURRENT_FOLDER, _WHOLE_TREE = -100, 0x8000
_READ_ONLY, _NO_SETUID, _NO_DEVICES, _NO_PROGRAMS = 0x1, 0x2, 0x4, 0x8
_SET_DEATH_SIGNAL, _SET_DUMPABLE, _SET_SECCOMP, _DROP_BOUND, _NO_NEW_PRIVILEGES = 1, 4, 22, 24, 38
_CAPABILITIES_3 = 0x20080522
_LAST_CAPABILITY = 63


def _check(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def _control(option: int, value: int, call: str) -> None:
    _check(_LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0), call)


def unshare(flags: int) -> None:
    """Leave the namespaces of the process that started this one."""
    _check(_LIBC.unshare(ctypes.c_int(flags)), "unshare")


def mount(kind: str, target: str, options: str, programs: bool = False) -> None:
    """Mount a file system of the kernel's own, without devices or set-user-id programs.

    Args:
        kind: ``tmpfs`` or ``proc``.
        target: Where; it exists.
        options: Of the file system.
        programs: Whether files of it may be executed.
    """
    flags = _MS_NOSUID | _MS_NODEV | (0 if programs else _MS_NOEXEC)
    result = _LIBC.mount(kind.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(result, f"mount {kind} on {target}")


def make_mounts_private() -> None:
    """Let no mount of this namespace reach another."""
    flags = ctypes.c_ulong(_MS_REC | _MS_PRIVATE)
    _check(_LIBC.mount(None, b"/", None, flags, None), "make mounts private")


def bind(source: str, target: str) -> None:
    """Show a file or folder, with what is mounted below it, at another place, which exists."""
    flags = ctypes.c_ulong(_MS_BIND | _MS_REC)
    _check(_LIBC.mount(os.fsencode(source), os.fsencode(target), None, flags, None), f"bind {source}")


def protect(target: str, devices: bool = False, programs: bool = True) -> None:
    """Make a mount and all below it read-only and without set-user-id programs.

    Args:
        target: The mount.
        devices: Whether device files work.
        programs: Whether files may be executed.
    """
    attributes = _READ_ONLY | _NO_SETUID | (0 if devices else _NO_DEVICES) | (0 if programs else _NO_PROGRAMS)
    record = struct.pack("=QQQQ", attributes, 0, 0, 0)
    call = ctypes.c_long(_MOUNT_SETATTR), ctypes.c_int(_CURRENT_FOLDER), ctypes.c_char_p(os.fsencode(target))
    result = _LIBC.syscall(*call, ctypes.c_uint(_WHOLE_TREE), record, ctypes.c_size_t(len(record)))
    _check(result, f"mount_setattr {target} (Linux 5.12 or newer)")


def enter_root(folder: str) -> None:
    """Make a mount the root of everything and forget the old root."""
    os.chdir(folder)
    number = _PIVOT_ROOT[os.uname().machine]
    _check(_LIBC.syscall(ctypes.c_long(number), b".", b"."), "pivot_root")
    _check(_LIBC.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")


def die_with_parent() -> None:
    """Have the kernel kill this process as soon as the one that started it is gone."""
    _control(_SET_DEATH_SIGNAL, 9, "prctl PR_SET_PDEATHSIG")


def forbid_dumps() -> None:
    """Let nobody read this process's memory, nor its files in ``/proc``."""
    _control(_SET_DUMPABLE, 0, "prctl PR_SET_DUMPABLE")


def forbid_new_privileges() -> None:
    """Let no program that this process executes gain rights, whatever its file says."""
    _control(_NO_NEW_PRIVILEGES, 1, "prctl PR_SET_NO_NEW_PRIVS")


def bound_capabilities() -> None:
    """Let no capability be gained again once it is lost; to be called while this process may still set its bounds."""
    for capability in range(_LAST_CAPABILITY + 1):
        if _LIBC.prctl(_DROP_BOUND, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            if ctypes.get_errno() == errno.EINVAL:
                return  # the kernel knows no more
            _check(-1, "prctl PR_CAPBSET_DROP")


def drop_capabilities() -> None:
    """Give up every capability."""
    header, nothing = struct.pack("=Ii", _CAPABILITIES_3, 0), bytes(24)
    _check(_LIBC.capset(header, nothing), "capset")


def load_filter(program: bytes) -> None:
    """Filter all further system calls of this process and its children (seccomp).

    Args:
        program: Instructions of eight bytes each, from :mod:`keyekit.sandbox.system_calls`.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    record = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    _check(_LIBC.prctl(_SET_SECCOMP, ctypes.c_ulong(2), record, 0, 0), "prctl PR_SET_SECCOMP")
