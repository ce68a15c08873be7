"""Seeds, the device, the two rows of a group, and how a row is timed."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every row starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def dtype(device: torch.device) -> torch.dtype:
    """What models are timed in; they are checked equal in float32 before."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@pytest.fixture(params=["keyekit", "peer"])
def row(request: pytest.FixtureRequest) -> str:
    """Which side of the group is timed."""
    return request.param


@pytest.fixture
def timed(benchmark, row: str, device: torch.device) -> Callable[..., None]:
    """Time one row of the group ``work``: ``timed(work, calls[row], peer=name, note=...)``.

    One call comes before the clock, so that plans, kernels and files are there. On a GPU a call ends when its kernels do.
    """

    def time(work: str, call: Callable[[], Any], *, peer: str, note: str = "", rounds: int | None = None) -> None:
        def finished() -> None:
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()

        benchmark.group = f"{work} | peer: {peer}"
        benchmark.extra_info.update({"work": work, "peer": peer, "row": row, "note": note})
        finished()
        if rounds is None:
            benchmark(finished)
        else:
            benchmark.pedantic(finished, rounds=rounds)

    return time


@pytest.fixture(scope="session")
def training_step() -> Callable[[torch.nn.Module, Callable[[], torch.Tensor]], None]:
    """Forward and backward with fresh gradients of every parameter."""

    def step(model: torch.nn.Module, forward: Callable[[], torch.Tensor]) -> None:
        model.zero_grad(set_to_none=True)
        forward().square().mean().backward()

    return step


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What compare.py prints above its table."""
    machine_info["processor"] = _processor()
    machine_info["accelerator"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    machine_info["threads"] = torch.get_num_threads()
    machine_info["packages"] = {name: version(name) for name in ("torch", "transformers", "av", "numpy")}
    machine_info["command"] = shlex.join(["python", "-m", "pytest", *map(str, config.invocation_params.args)])


def _processor() -> str:
    """The model's name; ``platform.processor()`` is empty or a bare architecture on Linux."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
