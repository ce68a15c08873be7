"""Rollouts as a loader: a round for its steps, the same again after an interruption in its middle."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch

from keyekit.data.encode import SampleEncoder
from keyekit.data.sample import Sample
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.objectives.policy.advantages import group_advantages
from keyekit.rewards.context_rl import MistakeReports
from keyekit.rewards.endpoints import ChatModel
from keyekit.rollout.engine import RolloutSpec
from keyekit.rollout.experience import Experience
from keyekit.rollout.loader import RolloutLoader
from keyekit.rollout.native import NativeEngine
from keyekit.rollout.rounds import Rounds
from keyekit.rollout.second_attempts import SecondAttempts
from keyekit.rollout.trajectory import Prompt
from keyekit.testing.tiny import tiny_vision_language_model


@dataclass
class Judged:
    value: float
    parts: dict[str, float] = field(default_factory=dict)
    unreadable: bool = False


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


class Questions(Prompts):
    """Conversations that can be asked again, half of them about a picture."""

    def __init__(self, encoder: SampleEncoder, pictured: Sample) -> None:
        plain = replace(pictured, messages=(replace(pictured.messages[0], content=pictured.messages[0].content[-1:]),))
        samples = [replace((plain, pictured)[n % 2], id=f"q{n}", meta={"solution": f"{n} is so"}) for n in range(8)]
        self.prompts = [Prompt.of(sample, encoder) for sample in samples]
        self.encoded = [prompt.encoded for prompt in self.prompts]
        self.encoder = encoder


class Reviewer(ChatModel):
    """Reports something else about every answer."""

    def ask(self, prompts):
        return [f"wrong in step {sum(map(ord, prompt)) % 97}" for prompt in prompts]


def after_help(samples, texts) -> list[Judged]:
    helped = ["hint" in sample.meta or "report" in sample.meta for sample in samples]
    return [Judged(float(len(text) * right)) for text, right in zip(texts, helped, strict=True)]


def hinted(prompt, level) -> Prompt:
    sample = replace(prompt.encoded.sample, id=f"{prompt.name}#{level}", meta={"hint": level, "origin": prompt.name})
    return replace(prompt, encoded=replace(prompt.encoded, sample=sample))


def loader(
    maker, model, replay: bool = False, hint=None, questions: Questions | None = None, **settings
) -> RolloutLoader:
    words = len(model.decoder.lm_head.weight)
    engine = NativeEngine(RolloutSpec(model, range(1, 7 * words // 64), 12, record=replay))
    second = questions and SecondAttempts(reports=MistakeReports(Reviewer()), encoder=questions.encoder)
    rounds = Rounds(
        engine=engine,
        judge=after_help if hint or second else by_length,
        compare=group_advantages,
        decode=lambda t: "x" * len(t),
        prompts=4,
        responses=3,
        hint=hint,
        second=second,
    )
    settings = {"steps": 2, "packs": 2} | settings
    return RolloutLoader(questions or Prompts(maker), rounds, "sequence", recorded=replay, **settings)


def model(words: int = 64):
    torch.manual_seed(0)
    made = tiny_vision_language_model(
        feed_forward=lambda spec: MixtureOfExperts(spec, num_experts=6, active_experts=2, expert_dim=16)
    )
    if words > 64:
        made.decoder.embed_tokens = torch.nn.Embedding(words, 32)
        made.decoder.lm_head = torch.nn.Linear(32, words, bias=False)
    return made


def same(one: Experience, other: Experience) -> bool:
    return (
        torch.equal(one.tokens, other.tokens)
        and torch.equal(one.labels, other.labels)
        and torch.equal(one.positions, other.positions)
        and (one.vision is None) == (other.vision is None)
        and (one.vision is None or torch.equal(one.vision.patches, other.vision.patches))
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


@pytest.mark.parametrize("kind", ["plain", "replay", "hints", "reports"])
def test_a_round_goes_on_bit_equal_after_an_interruption(prompt_maker, encoder, pictured, kind) -> None:
    """The weights have moved since the round was made: only the state can know its responses."""
    settings = {"replay": kind == "replay", "hint": hinted if kind == "hints" else None}
    if kind == "reports":
        settings["questions"] = Questions(encoder, pictured)
    policy = model(len(encoder.tokenizer) if kind == "reports" else 64)
    made = loader(prompt_maker, policy, **settings)
    batches = iter(made)
    next(batches)
    state = torch.load(_saved(made.state_dict()), weights_only=True)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    rest = list(batches)
    resumed = loader(prompt_maker, policy, **settings)
    resumed.load_state_dict(state)
    again = list(resumed)
    assert len(again) == len(rest) == 7
    samples = [sample for pack in again for sample in pack.samples]
    assert len(samples) > 12
    for name, help in (("hint", "hints"), ("report", "reports")):
        assert all((name in sample.meta) == (kind == help) for sample in samples)
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


def test_responses_beyond_the_packs_of_a_step_are_learnt_from_and_told_once(prompt_maker, caplog) -> None:
    plain = list(loader(prompt_maker, model()))
    longest = max(len(pack.tokens) for pack in plain)
    assert {pack.meters["pack_tokens_over"] for pack in plain[::4]} == {0.0}
    assert not caplog.messages
    packs = list(loader(prompt_maker, model(), pack_tokens=30))
    assert sum(pack.num_targets for pack in packs) == sum(pack.num_targets for pack in plain)
    assert max(len(pack.tokens) for pack in packs) == longest  # as equal as without a limit
    overs = [pack.meters["pack_tokens_over"] for pack in packs[::4]]
    assert max(overs) == longest - 30
    (told,) = caplog.messages
    wanted = int(re.search(r"accumulate_grad_batches from 2 to (\d+)", told)[1])
    assert next(iter(loader(prompt_maker, model(), pack_tokens=30, packs=wanted))).meters["pack_tokens_over"] == 0.0
    list(loader(prompt_maker, model(), pack_tokens=10))
    assert re.search(r"Raise pack_tokens to \d+, what a single response has", caplog.messages[-1])


def test_too_few_prompts_are_refused(prompt_maker) -> None:
    with pytest.raises(ValueError, match="steps=0"):
        loader(prompt_maker, model(), steps=0)
    rounds = loader(prompt_maker, model()).rounds
    with pytest.raises(ValueError, match="a round takes 4 prompts on each of 1 ranks, there are 3"):
        RolloutLoader(Prompts(prompt_maker, 3), rounds, "token")


class Picky(NativeEngine):
    """Answers one prompt less than there are."""

    def check(self, encoded) -> None:
        if encoded.sample.id == "p5":
            raise ValueError("p5 has a video that cannot be sent")


def test_a_prompt_that_the_engine_cannot_answer_is_refused_before_the_first_round(prompt_maker) -> None:
    engine = Picky(RolloutSpec(tiny_vision_language_model(), (), 4))
    rounds = SimpleNamespace(prompts=2, engine=engine)
    with pytest.raises(ValueError, match="p5 has a video"):
        RolloutLoader(Prompts(prompt_maker), rounds, "token")
    assert len(RolloutLoader(Prompts(prompt_maker, 4), rounds, "token")) == 2
