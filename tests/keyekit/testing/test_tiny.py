from __future__ import annotations

import torch

from keyekit.batch import IGNORED_LABEL
from keyekit.nn.attention.dsa import DSA
from keyekit.testing.tiny import tiny_batch, tiny_context, tiny_vision_language_model


def test_the_tiny_model_reads_the_tiny_batch():
    batch = tiny_batch()
    model = tiny_vision_language_model()
    assert model(batch).hidden.shape == (batch.tokens.shape[0], 32)
    assert sum(parameter.numel() for parameter in model.parameters()) < 100_000


def test_parts_of_the_tiny_model_can_be_chosen():
    model = tiny_vision_language_model(
        attention=lambda spec: DSA(spec, topk=2, num_indexer_heads=2, indexer_head_dim=8)
    )
    assert "indexer_kl" in model(tiny_batch()).losses


def test_labels_are_shifted_and_leave_out_images_and_tail():
    batch = tiny_batch(lengths=(6, 5), grids=(None, (2, 2)), tail=2)
    assert torch.equal(batch.labels[:5], batch.tokens[1:6])
    assert batch.labels[5] == IGNORED_LABEL
    assert (batch.labels[-2:] == IGNORED_LABEL).all()
    assert batch.vision_index.tolist() == [7]
    assert batch.num_targets == int((batch.labels != IGNORED_LABEL).sum())


def test_a_batch_without_images_has_no_vision():
    assert tiny_batch(grids=(None, None)).vision is None


def test_the_context_counts_every_sequence_from_zero():
    assert tiny_context([3, 2]).rotary.positions[0].tolist() == [0, 1, 2, 0, 1]
