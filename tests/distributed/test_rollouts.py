"""Reinforcement learning and on-policy distillation on two ranks: each asks prompts of its own, and both learn what one learns.

What a response says depends on the seed, the prompt and its number alone, so the prompts of a round may be divided among ranks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.distributed.tensor import DTensor

from keyekit.data.module import ConversationDataModule
from keyekit.data.reader import MediaReader
from keyekit.distributed.part_plan import PartPlan
from keyekit.distributed.strategy import Sharded
from keyekit.objectives.distillation.mopd import MOPD
from keyekit.objectives.policy.grpo import GRPO
from keyekit.optim.schedules import WarmupStableDecay
from keyekit.rewards.base import AnswerReward, Example, RewardOutcome, example_sample
from keyekit.rollout.engine import RolloutEngine, RolloutSpec
from keyekit.rollout.native import NativeEngine
from keyekit.rollout.teachers.base import Scores
from keyekit.rollout.teachers.local import LocalTeacher
from keyekit.rollout.trajectory import Prompt, Trajectory
from keyekit.tasks.distillation import OnPolicyDistillation
from keyekit.tasks.policy import PolicyOptimization
from keyekit.testing.distributed import run_distributed
from keyekit.testing.equalities import distance
from keyekit.testing.tiny import tiny_record, tiny_vision_language_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200), pytest.mark.filterwarnings("ignore")]
PROMPTS, PACKS = 4, 4  # of an optimizer step, however many ranks share them
STEPS, CUT = 4, 3
WORDS = 300
KINDS = ("policy", "distillation")


def strategies() -> dict[str, Any]:
    """Ways to hold a network on two ranks; each serves one fit."""
    copy = PartPlan(sharding="replicate")
    return {
        "copies": "ddp",
        "replicas": Sharded(vision=copy, projector=copy, decoder=copy, timeout_minutes=1),
        "shards": Sharded(timeout_minutes=1),
    }


WAYS = tuple(strategies())


class Early(AnswerReward):
    """Share of characters from the first half of the alphabet."""

    def outcome(self, sample, answer) -> RewardOutcome:
        return RewardOutcome(sum("a" <= each <= "m" for each in answer) / max(len(answer), 1), "counted")

    @classmethod
    def example(cls) -> Example:
        return Example(sample=example_sample("?"), right="a", wrong="z")


def halting(spec: RolloutSpec) -> NativeEngine:
    """Draws with the network at hand; a tenth of all words ends a response, so that lengths differ."""
    return NativeEngine(replace(spec, stop_tokens=(*spec.stop_tokens, *range(WORDS - 30, WORDS))))


class Elsewhere(RolloutEngine):
    """Draws without the network, as a server does; one that ranks divide can be asked in no other way."""

    prepared = False

    def prepare(self) -> None:
        self.prepared = True

    def rollout(self, prompts: Sequence[Prompt], responses: int, seed: int) -> list[list[Trajectory]]:
        assert self.prepared, "a server has to be given the weights, on all ranks together"
        return [[self._drawn(p, Random(f"{seed}/{p.name}/{n}")) for n in range(responses)] for p in prompts]

    def _drawn(self, prompt: Prompt, source: Random) -> Trajectory:
        tokens = tuple(source.randrange(WORDS) for _ in range(source.randint(2, self.spec.max_new_tokens)))
        logs = (-5.7,) * len(tokens)
        return Trajectory(
            prompt=prompt, tokens=tokens, log_probabilities=logs, sampling_log_probabilities=logs, end="length"
        )


class Counting(LocalTeacher):
    """A teacher that counts the packs it was given."""

    packs = 0

    def score(self, batch, topk, asked=None) -> Scores:
        self.packs += 1
        return super().score(batch, topk, asked)


def make_network(seed: int, sharp: float = 0.1) -> Any:
    torch.manual_seed(seed)
    network = tiny_vision_language_model()
    network.decoder.embed_tokens = torch.nn.Embedding(WORDS, 32)
    network.decoder.lm_head = torch.nn.Linear(32, WORDS, bias=False)
    torch.nn.init.normal_(network.decoder.lm_head.weight, std=sharp)
    network.decoder.vocab_size = WORDS
    return network.double()


def make_task(kind: str, world_size: int, engine: Any, steps_per_round: int) -> Any:
    options: dict[str, Any] = {
        "prompts_per_round": PROMPTS * steps_per_round // world_size,
        "steps_per_round": steps_per_round,
        "responses": 3,
        "max_new_tokens": 8,
        "engine": engine,
        "learning_rate": 1e-2,
        "schedule": WarmupStableDecay(1, 0.0),
    }
    if kind == "policy":
        return PolicyOptimization(make_network(0), Early(), GRPO(normalisation="token"), **options)
    mode = "teacher_on_student" if engine is Elsewhere else "overlap"  # the student reads its answers, too
    objective = MOPD(mode=mode, credit="words", normalisation="token")
    teacher = Counting.of(make_network(1, 0.8))
    return OnPolicyDistillation(make_network(0), {"*": teacher}, objective, pack_tokens=150, **options)


class Watch(lightning.Callback):
    """Keeps losses, prompts and targets of steps, and how many packs a teacher was given until then; may save and stop."""

    def __init__(self, save: Path | None) -> None:
        self.losses = [0.0] * STEPS
        self.prompts: list[set[str]] = [set() for _ in range(STEPS)]
        self.targets = [0] * STEPS
        self.read = [0] * STEPS
        self.save = save

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.step = trainer.global_step
        self.prompts[self.step] |= {sample.id for sample in batch.samples}
        self.targets[self.step] += batch.num_targets
        if isinstance(pl_module, OnPolicyDistillation):
            self.read[self.step] = sum(teacher.packs for teacher in pl_module.teacher.routes.values())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *arguments: Any) -> None:
        self.losses[self.step] += outputs["loss"].item()
        if self.save is not None and trainer.global_step == CUT > self.step:
            trainer.save_checkpoint(self.save)
            trainer.should_stop = True


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What is left of a fit: losses of steps over all ranks, and what this rank asked and counted."""

    losses: Sequence[float]
    tensors: dict[str, torch.Tensor]
    prompts: Sequence[set[str]]
    targets: Sequence[int]
    read: Sequence[int]


