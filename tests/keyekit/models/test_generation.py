"""Generation over the cache equals repeated full forward passes."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from keyekit.batch import Batch, Segments
from keyekit.models.cache import SequenceCache
from keyekit.models.generation import generate, stream
from keyekit.models.sampling import Sampler

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
@pytest.mark.parametrize("attention", builders.ATTENTIONS)
@torch.no_grad()
def test_cached_equals_uncached(attention: str, feed_forward: str) -> None:
    model = builders.network(attention, feed_forward).double().eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)  # untrained logits would all be near each other
    parts = [builders.sample(n, g, seed) for seed, (n, g) in enumerate([(17, [(4, 4)]), (9, []), (14, [(2, 4)])])]
    parts = [replace(p, vision=p.vision and replace(p.vision, patches=p.vision.patches.double())) for p in parts]
    together = generate(model, builders.pack(parts, tail=5), stop_tokens=(), max_new_tokens=6)
    assert [list(answer.tokens) for answer in together] == [continue_without_cache(model, part, 6) for part in parts]


def talkative(attention: str = "dense"):
    """A model whose logits differ from token to token."""
    model = builders.network(attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def prompts(*lengths: int) -> Batch:
    return builders.pack([builders.sample(length, [], seed) for seed, length in enumerate(lengths)])


def letters(tokens: list[int]) -> str:
    """A tokenizer of one letter per token."""
    return "".join(chr(ord("0") + token) for token in tokens)


def test_sequences_stop_on_their_own() -> None:
    model, batch = talkative(), prompts(9, 11)
    free = [answer.tokens for answer in generate(model, batch, stop_tokens=(), max_new_tokens=8)]
    stop = free[0][2]
    stopped = generate(model, batch, stop_tokens={stop}, max_new_tokens=8)
    for answer, full in zip(stopped, free, strict=True):
        assert answer.answer == (full[: full.index(stop)] if stop in full else full)
        assert answer.finish_reason == ("stop_token" if stop in full else "length")
        assert len(answer.log_probabilities) == len(answer.sampling_log_probabilities) == len(answer.tokens)
    steps = list(stream(model, batch, stop_tokens={stop}, max_new_tokens=8))
    assert tuple(taken.token for step in steps for taken in step if taken.sample == 1) == stopped[1].tokens


def test_an_answer_does_not_depend_on_what_else_is_in_the_batch() -> None:
    """Lengths far apart make several groups, and answers that end early make the cache move."""
    model, lengths = talkative(), (300, 9, 4, 11, 150)
    batch, sampler = prompts(*lengths), Sampler(temperature=1.5, seed=4)
    stop = set(range(0, 50, 9))
    together = generate(model, batch, stop_tokens=stop, max_new_tokens=12, sampler=sampler)
    assert len({len(answer.tokens) for answer in together}) > 2, (
        "choose stop tokens so that answers end at various times"
    )
    for row, answer in enumerate(together):
        others = [builders.sample(5, [], 7)] * row  # draws belong to the place among the prompts
        alone = builders.pack([*others, builders.sample(lengths[row], [], row)])
        again = generate(model, alone, stop_tokens=stop, max_new_tokens=12, sampler=sampler)[row]
        assert again.tokens == answer.tokens
        assert again.finish_reason == answer.finish_reason
        torch.testing.assert_close(
            torch.tensor(again.log_probabilities), torch.tensor(answer.log_probabilities), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("attention", builders.ATTENTIONS)
@torch.no_grad()
def test_log_probabilities_equal_those_of_a_full_pass_over_prompt_and_answer(attention: str) -> None:
    model, part = talkative(attention), builders.sample(13, [(4, 4)], 3)
    sampler = Sampler(temperature=0.7, top_k=5, repetition_penalty=1.2)
    answer = generate(model, builders.pack([part]), stop_tokens=(), max_new_tokens=9, sampler=sampler)[0]
    count = len(answer.tokens)
    following = torch.arange(count) + part.positions.max() + 1
    forced = replace(
        part,
        tokens=torch.cat([part.tokens, torch.tensor(answer.tokens)]),
        labels=torch.full((13 + count,), -100),
        positions=torch.cat([part.positions, following.expand(3, -1)], dim=1),
        segments=Segments.of([13 + count]),
        samples=(replace(part.samples[0], stop=13 + count),),
    )
    logits = model.decoder.logits(model(forced).hidden)[12:-1].log_softmax(-1)
    expected = logits.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(answer.log_probabilities), expected, rtol=1e-4, atol=1e-4)
    assert answer.log_probabilities != answer.sampling_log_probabilities


def test_a_stop_string_that_spans_tokens_ends_the_answer() -> None:
    model, batch = talkative(), prompts(9, 11)
    free = generate(model, batch, stop_tokens=(), max_new_tokens=8, decode=letters)
    assert [answer.text for answer in free] == [letters(list(answer.tokens)) for answer in free]
    stop = letters(list(free[0].tokens[3:5]))
    where = [answer.text.find(stop) for answer in free]
    stopped = generate(model, batch, stop_tokens=(), max_new_tokens=8, decode=letters, stop_strings=[stop])
    for answer, full, place in zip(stopped, free, where, strict=True):
        assert answer.text == (full.text if place < 0 else full.text[:place])
        assert answer.finish_reason == ("length" if place < 0 else "stop_string")
        assert answer.tokens == (full.tokens if place < 0 else full.tokens[: place + 2])
    pieces = ["", ""]
    for step in stream(model, batch, stop_tokens=(), max_new_tokens=8, decode=letters, stop_strings=[stop]):
        for taken in step:
            pieces[taken.sample] += taken.text
    assert pieces == [answer.text for answer in stopped]


def test_bad_requests_are_refused() -> None:
    model, batch = talkative(), prompts(5)
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        generate(model, batch, stop_tokens=(), max_new_tokens=0)
    with pytest.raises(ValueError, match="pass decode="):
        generate(model, batch, stop_tokens=(), stop_strings=["x"])
    with pytest.raises(ValueError, match="0 prompts"):
        generate(model, replace(batch, samples=()), stop_tokens=())
    torch.nn.init.constant_(model.decoder.lm_head.weight, torch.nan)
    with pytest.raises(ValueError, match="logits of prompt 0 hold NaN"):
        generate(model, batch, stop_tokens=())


def test_cache_refuses_to_outgrow_its_buffers() -> None:
    cache = SequenceCache(1, [3])
    cache.advance([3])
    with pytest.raises(ValueError, match="do not fit"):
        cache.segments_for([1], "cpu")


def test_cache_keeps_sequences_where_they_are_or_moves_them_whole() -> None:
    """Rows are compared with a list per sequence while sequences grow, end and change order."""
    lengths, limit = [70, 3, 4, 300, 5], 8
    cache = SequenceCache(1, [length + limit for length in lengths])
    layer, held = cache.layer(0), [torch.zeros(0, 2, 3)] * 5

    def grow(new: list[int]) -> None:
        segments = cache.segments_for(new, "cpu")
        added = torch.randn(sum(new), 2, 3)
        held[:] = [torch.cat(pair) for pair in zip(held, added.split(new), strict=True)]
        packed = layer.extend("key", added, segments)
        assert torch.equal(packed, torch.cat(held))
        rows = [torch.empty(0)] * len(held)
        order = range(len(held)) if cache.step.order is None else cache.step.order.tolist()
        names = iter(order)
        for group in cache.step.groups:
            for stored, length in zip(layer.stored("key", group), group.lengths.tolist(), strict=True):
                rows[next(names)] = stored[:, :length].transpose(0, 1)
        assert not cache.step.groups or all(torch.equal(row, own) for row, own in zip(rows, held, strict=True))
        cache.advance(new)

    grow(lengths)
    grow([1] * 5)
    for kept in ([4, 3, 1, 2], [3, 1, 0], [2, 1], [1]):
        cache.keep(kept)
        held[:] = [held[row] for row in kept]
        grow([1] * len(kept))
    with pytest.raises(ValueError, match="kept once"):
        cache.keep([0, 0])
    with pytest.raises(RuntimeError, match="segments_for"):
        SequenceCache(1, [3]).step  # noqa: B018
