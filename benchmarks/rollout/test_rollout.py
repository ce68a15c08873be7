"""Rollouts of several responses to each prompt, of ragged lengths, against transformers' generate."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from keyekit.batch import IGNORED_LABEL
from keyekit.data.encode import EncodedSample
from keyekit.data.sample import Sample
from keyekit.models.sampling import Sampler
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.nn.projector import MergeProjector
from keyekit.nn.vision.keye_vit import KeyeViT
from keyekit.rollout.engine import RolloutSpec
from keyekit.rollout.native import NativeEngine
from keyekit.rollout.trajectory import Prompt

_spec = importlib.util.spec_from_file_location("training", Path(__file__).parents[1] / "model" / "test_training.py")
assert _spec is not None
assert _spec.loader is not None
training = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(training)

PROMPTS = tuple(range(16, 272, 8))  # 32 prompts
RESPONSES = 8
MOST_NEW_TOKENS = 256
STOP_SHARE = 64  # one of so many tokens ends a response: about 64 tokens on average


def prompt(tokens: torch.Tensor, name: str) -> Prompt:
    length = len(tokens)
    encoded = EncodedSample(
        tokens=tokens,
        labels=torch.full((length,), IGNORED_LABEL),
        positions=torch.arange(length).expand(3, -1),
        spans=(),
        sample=Sample(id=name, task="", messages=()),
        keys=(),
        media=(),
    )
    return Prompt(encoded=encoded, pictures=[])


@pytest.fixture(scope="module", params=["dense", "mixture"])
def rollout(request, device, dtype) -> dict:
    decoder, reference = training.twins(request.param == "mixture", device)
    vision, projector = KeyeViT(24, 1, 2, 32, image_size=56), MergeProjector(24, decoder.dim)
    network = VisionLanguageModel(vision, projector, decoder).to(device, dtype).eval()
    reference.to(dtype).eval()
    torch.manual_seed(0)
    questions = [torch.randint(1, training.VOCABULARY, (length,)) for length in PROMPTS]
    stop = list(range(1, training.VOCABULARY, STOP_SHARE))
    place = torch.arange(max(PROMPTS), device=device)
    mask = place >= max(PROMPTS) - torch.tensor(PROMPTS, device=device)[:, None]  # left-padded
    padded = torch.zeros(mask.shape, dtype=torch.int64, device=device)
    padded[mask] = torch.cat(questions).to(device)
    drawn = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=MOST_NEW_TOKENS,
        num_return_sequences=RESPONSES,
        pad_token_id=0,
        eos_token_id=stop,
    )
    engine = NativeEngine(RolloutSpec(network, stop, MOST_NEW_TOKENS))
    prompts = [prompt(tokens, str(number)) for number, tokens in enumerate(questions)]

    same = NativeEngine(RolloutSpec(network, (), 8, Sampler()), slots=3).rollout(prompts, 1, seed=0)
    greedy = GenerationConfig(do_sample=False, max_new_tokens=8, pad_token_id=0, eos_token_id=None)
    answers = reference.generate(padded, attention_mask=mask.long(), generation_config=greedy)[:, padded.shape[1] :]
    assert [list(group[0].tokens) for group in same] == answers.tolist()  # the same model, before it is timed

    def ours() -> int:
        return sum(len(t.tokens) for group in engine.rollout(prompts, RESPONSES, seed=0) for t in group)

    def theirs() -> int:
        answers = reference.generate(padded, attention_mask=mask.long(), generation_config=drawn)[:, padded.shape[1] :]
        return int((answers != 0).sum())

    return {"keyekit": ours, "peer": theirs, "kind": request.param, "peer name": "transformers generate, left-padded"}


def test_rollout(rollout, timed, row: str) -> None:
    """Embeddings, 8 layers of width 256, output layer of 8,192 words; temperature 1, log-probability of every token."""
    work = f"rollout, {rollout['kind']}, 32 prompts of 16 to 264 x 8 responses of 64 tokens on average, 256 at most"
    timed(work, rollout[row], peer=rollout["peer name"], rounds=3)
