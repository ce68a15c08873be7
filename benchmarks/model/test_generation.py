"""Batched generation of ragged prompts against transformers: left-padded, which is the peer's only way to batch them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from keyekit.batch import Batch, SampleInfo, Segments
from keyekit.models.generation import generate
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.nn.projector import MergeProjector
from keyekit.nn.vision.keye_vit import KeyeViT

_spec = importlib.util.spec_from_file_location("training", Path(__file__).with_name("test_training.py"))
assert _spec is not None
assert _spec.loader is not None
training = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(training)

PROMPTS = (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448, 480, 512)
NEW_TOKENS = 128


def packed(tokens: torch.Tensor) -> Batch:
    return Batch(
        tokens=tokens,
        labels=torch.full_like(tokens, -100),
        positions=torch.cat([torch.arange(n, device=tokens.device) for n in PROMPTS]).expand(3, -1),
        segments=Segments.of(PROMPTS, device=tokens.device),
        vision=None,
        vision_index=tokens.new_empty(0),
        samples=tuple(SampleInfo(id="", task="", start=a, stop=b) for a, b in pairwise([0, *accumulate(PROMPTS)])),
        num_targets=0,
    )


@pytest.fixture(scope="module", params=["dense", "mixture"])
def generation(request, device, dtype) -> dict:
    decoder, reference = training.twins(request.param == "mixture", device)
    vision, projector = KeyeViT(24, 1, 2, 32, image_size=56), MergeProjector(24, decoder.dim)
    network = VisionLanguageModel(vision, projector, decoder).to(device).eval()
    reference.eval()
    place = torch.arange(max(PROMPTS), device=device)
    mask = place >= max(PROMPTS) - torch.tensor(PROMPTS, device=device)[:, None]  # left-padded
    tokens = torch.randint(1, training.VOCABULARY, mask.shape, device=device) * mask
    batch = packed(tokens[mask])
    greedy = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0, eos_token_id=None)

    def ours() -> list[list[int]]:
        return [list(a.tokens) for a in generate(network, batch, stop_tokens=(), max_new_tokens=NEW_TOKENS)]

    def theirs() -> list[list[int]]:
        answers = reference.generate(tokens, attention_mask=mask.long(), generation_config=greedy)
        return answers[:, tokens.shape[1] :].tolist()

    assert ours() == theirs()
    network.to(dtype), reference.to(dtype)
    calls: dict[str, Callable] = {"keyekit": ours, "peer": theirs}
    return calls | {"kind": request.param, "peer name": "transformers generate, left-padded, sdpa"}


def test_generation(generation, timed, row: str) -> None:
    """Embeddings, 8 layers of width 256, output layer of 8,192 words; prompts read once, then token by token."""
    work = f"generate, {generation['kind']}, {NEW_TOKENS} greedy tokens for 16 prompts of 32 to 512"
    timed(work, generation[row], peer=generation["peer name"], rounds=3)
