"""Names in all their forms."""

import pytest

from keyekit.models.weights.names import (
    Place,
    canonical_name,
    expert_names,
    is_passenger,
    official_name,
    own_name,
    place_of,
)
from keyekit.testing.checkpoint import tiny_checkpoint


@pytest.mark.parametrize("family", ["Keye", "KeyeVL1_5", "KeyeVL2"])
def test_own_and_official_names_are_inverse(tmp_path, family) -> None:
    for name in tiny_checkpoint(tmp_path, family):
        assert official_name(own_name(name)) == name
        assert own_name(name) != name


def test_only_the_main_projections_move_into_a_module_of_ours() -> None:
    stem = "model.layers.11.self_attn"
    assert own_name(f"{stem}.k_norm.weight") == "decoder.layers.11.self_attn.projection.k_norm.weight"
    assert own_name(f"{stem}.o_proj.weight") == "decoder.layers.11.self_attn.o_proj.weight"
    assert own_name(f"{stem}.sa_indexer.k_proj.weight") == "decoder.layers.11.self_attn.sa_indexer.k_proj.weight"
    vision = "visual.vision_model.encoder.layers.0.self_attn.q_proj.bias"
    assert own_name(vision) == "vision.encoder.layers.0.self_attn.q_proj.bias"


def test_names_of_transformers_become_official() -> None:
    """Keye-VL 8B sheet 1.6."""
    assert canonical_name("model.visual.vision_model.post_layernorm.bias") == "visual.vision_model.post_layernorm.bias"
    assert canonical_name("model.mm_projector.linear_2.weight") == "mlp_AR.linear_2.weight"
    assert canonical_name("model.language_model.layers.3.mlp.up_proj.weight") == "model.layers.3.mlp.up_proj.weight"
    assert canonical_name("lm_head.weight") == "lm_head.weight"


def test_single_experts_have_a_place_in_the_stack() -> None:
    """Keye-VL-2.0 sheet 5: in x out, the gate is the first half of the last axis."""
    stem = "model.layers.0.mlp.experts"
    up = place_of(f"{stem}.5.up_proj.weight")
    assert up == Place(tensor=f"{stem}.gate_up_proj", expert=5, part="up")
    assert up.region((8, 32, 40)) == ((5, 0, 20), (1, 32, 20))
    assert up.stored_shape((8, 32, 40)) == (20, 32)
    assert place_of(f"{stem}.5.gate_proj.weight").region((8, 32, 40)) == ((5, 0, 0), (1, 32, 20))
    assert place_of(f"{stem}.5.down_proj.weight").region((8, 20, 32)) == ((5, 0, 0), (1, 20, 32))
    assert place_of("model.layers.0.mlp.shared_expert.up_proj.weight").expert is None
    assert place_of("model.norm.weight").region((7,)) == ((0,), (7,))


def test_stacked_experts_are_listed_one_by_one() -> None:
    shapes = {
        "a.mlp.gate.weight": (2, 4),
        "a.mlp.experts.gate_up_proj": (2, 4, 6),
        "a.mlp.experts.down_proj": (2, 3, 4),
    }
    assert list(expert_names(shapes, "fused")) == list(shapes)
    assert list(expert_names(shapes, "separate")) == [
        "a.mlp.gate.weight",
        "a.mlp.experts.0.gate_proj.weight",
        "a.mlp.experts.0.up_proj.weight",
        "a.mlp.experts.1.gate_proj.weight",
        "a.mlp.experts.1.up_proj.weight",
        "a.mlp.experts.0.down_proj.weight",
        "a.mlp.experts.1.down_proj.weight",
    ]


def test_passengers_are_what_the_sheets_call_unused() -> None:
    assert is_passenger("visual.vision_model.embeddings.packing_position_embedding.weight")
    assert is_passenger("visual.vision_model.head.mlp.fc1.bias")
    assert is_passenger("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not is_passenger("visual.vision_model.embeddings.position_embedding.weight")
    assert not is_passenger("lm_head.weight")
