"""A frozen reference in two processes is that of one, however the network is spread; and nothing else knows of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from keyekit.batch import Batch
from keyekit.data.loader import rank_and_world
from keyekit.distributed.part_plan import PartPlan
from keyekit.distributed.strategy import Sharded
from keyekit.models.weights import save_weights
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.objectives.policy.grpo import GRPO
from keyekit.objectives.preference.dpo import DPO
from keyekit.optim.schedules import WarmupStableDecay
from keyekit.rollout.experience import Experience, counted
from keyekit.tasks.language_modeling import LanguageModeling
from keyekit.tasks.policy import PolicyOptimization
from keyekit.tasks.preference import PreferenceOptimization
from keyekit.tasks.reference import FrozenReference
from keyekit.testing.distributed import run_distributed
from keyekit.testing.equalities import PACKS, Packs, distance
from keyekit.testing.tiny import tiny_vision_language_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
STEPS = 3
PARTS = {"feed_forward": partial(MixtureOfExperts, num_experts=4, active_experts=2, expert_dim=24)}
SPARSE = {**PARTS, "attention": partial(DSA, topk=6, num_indexer_heads=2, indexer_head_dim=16)}
KINDS = ("policy", "whole vocabulary", "preference")


def strategies() -> dict[str, Any]:
    """Ways to spread a network over two ranks; each serves one fit."""
    plans = {
        "vision": PartPlan(sharding="replicate"),
        "decoder": PartPlan(activation_checkpointing=True, reshard_after_forward=False),
    }
    return {
        "copies": "ddp",
        "shards": Sharded(),
        "shards without memory": Sharded(meta=True),
        "plans without memory": Sharded(meta=True, expert_parallel=2, balance_vision=True, **plans),
    }


WAYS = tuple(strategies())


class Experiences(Packs):
    """Packs as a policy learns from: answers that nearly the same policy drew, with advantages."""

    def batch(self, epoch: int, position: int) -> Experience:
        count = PACKS // rank_and_world(self.sharing)[1]
        first = position // count * count
        step = [self._experience(super(Experiences, self).batch(epoch, first + n)) for n in range(count)]
        return counted(step, "sequence")[position - first]

    def _experience(self, pack: Batch) -> Experience:
        random = torch.Generator().manual_seed(int(pack.tokens.sum()))
        size = pack.tokens.shape
        return Experience(
            **{entry.name: getattr(pack, entry.name) for entry in fields(Batch)},
            old_log_probs=0.1 * torch.randn(size, generator=random) - 4.2,
            advantages=torch.randn(size, generator=random),
            step_count=0.0,
        )


def a_network(meta: bool = False, **parts: Any) -> Any:
    torch.manual_seed(1)
    with torch.device("meta" if meta else "cpu"):
        return tiny_vision_language_model(**(parts or PARTS)).double()


def a_task(kind: str, weights: Path, network: Any, rate: float = 3e-3) -> Any:
    options = {"learning_rate": rate, "schedule": WarmupStableDecay(1, 0.0), "init_from": str(weights)}
    if kind == "policy":
        return PolicyOptimization(network, None, GRPO(kl_weight=2.0), **options)
    if kind == "whole vocabulary":
        return PolicyOptimization(network, None, GRPO(kl_weight=2.0, kl_form="full"), **options)
    return PreferenceOptimization(network, DPO(), **options)


class Watch(lightning.Callback):
    """Keeps the losses of steps and the divergences of packs; may save and stop."""

    def __init__(self, save: Path | None = None) -> None:
        self.losses = [0.0] * STEPS
        self.divergences: list[float] = []
        self.save = save

    def on_train_batch_start(self, trainer: Any, *arguments: Any) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *arguments: Any) -> None:
        self.losses[self.step] += outputs["loss"].item()
        self.divergences.append(trainer.callback_metrics.get("train/kl", torch.tensor(0.0)).item())
        if self.save is not None and trainer.global_step == 1:
            trainer.save_checkpoint(self.save)
            trainer.should_stop = True


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What is left of a fit."""

    losses: Sequence[float]
    tensors: dict[str, torch.Tensor]
    reference: dict[str, torch.Tensor]
    divergences: Sequence[float]
    faults: Sequence[str]


