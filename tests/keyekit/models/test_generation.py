"""Generation over the cache equals repeated full forward passes."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from keyekit.batch import Batch, Segments
from keyekit.models.cache import SequenceCache
from keyekit.models.generation import Sampler, generate, stream

_spec = importlib.util.spec_from_file_location("builders", Path(__file__).with_name("test_vision_language.py"))
builders = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(builders)


def continue_without_cache(model, batch: Batch, steps: int) -> list[int]:
    """Greedy decoding by running the whole sequence anew for every token."""
    answer = []
    for _ in range(steps):
        token = int(model.decoder.logits(model(batch).hidden)[-1].argmax())
        answer.append(token)
        length = batch.tokens.numel() + 1
        batch = replace(
            batch,
            tokens=torch.cat([batch.tokens, torch.tensor([token])]),
            labels=torch.cat([batch.labels, torch.tensor([-100])]),
            positions=torch.cat([batch.positions, (batch.positions.max() + 1).expand(3, 1)], dim=1),
            segments=Segments.of([length]),
            samples=(replace(batch.samples[0], stop=length),),
        )
    return answer


@pytest.mark.parametrize("feed_forward", ["swiglu", "sigmoid"])
@pytest.mark.parametrize("attention", ["dense", "dsa"])
@torch.no_grad()
def test_cached_equals_uncached(attention: str, feed_forward: str) -> None:
    model = builders.network(attention, feed_forward).double().eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)  # untrained logits would all be near each other
    parts = [builders.sample(n, g, seed) for seed, (n, g) in enumerate([(17, [(4, 4)]), (9, []), (14, [(2, 4)])])]
    parts = [replace(p, vision=p.vision and replace(p.vision, patches=p.vision.patches.double())) for p in parts]
    together = generate(model, builders.pack(parts, tail=5), stop_tokens=(), max_new_tokens=6)
    assert together == [continue_without_cache(model, part, 6) for part in parts]


@torch.no_grad()
def test_sequences_stop_on_their_own() -> None:
    model = builders.network().eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    parts = [builders.sample(9, [], 0), builders.sample(11, [], 1)]
    free = generate(model, builders.pack(parts), stop_tokens=(), max_new_tokens=8)
    stop = free[0][2]
    stopped = generate(model, builders.pack(parts), stop_tokens={stop}, max_new_tokens=8)
    for answer, full in zip(stopped, free, strict=True):
        assert answer == (full[: full.index(stop)] if stop in full else full)
    steps = list(stream(model, builders.pack(parts), stop_tokens={stop}, max_new_tokens=8))
    assert [token for step in steps for row, token in step if row == 1] == stopped[1]


def test_sampler_draws_within_top_k_and_top_p_and_repeats_with_its_seed() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(2000, 1)
    drawn = {}
    for name, sampler in {
        "all": Sampler(temperature=1.0, seed=3),
        "k": Sampler(temperature=1.0, top_k=2, seed=3),
        "p": Sampler(temperature=1.0, top_p=0.5, seed=3),
        "greedy": Sampler(),
    }.items():
        tokens = sampler.draw(logits, sampler.generator("cpu"))
        assert torch.equal(tokens, sampler.draw(logits, sampler.generator("cpu")))
        drawn[name] = torch.bincount(tokens, minlength=4) / 2000
    torch.testing.assert_close(drawn["all"], logits[0].softmax(-1), atol=0.04, rtol=0)
    assert drawn["k"][2:].sum() == 0
    assert drawn["k"][1] > 0.2
    assert drawn["p"].tolist() == [1, 0, 0, 0]
    assert drawn["greedy"].tolist() == [1, 0, 0, 0]


def test_cache_refuses_to_outgrow_its_buffers() -> None:
    cache = SequenceCache(1, [3])
    cache.advance([3])
    with pytest.raises(ValueError, match="do not fit"):
        cache.segments_for([1], "cpu")
