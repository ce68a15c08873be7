"""Reinforcement learning through a real trainer: a reward rises, one without sense does not, an interrupted run goes on."""

from __future__ import annotations

import json
import math
import random
from functools import partial
from pathlib import Path

import lightning
import pytest
import torch

from keyekit.data.module import ConversationDataModule
from keyekit.models.weights import save_weights
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.objectives.policy.base import PolicyObjective
from keyekit.objectives.policy.grpo import GRPO
from keyekit.objectives.policy.gspo import GSPO
from keyekit.objectives.policy.reinforce import ReinforcePlusPlus
from keyekit.optim.schedules import WarmupStableDecay
from keyekit.rewards.base import AnswerReward, Example, RewardOutcome, example_sample
from keyekit.rollout.experience import Experience
from keyekit.rollout.precision import LowerPrecision
from keyekit.tasks.policy import PolicyOptimization
from keyekit.testing.tiny import tiny_record, tiny_vision_language_model

pytestmark = pytest.mark.filterwarnings("ignore")


class Vowels(AnswerReward):
    """Share of vowels among the characters."""

    def outcome(self, sample, answer) -> RewardOutcome:
        share = sum(character in "aeiou" for character in answer) / max(len(answer), 1)
        return RewardOutcome(share, "counted", {"vowels": share})

    @classmethod
    def example(cls) -> Example:
        return Example(sample=example_sample("?"), right="a", wrong="b")


class Dice(Vowels):
    """A reward that has nothing to do with the answer."""

    def outcome(self, sample, answer) -> RewardOutcome:
        parts = super().outcome(sample, answer).parts
        return RewardOutcome(random.Random(answer + sample.id).random(), "thrown", parts)


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "train.jsonl"
    words = ["apple", "brick", "crypt", "ounce", "idea", "rhythm", "area", "glyph"]
    records = [tiny_record(f"q{n}", f"say {word} {n}", word) for n, word in enumerate(words * 2)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


class Watch(lightning.Callback):
    """Keeps losses and the rewards of rounds; may save and stop in the middle of a round."""

    def __init__(self, cut: int | None = None, folder: Path | None = None) -> None:
        self.losses: list[float] = []
        self.rewards: list[float] = []
        self.vowels: list[float] = []
        self.disagreements: list[tuple[float, float]] = []
        self.divergences: list[float] = []
        self.entropies: list[float] = []
        self.packs: list[Experience] = []
        self.cut = cut
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].item())
        self.packs.append(batch)
        self.entropies.append(trainer.callback_metrics["train/entropy"].item())
        if "train/kl" in trainer.callback_metrics:
            self.divergences.append(trainer.callback_metrics["train/kl"].item())
        if batch.selections is not None:
            logged = (trainer.callback_metrics[f"rollout/{name}_disagreement"] for name in ("router", "index"))
            self.disagreements.append(tuple(value.item() for value in logged))
        if "reward" in batch.meters:
            self.rewards.append(batch.meters["reward"])
            self.vowels.append(batch.meters["reward_of/vowels"])
        if trainer.global_step == self.cut and len(self.losses) % trainer.accumulate_grad_batches == 0:
            trainer.save_checkpoint(self.folder / "cut.ckpt")
            trainer.should_stop = True


def make_network(seed: int = 0, **parts):
    torch.manual_seed(seed)
    network = tiny_vision_language_model(**parts)
    network.decoder.embed_tokens = torch.nn.Embedding(300, 32)
    network.decoder.lm_head = torch.nn.Linear(32, 300, bias=False)
    torch.nn.init.normal_(network.decoder.lm_head.weight, std=0.02)
    network.decoder.vocab_size = 300
    return network


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    """A folder with other weights than the network begins with."""
    folder = tmp_path_factory.mktemp("start")
    save_weights(make_network(seed=1), folder)
    return str(folder)


def fit(
    questions, folder, reward, objective: PolicyObjective, steps: int, resume=None, cut=None, parts=None, **settings
):
    network = make_network(**(parts or {}))
    packs = settings.pop("packs", 1)
    settings = {"prompts_per_round": 4, "responses": 6, "max_new_tokens": 6, "learning_rate": 1e-2} | settings
    task = PolicyOptimization(network, reward, objective, schedule=WarmupStableDecay(1, 0.0), **settings)
    watch = Watch(cut, folder)
    data = ConversationDataModule(train=[str(questions)], vocab_size=300, cache=str(folder / "cache"), workers=1)
    trainer = lightning.Trainer(
        max_steps=steps,
        accumulate_grad_batches=packs,
        callbacks=[watch],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        gradient_clip_val=1.0,
        default_root_dir=folder,
    )
    trainer.fit(task, data, ckpt_path=resume, weights_only=False)
    return watch


def test_a_reward_rises_and_one_without_sense_does_not_raise_it(questions, tmp_path) -> None:
    learnt = fit(questions, tmp_path, Vowels(), GRPO(), steps=40)
    assert sum(learnt.rewards[-4:]) / 4 > sum(learnt.rewards[:4]) / 4 + 0.15

    thrown = fit(questions, tmp_path, Dice(), GRPO(), steps=40)
    vowels = thrown.vowels
    assert abs(sum(vowels[-4:]) - sum(vowels[:4])) / 4 < 0.1


@pytest.mark.parametrize("cut", [2, 3], ids=["between rounds", "in a round"])
def test_an_interrupted_run_goes_on_to_the_bit(questions, tmp_path, cut) -> None:
    parts = {
        "attention": partial(DSA, topk=6, num_indexer_heads=2, indexer_head_dim=8),
        "feed_forward": partial(MixtureOfExperts, num_experts=4, active_experts=2, expert_dim=24),
    }
    settings = {"steps_per_round": 2, "packs": 2, "replay": True, "parts": parts}
    whole = fit(questions, tmp_path, Vowels(), GSPO(0.2, 0.2), steps=6, **settings)
    first = fit(questions, tmp_path, Vowels(), GSPO(0.2, 0.2), steps=6, cut=cut, **settings)
    rest = fit(questions, tmp_path, Vowels(), GSPO(0.2, 0.2), steps=6, resume=str(tmp_path / "cut.ckpt"), **settings)
    assert len(whole.losses) == 12
    assert first.losses + rest.losses == whole.losses


@pytest.mark.parametrize("replay", [True, False])
def test_replay_makes_rollouts_in_bfloat16_and_training_choose_alike(questions, tmp_path, replay) -> None:
    parts = {
        "attention": partial(DSA, topk=6, num_indexer_heads=2, indexer_head_dim=8),
        "feed_forward": partial(MixtureOfExperts, num_experts=8, active_experts=2, expert_dim=24),
    }
    settings = {"replay": replay, "compare_choices": True, "engine": LowerPrecision, "parts": parts}
    watch = fit(questions, tmp_path, Vowels(), GSPO(), steps=1, **settings)
    router, index = watch.disagreements[0]  # before any step: precision alone makes the difference
    assert (router, index) == (0.0, 0.0) if replay else min(router, index) > 0.001


def test_rewards_dealt_to_other_prompts_are_asked_for_by_name_and_teach_nothing(questions, tmp_path) -> None:
    watch = fit(questions, tmp_path, Vowels(), GRPO(), steps=40, shuffle_rewards=True)
    assert watch.losses[:2] != fit(questions, tmp_path, Vowels(), GRPO(), steps=2).losses
    vowels = watch.vowels  # of all answers: to which they are dealt does not matter
    assert (sum(vowels[-4:]) - sum(vowels[:4])) / 4 < 0.1


@pytest.mark.parametrize(
    "objective",
    [GRPO(kl_weight=0.1), GRPO(kl_weight=0.1, kl_form="full"), ReinforcePlusPlus(reward_kl=0.5)],
    ids=["sampled", "whole vocabulary", "reward"],
)
def test_the_divergence_begins_at_nothing_and_is_that_of_an_uninterrupted_run(
    questions, start, tmp_path, objective
) -> None:
    settings = {"steps_per_round": 2, "packs": 2, "init_from": start}
    whole = fit(questions, tmp_path, Vowels(), objective, steps=4, **settings)
    first = fit(questions, tmp_path, Vowels(), objective, steps=4, cut=3, **settings)
    rest = fit(questions, tmp_path, Vowels(), objective, steps=4, resume=str(tmp_path / "cut.ckpt"), **settings)
    assert whole.divergences[:2] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert min(whole.divergences[2:]) > 1e-4
    assert all(0.0 < entropy < math.log(300) for entropy in whole.entropies)
    assert first.losses + rest.losses == whole.losses
    assert first.divergences + rest.divergences == whole.divergences


def test_a_divergence_in_the_loss_holds_the_policy_back(questions, start, tmp_path) -> None:
    settings = {"steps": 12, "init_from": start}
    free = fit(questions, tmp_path, Vowels(), GRPO(kl_weight=1e-9), **settings)
    for form in ("k3", "full"):
        held = fit(questions, tmp_path, Vowels(), GRPO(kl_weight=2.0, kl_form=form), **settings)
        assert held.divergences[-1] < free.divergences[-1]


def test_an_entropy_bonus_keeps_the_policy_undecided(questions, tmp_path) -> None:
    plain = fit(questions, tmp_path, Vowels(), GRPO(), steps=12)
    undecided = fit(questions, tmp_path, Vowels(), GRPO(entropy_weight=1.0), steps=12)
    assert undecided.entropies[0] == plain.entropies[0]
    assert undecided.entropies[-1] > plain.entropies[-1]


def test_a_divergence_in_the_reward_gives_each_token_its_advantage_over_the_packs_of_a_step(
    questions, start, tmp_path
) -> None:
    settings = {"steps": 3, "packs": 2, "init_from": start}
    plain = fit(questions, tmp_path, Vowels(), ReinforcePlusPlus(), **settings)
    costly = fit(questions, tmp_path, Vowels(), ReinforcePlusPlus(reward_kl=0.5), **settings)
    assert max(_spread_within(pack) for pack in plain.packs) == 0.0
    assert max(_spread_within(pack) for pack in costly.packs[:2]) < 1e-3  # the policy is still its reference
    assert max(_spread_within(pack) for pack in costly.packs[2:]) > 0.01
    for step in range(3):
        advantages = torch.cat([pack.advantages[pack.mask] for pack in costly.packs[2 * step : 2 * step + 2]])
        assert advantages.mean().item() == pytest.approx(0.0, abs=1e-5)
        assert advantages.std().item() == pytest.approx(1.0, abs=1e-4)
    assert costly.losses[2:] != plain.losses[2:]


def _spread_within(pack: Experience) -> float:
    """Largest difference between advantages of the same answer."""
    answers = [pack.advantages[one.start : one.stop][pack.mask[one.start : one.stop]] for one in pack.samples]
    return max(((one.max() - one.min()).item() for one in answers if len(one)), default=0.0)


def test_what_cannot_work_is_refused(questions, tmp_path) -> None:
    with pytest.raises(ValueError, match="temperature=0"):
        PolicyOptimization(tiny_vision_language_model(), Vowels(), temperature=0.0)
    with pytest.raises(ValueError, match="kl_weight needs a reference"):
        fit(questions, tmp_path, Vowels(), GRPO(kl_weight=0.1), steps=1)
    with pytest.raises(ValueError, match="reward_kl needs a reference"):
        fit(questions, tmp_path, Vowels(), ReinforcePlusPlus(reward_kl=0.1), steps=1)
