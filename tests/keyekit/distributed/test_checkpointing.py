"""Sharded checkpoints: two ranks and one read each other's, nothing half written is taken, training goes on meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from keyekit.distributed import checkpointing
from keyekit.distributed.checkpointing import PROGRESS, ShardedCheckpoints
from keyekit.distributed.whole import COMPLETE, newest_whole, problem_of
from keyekit.models.weights import CheckpointError
from keyekit.testing.distributed import run_distributed

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

PLAIN = {"global_step": 3, "loops": {"position": 7}, "random": torch.arange(5, dtype=torch.uint8)}


class Network(nn.Module):
    """Odd sizes, a frozen part, a vector of one number, a buffer."""

    def __init__(self, seed: int, width: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(3, width)
        self.second = nn.Linear(width, 1)
        self.scale = nn.Parameter(torch.rand(1))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("seen", torch.tensor(float(seed)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(inputs).tanh()) * self.scale


def made(seed: int, sharded: bool, width: int = 5) -> tuple[Network, torch.optim.Optimizer]:
    network = Network(seed, width)
    if sharded:
        fully_shard(network.first)
        fully_shard(network)
    groups = [{"params": list(network.first.parameters()), "lr": 0.1}, {"params": list(network.second.parameters())}]
    return network, torch.optim.AdamW([*groups, {"params": [network.scale]}], lr=0.01)


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """The same data on every rank, so that any number of ranks takes the same steps."""
    losses = []
    for step in range(steps):
        inputs = torch.linspace(-1, 1, 12).view(4, 3) * (1 + step)
        loss = network(inputs).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def content(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    checkpoints = ShardedCheckpoints()
    states = [checkpoints.optimizer_state(network, optimizer)]
    return {**PLAIN, "state_dict": checkpoints.network_state(network), "optimizer_states": states}


def tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: getattr(t, "full_tensor", lambda t=t: t)().clone() for name, t in network.state_dict().items()}


def _two_ranks(rank: int, world_size: int, folder: Path) -> dict:
    checkpoints = ShardedCheckpoints()
    other, its_optimizer = made(seed=9, sharded=True)
    plain = checkpoints.load(folder / "alone.ckpt", other, [its_optimizer])
    found = {"from one": tensors(other), "plain": plain, "on from one": train(other, its_optimizer, 2)}

    network, optimizer = made(seed=1, sharded=True)
    train(network, optimizer, 3)
    checkpoints.save(content(network, optimizer), folder / "first.ckpt")
    saved = tensors(network)  # while the thread writes, training goes on
    found["on"] = train(network, optimizer, 2)
    checkpoints.save(content(network, optimizer), folder / "second.ckpt")  # waits for the first
    dist.barrier()
    found["first is whole"] = problem_of(folder / "first.ckpt")
    checkpoints.wait()
    dist.barrier()
    found["second is whole"] = problem_of(folder / "second.ckpt")
    found["saved"] = saved

    (folder / "in the way").write_text("a file where a folder should be")
    try:
        checkpoints.save(content(network, optimizer), folder / "in the way" / "third.ckpt")
    except RuntimeError as error:
        found["error"] = str(error)
    return found


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> tuple[Path, list[dict], dict]:
    folder = tmp_path_factory.mktemp("checkpoints")
    network, optimizer = made(seed=4, sharded=False)
    train(network, optimizer, 3)
    alone = ShardedCheckpoints(asynchronous=False)
    alone.save(content(network, optimizer), folder / "alone.ckpt")
    expected = {"saved": tensors(network), "on": train(network, optimizer, 2)}
    return folder, run_distributed(_two_ranks, 2, folder), expected


def test_two_ranks_go_on_from_the_checkpoint_of_one(outcome) -> None:
    _, ranks, expected = outcome
    for rank in ranks:
        assert rank["from one"].keys() == expected["saved"].keys()
        assert all(torch.equal(value, expected["saved"][name]) for name, value in rank["from one"].items())
        assert rank["on from one"] == pytest.approx(expected["on"], rel=1e-6)
        assert rank["plain"]["loops"] == {"position": 7}
        assert torch.equal(rank["plain"]["random"], PLAIN["random"])


def test_one_goes_on_from_the_checkpoint_of_two_ranks_that_trained_on_while_it_was_written(outcome) -> None:
    folder, ranks, _ = outcome
    network, optimizer = made(seed=2, sharded=False)
    plain = ShardedCheckpoints().load(folder / "first.ckpt", network, [optimizer])
    assert all(torch.equal(value, ranks[0]["saved"][name]) for name, value in tensors(network).items())
    assert train(network, optimizer, 2) == pytest.approx(ranks[0]["on"], rel=1e-6)
    assert plain["global_step"] == 3
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_save_waits_for_the_one_before_and_wait_for_the_last(outcome) -> None:
    folder, ranks, _ = outcome
    assert [rank["first is whole"] for rank in ranks] == [None, None]
    assert [rank["second is whole"] for rank in ranks] == [None, None]
    assert not list(folder.glob("*.partial"))


def test_a_problem_of_one_rank_is_an_error_on_all(outcome) -> None:
    _, ranks, _ = outcome
    assert all("rank 0" in rank["error"] and "third.ckpt" in rank["error"] for rank in ranks)


def test_what_a_kill_leaves_is_not_taken(tmp_path, monkeypatch, caplog) -> None:
    network, optimizer = made(seed=1, sharded=False)
    checkpoints = ShardedCheckpoints()
    checkpoints.save(content(network, optimizer), tmp_path / "step=1.ckpt")
    checkpoints.wait()

    def killed(*arguments, **facts) -> None:
        raise OSError(5, "killed")

    monkeypatch.setattr(checkpointing, "mark_complete", killed)
    checkpoints.save(content(network, optimizer), tmp_path / "step=2.ckpt")
    with pytest.raises(RuntimeError, match=r"step=2\.ckpt could not be written: .*killed"):
        checkpoints.wait()
    assert not (tmp_path / "step=2.ckpt").exists()
    assert newest_whole(tmp_path) == tmp_path / "step=1.ckpt"


def test_weights_load_without_optimizers_and_the_former_folder_is_replaced(tmp_path) -> None:
    checkpoints = ShardedCheckpoints(asynchronous=False)
    for seed in (1, 2):
        network, optimizer = made(seed, sharded=False)
        checkpoints.save(content(network, optimizer), tmp_path / "last.ckpt")
    fresh, _ = made(seed=3, sharded=False)
    checkpoints.load(tmp_path / "last.ckpt", fresh)
    assert all(torch.equal(value, tensors(network)[name]) for name, value in tensors(fresh).items())
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("name", [PROGRESS, COMPLETE, "__0_0.distcp", ".metadata"])
def test_a_folder_that_lacks_a_file_is_refused(tmp_path, name) -> None:
    network, optimizer = made(seed=1, sharded=False)
    checkpoints = ShardedCheckpoints(asynchronous=False)
    checkpoints.save(content(network, optimizer), tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt" / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        checkpoints.load(tmp_path / "a.ckpt", network)


def test_another_network_is_refused_by_the_names_that_differ(tmp_path) -> None:
    network, optimizer = made(seed=1, sharded=False)
    checkpoints = ShardedCheckpoints(asynchronous=False)
    checkpoints.save(content(network, optimizer), tmp_path / "a.ckpt")
    wider, its_optimizer = made(seed=1, sharded=False, width=6)
    before = tensors(wider)
    with pytest.raises(CheckpointError, match=r"first\.weight is \[5, 3\] there and \[6, 3\] here"):
        checkpoints.load(tmp_path / "a.ckpt", wider, [its_optimizer])
    assert all(torch.equal(value, before[name]) for name, value in tensors(wider).items())
    network.more = nn.Parameter(torch.ones(1))
    with pytest.raises(CheckpointError, match="more is not in it"):
        checkpoints.load(tmp_path / "a.ckpt", network)
    with pytest.raises(FileNotFoundError):
        checkpoints.load(tmp_path / "b.ckpt", network)
