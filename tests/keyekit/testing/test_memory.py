"""Peak memory of a call: what is there before does not count, what is dropped inside does."""

import torch

from keyekit.testing.memory import extra_memory

MIB = 2**20


def test_what_is_freed_inside_the_call_counts() -> None:
    held = torch.ones(64 * MIB, dtype=torch.uint8)

    def call() -> None:
        first = torch.ones(96 * MIB, dtype=torch.uint8)
        del first
        torch.ones(32 * MIB, dtype=torch.uint8)

    assert 90 * MIB < extra_memory(call) < 140 * MIB
    assert extra_memory(lambda: held[0].item()) < 16 * MIB