def fit(
    kind: str,
    world_size: int,
    strategy: Any,
    engine: Any,
    folder: Path,
    steps_per_round: int = 1,
    save: Path | None = None,
    resume: Path | None = None,
) -> Fitted:
    task = make_task(kind, world_size, engine, steps_per_round)
    watch = Watch(save)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=strategy,
        max_steps=STEPS,
        accumulate_grad_batches=PACKS // world_size,
        gradient_clip_val=0.5,
        use_distributed_sampler=False,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    data = ConversationDataModule(
        train=[str(folder / "train.jsonl")],
        reader=MediaReader(min_image_tokens=4, max_image_tokens=4),
        vocab_size=WORDS,
        cache=str(folder / "cache"),
        workers=1,
    )
    trainer.fit(task, data, ckpt_path=resume and str(resume), weights_only=False)
    means = torch.tensor(watch.losses, dtype=torch.float64)
    if world_size > 1:
        dist.all_reduce(means)
    state = task.network.state_dict()
    return Fitted(
        losses=(means / world_size).tolist(),
        tensors={name: (t.full_tensor() if isinstance(t, DTensor) else t).clone() for name, t in state.items()},
        prompts=watch.prompts,
        targets=watch.targets,
        read=watch.read,
    )


def engine_of(way: str) -> Any:
    return Elsewhere if way == "shards" else halting


def in_two(rank: int, world_size: int, folder: Path) -> dict[tuple[str, str, str], Fitted]:
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0")
    found = {}
    for kind in KINDS:
        for way in WAYS:
            train = partial(fit, kind, world_size, engine=engine_of(way), folder=folder)
            found[kind, way, "divided"] = train(strategy=strategies()[way])
            cut = folder / f"{kind} {way}"
            found[kind, way, "whole"] = train(strategy=strategies()[way], steps_per_round=2)
            train(strategy=strategies()[way], steps_per_round=2, save=cut)
            found[kind, way, "resumed"] = train(strategy=strategies()[way], steps_per_round=2, resume=cut)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> SimpleNamespace:
    """What two ranks found, and what one finds that asks as many prompts as both."""
    folder = tmp_path_factory.mktemp("rollouts")
    pixels = np.random.default_rng(0).integers(0, 255, (56, 56, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "seen.png")
    image = [("image", str(folder / "seen.png"))]
    records = [
        tiny_record(f"q{n}", f"say {n}" + " again" * (n % 5), "a", image if n % 3 == 0 else []) for n in range(12)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    alone = {(kind, engine): fit(kind, 1, "auto", engine, folder) for kind in KINDS for engine in (halting, Elsewhere)}
    return SimpleNamespace(alone=alone, results=run_distributed(in_two, 2, folder))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_both_ranks_learn_what_one_learns_from_the_prompts_of_both(ranks, kind, way) -> None:
    expected = ranks.alone[kind, engine_of(way)]
    first, second = (result[kind, way, "divided"] for result in ranks.results)
    for step in range(STEPS):
        assert first.prompts[step].isdisjoint(second.prompts[step])
        assert first.prompts[step] | second.prompts[step] == expected.prompts[step]
        assert first.targets[step] + second.targets[step] == expected.targets[step]
    assert list(first.targets) != list(second.targets)  # or a mean over each rank alone would be the same
    assert all(abs(loss) > 1e-4 for loss in expected.losses)
    for found in (first, second):
        assert found.losses == pytest.approx(expected.losses, rel=1e-6)
        assert distance(expected.tensors, found.tensors) < 1e-6
    assert all(map(torch.equal, first.tensors.values(), second.tensors.values()))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_go_on_to_the_bit_in_the_middle_of_a_round(ranks, kind, way) -> None:
    for result in ranks.results:
        whole, resumed = result[kind, way, "whole"], result[kind, way, "resumed"]
        assert resumed.losses[CUT:] == whole.losses[CUT:]
        assert resumed.prompts[CUT:] == whole.prompts[CUT:]
        assert not any(resumed.prompts[:CUT])
        assert all(map(torch.equal, whole.tensors.values(), resumed.tensors.values()))


def test_ranks_that_divide_a_student_read_different_numbers_of_packs(ranks) -> None:
    first, second = (result["distillation", "shards", "divided"].read for result in ranks.results)
    assert list(first) != list(second)
