"""The packed decoder against transformers' Qwen3 with the same weights, in training and in generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from keyekit.batch import Batch, SampleInfo, Segments
from keyekit.models.decoder import Decoder
from keyekit.models.generation import generate
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.models.weights import official_name
from keyekit.nn.projector import MergeProjector
from keyekit.nn.vision.keye_vit import KeyeViT

VOCABULARY, HEAD_DIM, GROUPS, NEW_TOKENS = 1024, 32, 2, 32
TRAINING, PROMPTS = (17, 200, 64, 31, 120, 96, 150, 48), (12, 40, 25, 33, 18, 29, 21, 36)
TRAINING_PEERS = {
    "padded": "transformers Qwen3Model, padded batch with attention mask, sdpa",
    "packed": "transformers Qwen3Model, one row with restarting position ids, sdpa",
}


def twins(device: torch.device) -> tuple[Decoder, Qwen3ForCausalLM]:
    """The same weights twice; larger on a GPU, where a small model times nothing but launches."""
    torch.manual_seed(0)
    width, layers = (256, 4) if device.type == "cpu" else (2048, 8)
    ours = Decoder(VOCABULARY, width, layers, width // HEAD_DIM, GROUPS, HEAD_DIM, 3 * width, rope_section=(4, 6, 6))
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_DIM,
        num_key_value_heads=GROUPS,
        head_dim=HEAD_DIM,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    theirs = Qwen3ForCausalLM(config)
    theirs.load_state_dict({official_name(f"decoder.{name}"): tensor for name, tensor in ours.state_dict().items()})
    return ours.to(device), theirs.to(device)


def padded(lengths: Sequence[int], device: torch.device, *, left: bool) -> tuple[Tensor, Tensor]:
    """Tokens ``[B, S]`` and the mask of the real ones, which row after row are the packed tokens."""
    place = torch.arange(max(lengths), device=device).expand(len(lengths), -1)
    count = torch.tensor(lengths, device=device)[:, None]
    mask = place >= max(lengths) - count if left else place < count
    return torch.randint(1, VOCABULARY, mask.shape, device=device) * mask, mask


def packed(tokens: Tensor, lengths: Sequence[int]) -> Batch:
    return Batch(
        tokens=tokens,
        labels=torch.full_like(tokens, -100),
        positions=torch.cat([torch.arange(n, device=tokens.device) for n in lengths]).expand(3, -1),
        segments=Segments.of(lengths, device=tokens.device),
        vision=None,
        vision_index=tokens.new_empty(0),
        samples=tuple(SampleInfo(id="", task="", start=a, stop=b) for a, b in pairwise([0, *accumulate(lengths)])),
        num_targets=0,
    )


@pytest.fixture(scope="module", params=TRAINING_PEERS)
def training(request, training_step, device, dtype) -> dict[str, Callable]:
    decoder, reference = twins(device)
    reference = reference.model  # without the output layer
    tokens, mask = padded(TRAINING, device, left=False)
    batch = packed(tokens[mask], TRAINING)

    def ours() -> Tensor:
        return decoder(decoder.embed_tokens(batch.tokens), batch.positions, batch.segments).hidden

    def theirs() -> Tensor:
        if request.param == "padded":
            return reference(tokens, attention_mask=mask.long(), use_cache=False).last_hidden_state[mask]
        return reference(batch.tokens[None], position_ids=batch.positions[:1], use_cache=False).last_hidden_state[0]

    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-3)
    decoder.to(dtype), reference.to(dtype)
    calls = {"keyekit": lambda: training_step(decoder, ours), "peer": lambda: training_step(reference, theirs)}
    return calls | {"name": TRAINING_PEERS[request.param]}


def test_training(training, timed, row: str) -> None:
    timed("Decoder, forward and backward, 8 samples of 17 to 200 tokens", training[row], peer=training["name"])


@pytest.fixture(scope="module")
def generation(device, dtype) -> dict[str, Callable[[], list[list[int]]]]:
    decoder, reference = twins(device)
    vision, projector = KeyeViT(24, 1, 2, 32, image_size=56), MergeProjector(24, decoder.dim)
    network = VisionLanguageModel(vision, projector, decoder).to(device).eval()
    tokens, mask = padded(PROMPTS, device, left=True)
    greedy = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0, eos_token_id=None)

    def ours() -> list[list[int]]:
        answers = generate(network, packed(tokens[mask], PROMPTS), stop_tokens=(), max_new_tokens=NEW_TOKENS)
        return [list(answer.tokens) for answer in answers]

    def theirs() -> list[list[int]]:
        answers = reference.generate(tokens, attention_mask=mask.long(), generation_config=greedy)
        return answers[:, tokens.shape[1] :].tolist()

    assert ours() == theirs()
    network.to(dtype), reference.to(dtype)
    return {"keyekit": ours, "peer": theirs}


def test_generation(generation, timed, row: str) -> None:
    peer = "transformers generate, left-padded, sdpa"
    timed("generate, 32 greedy tokens for 8 prompts of 12 to 40", generation[row], peer=peer)
