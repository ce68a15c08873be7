"""The native engine against generation one prompt at a time, whatever runs beside a response."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from keyekit.data.packing import collate
from keyekit.models.generation import generate
from keyekit.models.sampling import Sampler
from keyekit.nn.attention.dense import Dense
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.attention.sliding_window import SlidingWindow
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.rollout.engine import RolloutSpec
from keyekit.rollout.ledger import replayed
from keyekit.rollout.native import NativeEngine
from keyekit.testing.tiny import tiny_vision_language_model

SPARSE = partial(DSA, topk=4, num_indexer_heads=2, indexer_head_dim=8)
MIXTURE = partial(MixtureOfExperts, num_experts=6, active_experts=2, expert_dim=16)
STOP = {1, 2, 3, 7, 11, 19, 23, 40}  # of 64 tokens: responses end after a few


def network(attention=Dense, **parts):
    torch.manual_seed(0)
    made = tiny_vision_language_model(attention, **parts)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made


@pytest.mark.parametrize(
    "attention", [Dense, SPARSE, partial(SlidingWindow, window=5, sinks=1)], ids=["dense", "dsa", "window"]
)
def test_greedy_responses_are_those_of_generation_alone(attention, prompts) -> None:
    model = network(attention)
    engine = NativeEngine(RolloutSpec(model, STOP, 12, Sampler()), slots=3, prefill_tokens=20)
    found = engine.rollout(prompts, 1, seed=0)
    model.eval()
    for prompt, (trajectory,) in zip(prompts, found, strict=True):
        batch = collate([prompt.encoded], [prompt.pictures], None)
        (alone,) = generate(model, batch, stop_tokens=STOP, max_new_tokens=12)
        assert trajectory.tokens == alone.tokens
        assert trajectory.end == alone.finish_reason
        assert trajectory.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-4)


def test_what_a_response_says_does_not_depend_on_what_runs_beside_it(prompts) -> None:
    model = network(feed_forward=MIXTURE)
    wide = NativeEngine(RolloutSpec(model, STOP, 16), slots=64).rollout(prompts, 4, seed=3)
    narrow = NativeEngine(RolloutSpec(model, STOP, 16), slots=2, prefill_tokens=1).rollout(prompts, 4, seed=3)
    again = NativeEngine(RolloutSpec(model, STOP, 16), slots=5).rollout(prompts[::-1], 2, seed=3)[::-1]
    lengths = set()
    for first, second, third in zip(wide, narrow, again, strict=True):
        assert [t.tokens for t in first] == [t.tokens for t in second]
        assert [t.tokens for t in first[:2]] == [t.tokens for t in third]
        assert len({t.tokens for t in first}) > 1
        lengths |= {len(t.tokens) for t in first}
    assert len(lengths) > 4  # ragged: seats are taken over at many different moments
    other = NativeEngine(RolloutSpec(model, STOP, 16)).rollout(prompts, 4, seed=4)
    assert [t.tokens for t in other[0]] != [t.tokens for t in wide[0]]


class Computed:
    """Counts the tokens that a network reads at once, and those of each step behind them."""

    def __init__(self, model) -> None:
        self.prefilled = 0
        self.decoded: list[int] = []
        self._prefills = False
        model.register_forward_pre_hook(self._prefill)
        model.decoder.register_forward_hook(self._step)

    def _prefill(self, module, arguments) -> None:
        self.prefilled += len(arguments[0].tokens)
        self._prefills = True

    def _step(self, module, arguments, output) -> None:
        if not self._prefills:
            self.decoded.append(len(output.hidden))
        self._prefills = False


@pytest.mark.parametrize(
    ("slots", "prefill_tokens"), [(64, 8192), (3, 8192), (3, 1)], ids=["at once", "few", "one by one"]
)
def test_a_prompt_is_read_once_however_many_responses_it_gets(prompts, slots, prefill_tokens) -> None:
    model = network()
    computed = Computed(model)
    found = NativeEngine(RolloutSpec(model, STOP, 16), slots, prefill_tokens).rollout(prompts, 4, seed=3)
    assert computed.prefilled == sum(map(len, prompts))
    # What ends a response is not read, and nothing runs on behind it.
    assert sum(computed.decoded) == sum(len(one.tokens) - 1 for group in found for one in group)


@pytest.mark.parametrize("slots", [2, 3, 5])
def test_a_seat_is_taken_over_at_once(prompts, slots) -> None:
    """A static batch waits for its longest response; here as many go on as there are seats, until the last ones."""
    model = network()
    computed = Computed(model)
    found = NativeEngine(RolloutSpec(model, STOP, 16), slots).rollout(prompts, 4, seed=3)
    lengths = [len(one.tokens) for group in found for one in group]
    waves = [lengths[start : start + slots] for start in range(0, len(lengths), slots)]
    assert len(computed.decoded) < sum(max(wave) - 1 for wave in waves)
    assert max(computed.decoded) <= slots
    seats = [0] * slots  # tokens drawn in each so far: the next response goes where one ends first
    for length in lengths:
        place = seats.index(min(seats))
        seats[place] += length
    assert len(computed.decoded) <= max(seats) - 1


@pytest.mark.parametrize(
    ("attention", "parts"), [(Dense, {}), (SPARSE, {"feed_forward": MIXTURE})], ids=["dense", "both"]
)
def test_log_probabilities_and_choices_are_those_of_the_training_pass(attention, parts, prompts) -> None:
    model = network(attention, **parts)
    engine = NativeEngine(RolloutSpec(model, STOP, 10, record=True), slots=4)
    trajectories = [t for group in engine.rollout(prompts, 2, seed=1) for t in group]
    samples = [trajectory.encoded() for trajectory in trajectories]
    batch = collate(samples, [t.prompt.pictures for t in trajectories], sum(map(len, samples)) + 5)
    ledgers = [t.ledger for t in trajectories]
    choices = replayed(ledgers, batch.tokens.shape[0], "cpu")
    for selections in (None, choices):
        with torch.no_grad():
            output = model(batch, selections=selections)
        logged = model.decoder.logits(output.hidden).log_softmax(-1)
        targets = batch.labels >= 0
        found = logged[targets].gather(1, batch.labels[targets][:, None])[:, 0]
        drawn = torch.tensor([value for t in trajectories for value in t.log_probabilities])
        torch.testing.assert_close(found, drawn, rtol=1e-4, atol=1e-4)
    total = sum(map(len, samples))
    for chosen, recorded in zip(output.selections, choices, strict=True):
        if recorded.experts is not None:
            assert torch.equal(chosen.experts[:total], recorded.experts[:total])
        if recorded.keys is not None:
            assert torch.equal(_as_sets(chosen.keys[:total]), _as_sets(recorded.keys[:total]))


def _as_sets(keys: torch.Tensor) -> torch.Tensor:
    width = 4
    return (
        torch.nn.functional.pad(keys, (0, max(width - keys.shape[1], 0)), value=-1)
        .sort(descending=True)
        .values[:, :width]
    )


def test_replay_holds_when_the_router_changes_its_mind(prompts) -> None:
    model = network(SPARSE, feed_forward=MIXTURE)
    engine = NativeEngine(RolloutSpec(model, STOP, 10, record=True))
    trajectories = [group[0] for group in engine.rollout(prompts, 1, seed=1)]
    batch = collate([t.encoded() for t in trajectories], [t.prompt.pictures for t in trajectories], None)
    choices = replayed([t.ledger for t in trajectories], batch.tokens.shape[0], "cpu")
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.mlp.gate.weight.neg_()
            layer.self_attn.sa_indexer.q_proj.weight.neg_()
        fresh, replay = model(batch).selections, model(batch, selections=choices).selections
    for own, held, recorded in zip(fresh, replay, choices, strict=True):
        assert (own.experts != recorded.experts).float().mean() > 0.3
        assert torch.equal(held.experts, recorded.experts)
        assert torch.equal(held.keys, recorded.keys)


def test_a_response_that_repeats_itself_ends(prompts) -> None:
    engine = NativeEngine(RolloutSpec(network(), (), 40), collapsed=lambda tokens: len(tokens) >= 8, collapse_every=4)
    (trajectory,) = engine.rollout(prompts[:1], 1, seed=0)[0]
    assert (trajectory.end, len(trajectory.tokens)) == ("repetition", 8)
    assert trajectory.answer == trajectory.tokens


def test_training_mode_comes_back_and_nothing_asked_is_nothing_said(prompts) -> None:
    model = network().train()
    engine = NativeEngine(RolloutSpec(model, STOP, 2))
    assert engine.rollout([], 3, seed=0) == []
    engine.rollout(prompts[:1], 1, seed=0)
    assert model.training


def test_impossible_numbers_and_broken_logits_are_refused(prompts) -> None:
    with pytest.raises(ValueError, match="slots=0: give at least 1"):
        NativeEngine(RolloutSpec(network(), STOP, 3), slots=0)
    with pytest.raises(ValueError, match="max_new_tokens=0: give at least 1"):
        RolloutSpec(network(), STOP, 0)
    engine = NativeEngine(RolloutSpec(network(), STOP, 3))
    with pytest.raises(ValueError, match="responses=0"):
        engine.rollout(prompts, 0, seed=0)
    with torch.no_grad():
        engine.network.decoder.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="logits for p0 are not numbers"):
        engine.rollout(prompts, 1, seed=0)


def test_weights_that_ranks_share_are_refused_and_copies_are_not() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        grid = init_device_mesh("cpu", (2, 1), mesh_dim_names=("copy", "shard"))
        copied = fully_shard(network(), mesh=grid)
        assert NativeEngine(RolloutSpec(copied, STOP, 12)).network is copied
        shared = fully_shard(network(), mesh=init_device_mesh("cpu", (2,)))
        with pytest.raises(ValueError, match=r"is divided among ranks.*sharding: replicate"):
            NativeEngine(RolloutSpec(shared, STOP, 12))
    finally:
        dist.destroy_process_group()
