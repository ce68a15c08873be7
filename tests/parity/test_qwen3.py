"""The decoder against transformers' Qwen3 and Qwen3-MoE on random weights: logits and gradients."""

from functools import partial

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from keyekit.batch import Segments
from keyekit.models.decoder import Decoder
from keyekit.models.weights import official_name
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.moe.mixture import MixtureOfExperts

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
}


def our_decoder(**parts) -> Decoder:
    return Decoder(
        vocab_size=96,
        dim=64,
        num_layers=2,
        num_heads=4,
        num_groups=2,
        head_dim=32,
        hidden_dim=112,
        rope_section=(4, 6, 6),
        **parts,
    )


def copy_from(reference, decoder: Decoder, transpose_experts: bool) -> None:
    theirs = reference.state_dict()
    for name, tensor in decoder.state_dict().items():
        if "sa_indexer" in name:
            continue
        source = theirs[official_name("decoder." + name)]
        if transpose_experts and ".experts." in name:
            source = source.transpose(1, 2)
        tensor.copy_(source)


def packed(tokens: torch.Tensor) -> tuple[torch.Tensor, Segments]:
    count, length = tokens.shape
    return torch.arange(length).repeat(count).expand(3, -1), Segments.of([length] * count)


@pytest.mark.parametrize("kind", ["dense", "moe", "dsa"])
def test_logits_and_gradients_match_transformers(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "moe":
        extra = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "norm_topk_prob": True}
        reference = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **extra, decoder_sparse_step=1, mlp_only_layers=[]))
        decoder = our_decoder(feed_forward=partial(MixtureOfExperts, num_experts=6, active_experts=2, expert_dim=40))
    else:
        reference = Qwen3ForCausalLM(Qwen3Config(**SIZES))
        # Keye-VL-2.0 sheet 16 item 2: with topk >= length, sparse attention equals dense attention.
        sparse = partial(DSA, topk=64, num_indexer_heads=2, indexer_head_dim=16, kl_weight=0.0)
        decoder = our_decoder(**({"attention": sparse} if kind == "dsa" else {}))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # away from the initial ones of the norms
        copy_from(reference, decoder, transpose_experts=True)
    tokens = torch.randint(0, 96, (3, 17))
    positions, segments = packed(tokens)
    ours = decoder.logits(decoder(decoder.embed_tokens(tokens.flatten()), positions, segments).hidden)
    theirs = reference(tokens).logits.flatten(0, 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

    weight = torch.randn_like(theirs)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    gradients = dict(reference.named_parameters())
    for name, parameter in decoder.named_parameters():
        if "sa_indexer" in name:
            assert parameter.grad is None, "the prediction loss must not reach the indexer"
            continue
        expected = gradients[official_name("decoder." + name)].grad
        if ".experts." in name:
            expected = expected.transpose(1, 2)
        torch.testing.assert_close(
            parameter.grad, expected, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )
