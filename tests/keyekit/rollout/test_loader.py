"""Rollouts as a loader: a round for its steps, the same again after an interruption in its middle."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch

from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.objectives.policy.advantages import group_advantages
from keyekit.rollout.engine import RolloutSpec
from keyekit.rollout.experience import Experience
from keyekit.rollout.loader import RolloutLoader
from keyekit.rollout.native import NativeEngine
from keyekit.rollout.rounds import Rounds
from keyekit.rollout.trajectory import Prompt
from keyekit.testing.tiny import tiny_vision_language_model


@dataclass
class Judged:
    value: float
    parts: dict[str, float] = field(default_factory=dict)


def by_length(samples, texts) -> list[Judged]:
    return [Judged(float(len(text))) for text in texts]


class Prompts:
    """What the loader needs of a dataset of prompts."""

    def __init__(self, maker, count: int = 8) -> None:
        self.prompts = [maker(f"p{number}", 5 + number, number % 3 == 0, number) for number in range(count)]
        self.encoded = [prompt.encoded for prompt in self.prompts]
        reader = SimpleNamespace(geometry=SimpleNamespace(patch_size=14))
        self.encoder = SimpleNamespace(cache=SimpleNamespace(reader=reader))

    def __len__(self) -> int:
        return len(self.encoded)

    def pictures(self, index: int) -> list:
        return self.prompts[index].pictures


def after_a_hint(samples, texts) -> list[Judged]:
    return [Judged(len(t) * ("hint" in s.meta)) for s, t in zip(samples, texts, strict=True)]


def hinted(prompt, level) -> Prompt:
    sample = replace(prompt.encoded.sample, id=f"{prompt.name}#{level}", meta={"hint": level, "origin": prompt.name})
    return replace(prompt, encoded=replace(prompt.encoded, sample=sample))


def loader(maker, model, replay: bool = False, hint=None, **settings) -> RolloutLoader:
    engine = NativeEngine(RolloutSpec(model, {1, 2, 3, 4, 5, 6}, 12, record=replay))
    rounds = Rounds(
        engine=engine,
        judge=by_length if hint is None else after_a_hint,
        compare=group_advantages,
        decode=lambda t: "x" * len(t),
        prompts=4,
        responses=3,
        hint=hint,
    )
    settings = {"steps": 2, "packs": 2} | settings
    return RolloutLoader(Prompts(maker), rounds, "sequence", recorded=replay, **settings)


def model():
    torch.manual_seed(0)
    return tiny_vision_language_model(
        feed_forward=lambda spec: MixtureOfExperts(spec, num_experts=6, active_experts=2, expert_dim=16)
    )


def same(one: Experience, other: Experience) -> bool:
    return (
        torch.equal(one.tokens, other.tokens)
        and torch.equal(one.labels, other.labels)
        and torch.equal(one.old_log_probs, other.old_log_probs)
        and torch.equal(one.advantages, other.advantages)
        and one.step_count == other.step_count
        and one.meters == other.meters
        and (one.selections is None) == (other.selections is None)
        and all(
            torch.equal(a.experts, b.experts) for a, b in zip(one.selections or (), other.selections or (), strict=True)
        )
    )


def test_an_epoch_asks_every_prompt_once_and_hands_out_the_packs_of_its_rounds(prompt_maker) -> None:
    made = loader(prompt_maker, model())
    packs = list(made)
    assert len(packs) == len(made) == 2 * 2 * 2
    names = [sample.id for pack in packs for sample in pack.samples]
    assert {names.count(f"p{number}") for number in range(8)} == {3}
    assert [bool(pack.meters) for pack in packs] == [True, False, False, False] * 2
    for first, second in zip(packs[::2], packs[1::2], strict=True):
        assert first.step_count == second.step_count == len(first.samples) + len(second.samples)


@pytest.mark.parametrize(
    ("replay", "hint"), [(False, None), (True, None), (False, hinted)], ids=["plain", "replay", "hints"]
)
def test_a_round_goes_on_bit_equal_after_an_interruption(prompt_maker, replay, hint) -> None:
    """The weights have moved since the round was made: only the state can know its responses."""
    policy = model()
    made = loader(prompt_maker, policy, replay, hint)
    batches = iter(made)
    next(batches)
    state = torch.load(_saved(made.state_dict()), weights_only=True)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    rest = list(batches)
    resumed = loader(prompt_maker, policy, replay, hint)
    resumed.load_state_dict(state)
    again = list(resumed)
    assert len(again) == len(rest) == 7
    assert all(("hint" in sample.meta) == bool(hint) for pack in again for sample in pack.samples)
    assert all(same(one, other) for one, other in zip(rest, again, strict=True))


def _saved(state) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_a_round_with_hints_goes_on_with_the_same_hints_alone(prompt_maker) -> None:
    made = loader(prompt_maker, model(), hint=hinted)
    next(iter(made))
    resumed = loader(prompt_maker, model())
    with pytest.raises(ValueError, match="resume with the same hints"):
        resumed.load_state_dict(made.state_dict())


def test_another_number_of_ranks_begins_a_new_round(prompt_maker) -> None:
    made = loader(prompt_maker, model())
    batches = iter(made)
    next(batches), next(batches)
    state = made.state_dict()
    state = {**state, "ranks": 2, "rounds": state["rounds"] * 2}
    resumed = loader(prompt_maker, model())
    resumed.load_state_dict(state)
    assert next(iter(resumed)).meters  # the first pack of a round


def test_packs_that_are_too_long_and_too_few_prompts_are_refused(prompt_maker) -> None:
    with pytest.raises(ValueError, match="pack_tokens=20: raise accumulate_grad_batches"):
        list(loader(prompt_maker, model(), pack_tokens=20))
    with pytest.raises(ValueError, match="steps=0"):
        loader(prompt_maker, model(), steps=0)
    rounds = loader(prompt_maker, model()).rounds
    with pytest.raises(ValueError, match="a round takes 4 prompts on each of 1 ranks, there are 3"):
        RolloutLoader(Prompts(prompt_maker, 3), rounds, "token")
