"""The decoder against transformers' Qwen3 and Qwen3-MoE on random weights: hidden states, logits and every gradient."""

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


def twins(kind: str):
    """The same random weights as transformers' model and as ours."""
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
    return reference, decoder


def hidden_states(decoder: Decoder) -> list[torch.Tensor]:
    """Filled by the next forward pass: the input of every layer, then the normalised output."""
    seen: list[torch.Tensor] = []
    for layer in decoder.layers:
        layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    decoder.norm.register_forward_hook(lambda _, arguments, output: seen.append(output))
    return seen


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, name: str) -> None:
    error = ((ours - theirs).norm() / theirs.norm()).item()
    assert error <= 1e-5, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("kind", ["dense", "moe", "dsa"])
def test_hidden_states_logits_and_gradients_match_transformers(kind: str) -> None:
    reference, decoder = twins(kind)
    seen = hidden_states(decoder)
    tokens = torch.randint(0, 96, (3, 17))
    positions, segments = packed(tokens)
    ours = decoder.logits(decoder(decoder.embed_tokens(tokens.flatten()), positions, segments).hidden)
    output = reference(tokens, output_hidden_states=True)
    theirs = output.logits.flatten(0, 1)
    for index, (mine, other) in enumerate(zip(seen, output.hidden_states, strict=True)):
        assert_near(mine, other.flatten(0, 1), f"hidden state {index}")
    assert_near(ours, theirs, "logits")

    weight = torch.randn_like(theirs)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    gradients = dict(reference.named_parameters())
    for name, parameter in decoder.named_parameters():
        if "sa_indexer" in name:
            assert parameter.grad is None, "the prediction loss must not reach the indexer"
            continue
        expected = gradients[official_name("decoder." + name)].grad
        assert_near(parameter.grad, expected.transpose(1, 2) if ".experts." in name else expected, name)


def test_equal_channels_are_plain_rope() -> None:
    """Keye-VL-2.0 sheet 16 item 7: the reference knows one position, ours three; text at any offset gives the same."""
    reference, decoder = twins("dense")
    tokens = torch.randint(0, 96, (1, 23))
    positions, segments = packed(tokens)
    shifted = positions + 11
    ours = decoder.logits(decoder(decoder.embed_tokens(tokens[0]), shifted, segments).hidden)
    assert_near(ours, reference(tokens, position_ids=shifted[:1]).logits[0], "logits")
    spread = positions * torch.tensor([[1], [2], [3]])
    moved = decoder.logits(decoder(decoder.embed_tokens(tokens[0]), spread, segments).hidden)
    assert (moved - ours).norm() / ours.norm() > 1e-3, "unequal channels must change the result"
