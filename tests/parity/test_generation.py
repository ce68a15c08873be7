"""Generation against transformers on random weights: cached greedy decoding token by token, and every sampling step."""

import importlib.util
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import torch
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from keyekit.batch import Batch, SampleInfo, Segments
from keyekit.models.decoding import decode_step, prefill
from keyekit.models.generation import generate
from keyekit.models.sampling import Sampler
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.nn.projector import MergeProjector
from keyekit.nn.vision.keye_vit import KeyeViT

_spec = importlib.util.spec_from_file_location("qwen3", Path(__file__).with_name("test_qwen3.py"))
qwen3 = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(qwen3)

# The lengths are so far apart that the cache has two groups; the sparse twin selects 64 keys, which equals dense up to there.
LENGTHS = {"dense": (17, 3, 190, 8), "moe": (17, 3, 190, 8), "dsa": (17, 3, 50, 8)}
STEPS = 12


def twins(kind: str):
    reference, decoder = qwen3.twins(kind)
    vision, projector = KeyeViT(24, 1, 2, 32, image_size=56), MergeProjector(24, decoder.dim)
    return reference.eval(), VisionLanguageModel(vision, projector, decoder).eval()


def prompts(lengths: tuple[int, ...]) -> Batch:
    tokens = torch.randint(0, 96, (sum(lengths),))
    return Batch(
        tokens=tokens,
        labels=torch.full_like(tokens, -100),
        positions=torch.cat([torch.arange(length) for length in lengths]).expand(3, -1),
        segments=Segments.of(lengths),
        vision=None,
        vision_index=tokens.new_empty(0),
        samples=tuple(SampleInfo(id="", task="", start=a, stop=b) for a, b in pairwise([0, *accumulate(lengths)])),
        num_targets=0,
    )


@pytest.mark.parametrize("kind", ["dense", "moe", "dsa"])
@torch.no_grad()
def test_cached_greedy_decoding_matches_transformers_token_by_token(kind: str) -> None:
    """All prompts together against transformers' cache, one prompt at a time; logits at every step."""
    reference, network = twins(kind)
    lengths = LENGTHS[kind]
    batch = prompts(lengths)
    state = prefill(network, batch, STEPS)
    caches, logits = [DynamicCache(config=reference.config) for _ in lengths], []
    for cache, prompt in zip(caches, batch.tokens.split(lengths), strict=True):
        logits.append(reference(prompt[None], past_key_values=cache, use_cache=True).logits[0, -1])
    for step in range(STEPS):
        theirs = torch.stack(logits)
        for row, length in enumerate(lengths):
            qwen3.assert_near(state.logits[row], theirs[row], f"step {step}, prompt of {length} tokens")
        tokens = theirs.argmax(1)
        assert torch.equal(state.logits.argmax(1), tokens)
        decode_step(network, state, tokens)
        logits = [
            reference(token.view(1, 1), past_key_values=cache, use_cache=True).logits[0, -1]
            for token, cache in zip(tokens, caches, strict=True)
        ]


@pytest.mark.parametrize("kind", ["dense", "moe"])
@torch.no_grad()
def test_generate_matches_transformers_generate(kind: str) -> None:
    reference, network = twins(kind)
    lengths = LENGTHS[kind]
    batch = prompts(lengths)
    answers = generate(network, batch, stop_tokens=(), max_new_tokens=STEPS)
    for prompt, answer in zip(batch.tokens.split(lengths), answers, strict=True):
        mask = torch.ones_like(prompt)[None]  # without it token 0 would be taken for padding
        theirs = reference.generate(
            prompt[None], attention_mask=mask, do_sample=False, max_new_tokens=STEPS, pad_token_id=0
        )
        assert list(answer.tokens) == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.6},
        {"temperature": 1.0, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "repetition_penalty": 1.3},
        # Keye-VL 8B sheet 1.2: what the two 8B releases recommend.
        {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1},
        {"temperature": 0.3, "top_k": 20, "top_p": 0.8},
    ],
)
def test_the_distribution_to_draw_from_is_that_of_transformers(values: dict) -> None:
    logits, seen_tokens = torch.randn(6, 300) * 3, torch.randint(0, 300, (6, 40))
    chain = LogitsProcessorList()
    if "repetition_penalty" in values:
        chain.append(RepetitionPenaltyLogitsProcessor(values["repetition_penalty"]))
    chain.append(TemperatureLogitsWarper(values["temperature"]))
    if "top_k" in values:
        chain.append(TopKLogitsWarper(values["top_k"]))
    if "top_p" in values:
        chain.append(TopPLogitsWarper(values["top_p"]))
    expected = chain(seen_tokens, logits.clone()).log_softmax(1)
    sampler = Sampler(**values)
    seen = sampler.seen(seen_tokens.flatten(), [40] * 6, 300)
    candidates, names = sampler.candidates(logits, seen)
    ours = torch.full_like(logits, -torch.inf)
    ours = candidates if names is None else ours.scatter(1, names, candidates)
    assert torch.equal(ours.isinf(), expected.isinf())
    torch.testing.assert_close(ours, expected)
