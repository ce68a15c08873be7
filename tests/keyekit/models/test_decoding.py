"""The two forward passes of generation: what each hands to the other."""

import importlib.util
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from keyekit.batch import Batch, Segments
from keyekit.models.decoder import Decoder
from keyekit.models.decoding import DecodeState, decode_step, prefill
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.nn.moe.hashing import Hash
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.nn.projector import MergeProjector
from keyekit.nn.vision.keye_vit import KeyeViT

_spec = importlib.util.spec_from_file_location("builders", Path(__file__).with_name("test_vision_language.py"))
builders = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(builders)


def test_text_goes_on_after_the_largest_position_of_an_image() -> None:
    """Keye-VL 8B sheet 2.3: 4 merged patches take 2 positions, so that the text is behind its place by 2."""
    parts = [builders.sample(14, [(4, 4)], 0), builders.sample(9, [], 1)]
    state = prefill(builders.network().eval(), builders.pack(parts, tail=3), 4)
    assert state.positions.tolist() == [12, 9]
    assert state.cache.lengths == [14, 9]
    state.keep([1])
    assert state.positions.tolist() == [9]
    decode_step(builders.network().eval(), state, torch.tensor([3]))
    assert (state.positions.tolist(), state.cache.lengths) == ([10], [10])


def test_routers_that_read_tokens_get_them_in_every_step() -> None:
    mixture = partial(MixtureOfExperts, num_experts=4, active_experts=2, expert_dim=24, router=Hash)
    decoder = Decoder(50, 32, 2, 2, 1, 32, 48, rope_section=(4, 6, 6), feed_forward=mixture)
    network = VisionLanguageModel(KeyeViT(24, 1, 2, 32, image_size=56), MergeProjector(24, 32), decoder).eval()
    batch = builders.sample(9, [], 0)
    state = prefill(network, builders.pack([builders.sample(9, [], 0)]), 4)
    shorter = prefill(network, builders.pack([_cut(batch, 8)]), 4)
    decode_step(network, shorter, batch.tokens[8:])
    torch.testing.assert_close(shorter.logits, state.logits)


def _cut(batch: Batch, length: int) -> Batch:
    return replace(
        batch,
        tokens=batch.tokens[:length],
        labels=batch.labels[:length],
        positions=batch.positions[:, :length],
        segments=Segments.of([length]),
        samples=(replace(batch.samples[0], stop=length),),
    )


def test_sequences_that_come_later_go_on_as_they_would_have_alone() -> None:
    network = builders.network().eval()
    parts = [builders.sample(14, [(4, 4)], 0), builders.sample(9, [], 1), builders.sample(11, [], 2)]
    state = DecodeState.reserved(network, 2, 20)
    state.adopt(prefill(network, builders.pack(parts[:2]), 0), [1])
    decode_step(network, state, torch.tensor([3]))
    state.adopt(prefill(network, builders.pack([parts[0]]), 0), [0])
    with pytest.raises(ValueError, match="all slots hold a sequence"):
        state.adopt(prefill(network, builders.pack([parts[2]]), 0), [0])
    decode_step(network, state, torch.tensor([5, 6]))
    state.keep([1])
    state.adopt(prefill(network, builders.pack([parts[2]]), 0), [0])
    decode_step(network, state, torch.tensor([7, 8]))
    for number, (part, fed) in enumerate([(parts[0], [6, 7]), (parts[2], [8])]):
        alone = prefill(network, builders.pack([part]), 4)
        for token in fed:
            decode_step(network, alone, torch.tensor([token]))
        torch.testing.assert_close(state.logits[number], alone.logits[0], rtol=1e-4, atol=1e-5)
        assert state.positions[number] == alone.positions[0]


def test_a_sequence_longer_than_its_slot_is_refused() -> None:
    network = builders.network().eval()
    with pytest.raises(ValueError, match="9 tokens does not fit a slot of 8"):
        DecodeState.reserved(network, 1, 8).adopt(prefill(network, builders.pack([builders.sample(9, [], 1)]), 0), [0])
