"""A whole training step against transformers: dense and mixture of experts, packed, from embeddings to gradients of all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
LENGTHS = (1024, 700, 512, 300, 900, 660)  # 4,096 tokens
ATTENTIONS = ("sdpa", "eager")


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


def inputs(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Segments]:
    """Tokens, shifted labels, positions and segments of one pack of six samples."""
    tokens = torch.randint(0, VOCABULARY, (sum(LENGTHS),), device=device)
    labels = tokens.roll(-1)
    labels[torch.tensor(LENGTHS, device=device).cumsum(0) - 1] = -100
    positions = torch.cat([torch.arange(length, device=device) for length in LENGTHS])
    return tokens, labels, positions, Segments.of(LENGTHS, device=device)


@pytest.fixture(scope="module", params=["dense", "mixture"])
def step(request, device, dtype) -> dict[str, Callable]:
    decoder, reference = twins(request.param == "mixture", device)
    tokens, labels, positions, segments = inputs(device)
    targets = int((labels != -100).sum())
    objective = CrossEntropy()

    def ours() -> Tensor:
        hidden = decoder(decoder.embed_tokens(tokens), positions.expand(3, -1), segments).hidden
        return objective(hidden, decoder.lm_head.weight, labels, targets) / targets

    def theirs() -> Tensor:
        # One row whose position ids restart: transformers makes the block mask from them. Labels are shifted already.
        output = reference(
            tokens[None], position_ids=positions[None], use_cache=False, shift_labels=labels[None], labels=labels[None]
        )
        return output.loss

    def train(model: nn.Module, loss: Callable[[], Tensor]) -> None:
        model.zero_grad(set_to_none=True)
        loss().backward()

    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-4)
    decoder.to(dtype), reference.to(dtype)
    peer = f"transformers {type(reference).__name__}, sdpa" + (", grouped_mm experts" * (request.param == "mixture"))
    calls = {"keyekit": lambda: train(decoder, ours), "peer": lambda: train(reference, theirs)}
    return calls | {"name": peer, "kind": request.param}


def test_training_step(step, timed, row: str) -> None:
    work = f"training step, {step['kind']}, width 256, 8 layers, vocabulary 8192, one pack of 4096 tokens in 6 samples"
    timed(work, step[row], peer=step["name"], rounds=5)