def a_trainer(world_size: int, strategy: Any, steps: int = STEPS, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=strategy,
        max_steps=steps,
        accumulate_grad_batches=PACKS // world_size,
        gradient_clip_val=0.5,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def fit(
    task: Any, world_size: int, strategy: Any, save: Path | None = None, resume: Path | None = None, steps: int = STEPS
) -> Fitted:
    watch = Watch(save)
    trainer = a_trainer(world_size, strategy, steps, callbacks=[watch])
    packs = Experiences() if isinstance(task, PolicyOptimization) else Packs()
    trainer.fit(task, packs, ckpt_path=resume and str(resume), weights_only=False)
    problems = faults(task, trainer)  # before anything gathers or gives back
    means = torch.tensor(watch.losses, dtype=torch.float64)
    if world_size > 1:
        dist.all_reduce(means)
    return Fitted(
        losses=(means / world_size).tolist(),
        tensors=whole(task.network),
        reference=whole(task._reference.network),
        divergences=watch.divergences,
        faults=problems,
    )


def whole(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    state = network.state_dict()
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).clone() for name, t in state.items()}


def faults(task: Any, trainer: Any) -> list[str]:
    """What of the reference is not as it has to be, right after a fit."""
    reference = task._reference.network
    mine = {id(parameter) for parameter in reference.parameters()}
    stepped = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    found = [name for name, parameter in reference.named_parameters() if parameter.requires_grad]
    found += [name for name, parameter in reference.named_parameters() if parameter.grad is not None]
    found += ["in the optimizer"] * bool(mine & stepped)
    found += ["in the task"] * bool(mine & {id(parameter) for parameter in task.parameters()})
    saved = trainer.strategy.lightning_module_state_dict()
    found += [name for name in saved if not name.startswith("network.")]
    found += ["saved twice"] * (len(saved) != len(task.network.state_dict()))
    for name, parameter in task.network.named_parameters():
        other = reference.get_parameter(name)
        if type(other) is not type(parameter):
            found.append(f"{name} is a {type(other).__name__}")
        elif isinstance(parameter, DTensor) and (other.placements, other.device_mesh, other.to_local().shape) != (
            parameter.placements,
            parameter.device_mesh,
            parameter.to_local().shape,
        ):
            found.append(f"{name} is placed as {other.placements}")
    return found


