from __future__ import annotations

import struct

import pytest

from keyekit.sandbox.system_calls import MACHINES, filter_program

ALLOWED, KILLED, REFUSED, MISSING = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
CALLS = {
    # name: (number on x86_64, on aarch64, first argument, verdict)
    "read": (0, 63, 0, ALLOWED),
    "fork": (56, 220, 0x01200011, ALLOWED),
    "a new user namespace": (56, 220, 0x10000011, KILLED),
    "clone3": (435, 435, 0, MISSING),
    "local socket": (41, 198, 1, ALLOWED),
    "internet socket": (41, 198, 2, REFUSED),
    "socket of the virtual machine": (41, 198, 40, REFUSED),
    "own limits": (302, 261, 0, ALLOWED),
    "limits of others": (302, 261, 1, REFUSED),
    "ptrace": (101, 117, 0, KILLED),
    "memfd_create": (319, 279, 0, REFUSED),
}


def verdict(program: bytes, machine: int, number: int, argument: int) -> int:
    """An interpreter of the filter, as linux/filter.h describes its instructions."""
    data = struct.pack("=IIQ6Q", number, machine, 0, argument, 0, 0, 0, 0, 0)
    code = [struct.unpack_from("=HBBI", program, place) for place in range(0, len(program), 8)]
    place = accumulator = 0
    while True:
        operation, yes, no, value = code[place]
        place += 1
        if operation == 0x06:
            return value
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}
            place += yes if holds[operation] else no


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("machine", MACHINES)
def test_verdicts(machine, name):
    *numbers, argument, expected = CALLS[name]
    column, audit = MACHINES[machine]
    assert verdict(filter_program(machine), audit, numbers[column], argument) == expected


def test_calls_of_another_machine_or_table_are_killed():
    assert verdict(filter_program("x86_64"), 0x40000003, 0, 0) == KILLED  # 32-bit programs have other numbers
    assert verdict(filter_program("x86_64"), 0xC000003E, 0x40000000, 0) == KILLED


def test_an_unknown_machine_is_refused():
    with pytest.raises(ValueError, match="riscv64"):
        filter_program("riscv64")
