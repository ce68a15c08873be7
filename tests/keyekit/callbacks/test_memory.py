from __future__ import annotations

import torch

from keyekit.callbacks.memory import MemoryUse, memory_gib


def test_memory_of_the_process_is_logged(make_trainer, model, data, scalars) -> None:
    make_trainer(MemoryUse()).fit(model, datamodule=data)
    values = scalars()["memory/process"]
    assert len(values) == 2  # steps 2 and 4
    assert all(0.1 < value < 50 for value in values)


def test_what_is_allocated_shows() -> None:
    before = memory_gib(torch.device("cpu"))["process"]
    held = torch.ones(2**25)  # 128 MiB
    after = memory_gib(torch.device("cpu"))["process"]
    assert 0.11 < after - before < 0.2
    assert held[0] == 1