def tried(call: Callable[[], Any]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def in_two(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0")
    found: dict[str, Any] = {}
    for kind in KINDS:
        for name, strategy in strategies().items():
            task = a_task(kind, folder / "weights", a_network("without memory" in name))
            found[kind, name] = fit(task, world_size, strategy)
        cut = partial(a_task, kind, folder / "weights")
        fit(cut(a_network(meta=True)), world_size, Sharded(meta=True), save=folder / kind)
        found[kind, "resumed"] = fit(cut(a_network(meta=True)), world_size, Sharded(meta=True), resume=folder / kind)
    for name in ("shards", "shards without memory"):
        task = a_task("policy", folder / "weights", a_network("without memory" in name, **SPARSE), rate=0.0)
        found[f"new indexers, {name}"] = fit(task, world_size, strategies()[name], steps=1)
    used = a_network()
    a_trainer(world_size, Sharded(), steps=1).fit(LanguageModeling(used, learning_rate=0.0), Packs())
    found["divided"] = tried(lambda: fit(a_task("policy", folder / "weights", used), world_size, Sharded()))
    without = PolicyOptimization(a_network(meta=True), None, GRPO())
    found["without values"] = tried(lambda: fit(without, world_size, Sharded(meta=True)))
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> SimpleNamespace:
    """What two processes found, and what one finds; the networks begin otherwise than the folder that they are loaded from."""
    folder = tmp_path_factory.mktemp("reference")
    torch.manual_seed(3)
    weights = tiny_vision_language_model(**PARTS).double()
    save_weights(weights, folder / "weights")
    alone = {kind: fit(a_task(kind, folder / "weights", a_network()), 1, "auto") for kind in KINDS}
    return SimpleNamespace(weights=weights.state_dict(), alone=alone, results=run_distributed(in_two, 2, folder))


@pytest.mark.parametrize("way", [*WAYS, "resumed"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_weights_are_those_of_one_process(ranks, kind, way) -> None:
    expected = ranks.alone[kind]
    assert all(abs(loss) > 1e-3 for loss in expected.losses)  # a reference that is not a number would make a loss of 0
    for result in ranks.results:
        found = result[kind, way]
        before = int(way == "resumed")  # steps before the cut
        assert found.losses[before:] == pytest.approx(expected.losses[before:], rel=1e-9)
        assert distance(expected.tensors, found.tensors) < 1e-9


@pytest.mark.parametrize("way", [*WAYS, "resumed"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_stays_what_the_folder_says_and_nothing_else_knows_of_it(ranks, kind, way) -> None:
    for result in ranks.results:
        found = result[kind, way]
        assert found.faults == []
        assert found.reference.keys() == ranks.weights.keys()
        for name, tensor in ranks.weights.items():
            assert torch.equal(found.reference[name], tensor), name
        assert distance(found.reference, found.tensors) > 1e-3


@pytest.mark.parametrize("way", ["shards", "shards without memory"])
def test_what_the_folder_lacks_is_what_the_network_begins_with(ranks, way) -> None:
    for result in ranks.results:
        found = result[f"new indexers, {way}"]
        assert any(".sa_indexer." in name for name in found.reference)
        assert distance(found.reference, found.tensors) == 0.0
        assert max(map(abs, found.divergences)) < 1e-12


def test_a_network_that_ranks_have_divided_is_refused(ranks) -> None:
    assert all("build a new one" in result["divided"] for result in ranks.results)


def test_a_policy_without_values_is_refused(ranks) -> None:
    assert all("nothing gives it values" in result["without values"] for result in ranks.results)


def test_there_is_none_until_it_is_copied() -> None:
    reference = FrozenReference()
    assert not reference
    with pytest.raises(RuntimeError, match="nothing was copied"):
        _ = reference.network
    network = tiny_vision_language_model()
    reference.copy(network)
    first = reference.network
    reference.copy(network)
    assert reference.network is first
    assert first is not network


def test_it_is_loaded_from_the_folder_whatever_the_network_has_become(tmp_path) -> None:
    weights = a_network()
    save_weights(weights, tmp_path)
    changed = tiny_vision_language_model(**PARTS).double()
    reference = FrozenReference()
    reference.copy(changed)
    reference.place(a_trainer(1, "auto"), tmp_path)
    assert distance(weights.state_dict(), reference.network.state_dict()) == 0.0
    assert distance(changed.state_dict(), reference.network.state_dict()) > 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_it_has_the_precision_of_the_network(tmp_path, kind) -> None:
    save_weights(a_network(), tmp_path)
    task, watch = a_task(kind, tmp_path, a_network().float(), rate=0.0), Watch()
    packs = Experiences() if isinstance(task, PolicyOptimization) else Packs()
    a_trainer(1, "auto", steps=1, callbacks=[watch], precision="bf16-true").fit(task, packs)
    assert {parameter.dtype for parameter in task._reference.network.parameters()} == {torch.bfloat16}
    assert max(map(abs, watch.divergences)) < 1e-6  # training and evaluation round otherwise
    if kind == "preference":
        assert watch.losses[0] == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-3)
