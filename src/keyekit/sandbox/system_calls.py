"""Which system calls a confined program may make, as a filter for the kernel (seccomp, classic BPF).

Namespaces hide what belongs to others; the filter closes the doors that lead out of a namespace, those behind which few
programs have business and many errors were found, and those whose memory no other limit counts.
"""

from __future__ import annotations

import os
import struct

__all__ = ["MACHINES", "filter_program"]

_KILLED = {
    # name: (number on x86_64, number on aarch64); None where the machine lacks it
    "ptrace": (101, 117),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "pidfd_getfd": (438, 438),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
}
"""Calls that only an attack makes: the process ends with ``SIGSYS``."""

_REFUSED = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "kcmp": (312, 272),
    "modify_ldt": (154, None),
    "vmsplice": (278, 75),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}
"""Calls that libraries try and can do without: they fail with ``EPERM``."""

_CLONE = (56, 220)
_CLONE3 = (435, 435)
_SOCKET = (41, 198)
_SOCKETPAIR = (53, 199)
_PRLIMIT = (302, 261)

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the tables above, and the name of the machine in the kernel's audit (``linux/audit.h``)."""

_NEW_NAMESPACES = 0x7E020080
"""All ``CLONE_NEW*`` flags together, ``CLONE_NEWTIME`` included."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16  # places in struct seccomp_data; low half of the argument
_X32 = 0x40000000  # numbers from here on are a second table of x86_64, which would go round this one
_UNIX = 1


def filter_program(machine: str | None = None) -> bytes:
    """The filter as instructions of eight bytes.

    Args:
        machine: Name as :func:`os.uname` tells it; this one by default.

    Raises:
        ValueError: If the numbers of its system calls are not known.
    """
    machine = os.uname().machine if machine is None else machine
    if machine not in MACHINES:
        raise ValueError(f"the system calls of {machine} are not known; those of {', '.join(MACHINES)} are")
    column, audit = MACHINES[machine]
    code = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for calls, verdict in ((_KILLED, _KILL), (_REFUSED, _ERROR | _EPERM)):
        for numbers in calls.values():
            if numbers[column] is not None:
                code += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, verdict)]
    code += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ERROR | _ENOSYS)]  # its flags lie in memory: use clone
    # Sockets within the namespace alone: those of virtual machines (vsock) would leave it. Limits of oneself alone.
    for call, argument in ((_SOCKET, _UNIX), (_SOCKETPAIR, _UNIX), (_PRLIMIT, 0)):
        code += [(_EQUAL, 0, 4, call[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_EQUAL, 1, 0, argument)]
        code += [(_RETURN, 0, 0, _ERROR | _EPERM), (_RETURN, 0, 0, _ALLOW)]
    code += [(_EQUAL, 0, 4, _CLONE[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_ANY_BIT, 0, 1, _NEW_NAMESPACES)]
    code += [(_RETURN, 0, 0, _KILL), (_RETURN, 0, 0, _ALLOW)]
    code += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
