"""A whole training step against transformers, dense and mixture of experts, from embeddings to the gradients of all weights.

The peer computes one row a sample, its fastest setting here: one row with restarting positions is slower, since its attention
then computes all pairs of the pack under a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from keyekit.batch import Segments
from keyekit.models.decoder import Decoder
from keyekit.models.weights import official_name
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.objectives.cross_entropy import CrossEntropy

LAYERS, DIM, HEADS, GROUPS, HEAD_DIM, HIDDEN, VOCABULARY = 8, 256, 8, 2, 32, 768, 8192
EXPERTS, ACTIVE, EXPERT_DIM = 32, 4, 192
PACKS = {
    "6 samples of 300 to 1024 tokens": (1024, 700, 512, 300, 900, 660),
    "4 samples of 1024 tokens": (1024,) * 4,  # nothing to pad: the peer's best case
}


def twins(mixture: bool, device: torch.device) -> tuple[Decoder, nn.Module]:
    """The same weights twice."""
    torch.manual_seed(0)
    experts = partial(MixtureOfExperts, num_experts=EXPERTS, active_experts=ACTIVE, expert_dim=EXPERT_DIM)
    parts = {"feed_forward": experts} if mixture else {}
    ours = Decoder(VOCABULARY, DIM, LAYERS, HEADS, GROUPS, HEAD_DIM, HIDDEN, rope_section=(4, 6, 6), **parts)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": DIM,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": HEAD_DIM,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": False,
        "attn_implementation": "sdpa",
    }
    if mixture:
        routed = {"num_experts": EXPERTS, "num_experts_per_tok": ACTIVE, "moe_intermediate_size": EXPERT_DIM}
        config = Qwen3MoeConfig(**sizes, **routed, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[])
        theirs: nn.Module = Qwen3MoeForCausalLM(config)
    else:
        theirs = Qwen3ForCausalLM(Qwen3Config(**sizes))
    weights = {official_name(f"decoder.{name}"): tensor for name, tensor in ours.state_dict().items()}
    stacked = {name: tensor.transpose(1, 2) if ".experts." in name else tensor for name, tensor in weights.items()}
    theirs.load_state_dict(stacked)
    return ours.to(device), theirs.to(device)


def rows(lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, shifted labels ``[B, S]`` and the mask of the real tokens; row after row these are the packed tokens."""
    place = torch.arange(max(lengths), device=device).expand(len(lengths), -1)
    count = torch.tensor(lengths, device=device)[:, None]
    tokens = torch.randint(1, VOCABULARY, place.shape, device=device)
    labels = tokens.roll(-1, dims=1).masked_fill(place >= count - 1, -100)
    return tokens, labels, place < count


@pytest.fixture(scope="module", params=[(kind, pack) for kind in ("dense", "mixture") for pack in PACKS])
def step(request, device, dtype) -> dict[str, Any]:
    kind, pack = request.param
    lengths = PACKS[pack]
    decoder, reference = twins(kind == "mixture", device)
    tokens, labels, mask = rows(lengths, device)
    packed, packed_labels = tokens[mask], labels[mask]
    positions = torch.cat([torch.arange(length, device=device) for length in lengths]).expand(3, -1)
    segments, targets, objective = Segments.of(lengths, device=device), int((labels != -100).sum()), CrossEntropy()
    padding = {} if mask.all() else {"attention_mask": mask.long()}

    def ours() -> Tensor:
        hidden = decoder(decoder.embed_tokens(packed), positions, segments).hidden
        return objective(hidden, decoder.lm_head.weight, packed_labels, targets) / targets

    def theirs() -> Tensor:
        return reference(tokens, **padding, use_cache=False, labels=labels, shift_labels=labels).loss

    def train(model: nn.Module, loss: Callable[[], Tensor]) -> None:
        model.zero_grad(set_to_none=True)
        loss().backward()

    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-4)
    decoder.to(dtype), reference.to(dtype)
    peer = f"transformers {type(reference).__name__}, one row a sample, sdpa"
    if kind == "mixture":
        peer += f", {reference.config._experts_implementation} experts"
    calls = {"keyekit": lambda: train(decoder, ours), "peer": lambda: train(reference, theirs)}
    return calls | {"peer name": peer, "work": f"training step, {kind}, {pack}"}


def test_training_step(step, timed, row: str) -> None:
    """Embeddings, 8 layers of width 256, output layer of 8,192 words, loss and the gradients of all weights."""
    timed(step["work"], step[row], peer=step["peer name"], rounds=3)
