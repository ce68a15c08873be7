"""What is sent is what arrives, and what is no pack is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from keyekit.objectives.distillation.base import target_rows
from keyekit.objectives.distillation.topk import TopK
from keyekit.rollout.teachers.wire import pack_answer, pack_question, unpack_answer, unpack_question


def test_a_pack_arrives_as_it_was(pack) -> None:
    asked = torch.randint(0, 320, (len(pack.tokens), 3))
    data = pack_question(pack, 7, asked)
    found = unpack_question(data)
    for name in ("tokens", "labels", "positions", "vision_index"):
        assert torch.equal(getattr(found.batch, name), getattr(pack, name)), name
    assert torch.equal(found.batch.vision.patches, pack.vision.patches)
    assert (found.batch.vision.grids, found.batch.vision.frames) == (pack.vision.grids, pack.vision.frames)
    assert [(s.id, s.start, s.stop) for s in found.batch.samples] == [(s.id, s.start, s.stop) for s in pack.samples]
    assert (found.batch.segments.lengths, found.batch.num_targets) == (pack.segments.lengths, pack.num_targets)
    rows = target_rows(pack.labels, pack.num_targets)
    assert torch.equal(found.asked[rows], asked[rows])
    assert found.topk == 7
    assert len(data) < 4 * pack.vision.patches.numel()  # pictures go with eight bits per channel


def test_pictures_that_were_never_eight_bits_arrive_too(pack) -> None:
    noise = replace(pack.vision, patches=torch.randn_like(pack.vision.patches))
    found = unpack_question(pack_question(replace(pack, vision=noise), 1))
    assert torch.equal(found.batch.vision.patches, noise.patches)


def test_words_arrive_as_they_were() -> None:
    words = TopK(indices=torch.tensor([[1, 2], [3, 4], [5, 6]]), log_probs=-torch.rand(3, 2))
    found = unpack_answer(pack_answer(words, torch.tensor([0, 2])), 2)
    assert found.indices.tolist() == [[1, 2], [5, 6]]
    assert torch.equal(found.log_probs, words.log_probs[[0, 2]])
    with pytest.raises(ValueError, match="answers for 2 tokens, 3 were asked about"):
        unpack_answer(pack_answer(words, torch.tensor([0, 2])), 3)
    with pytest.raises(ValueError, match="this is no answer of a teacher"):
        unpack_answer(b"hello", 1)


def changed(pack, about=None, **tensors) -> bytes:
    data = pack_question(pack, 4)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])["__metadata__"]["meta"]
    return save({**load(data), **tensors}, {"meta": header if about is None else about})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"labels": torch.zeros(3, dtype=torch.int32)}, "do not fit each other"),
        ({"lengths": torch.tensor([1, 2], dtype=torch.int32)}, "do not fit each other"),
        ({"vision_index": torch.tensor([5, 4], dtype=torch.int32)}, "do not fit each other"),
        ({"vision_index": torch.tensor([-1], dtype=torch.int32)}, "do not fit each other"),
        ({"frames": torch.tensor([1], dtype=torch.int32)}, "patches, grids and frames"),
        ({"grids": torch.tensor([[0, 4]], dtype=torch.int32)}, "patches, grids and frames"),
        ({"asked": torch.zeros(2, 2, dtype=torch.int32)}, "ids .* are asked about"),
        ({"about": "[]"}, "this is no pack of a student"),
        ({"about": '{"topk": 1, "samples": [["a", 0, 5]]}'}, "do not fit each other"),
    ],
)
def test_what_does_not_fit_is_refused(pack, what, message) -> None:
    with pytest.raises(ValueError, match=message):
        unpack_question(changed(pack, **what))


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}", (1 << 62).to_bytes(8, "little") + b"{}"])
def test_bytes_that_are_no_pack_are_refused(data) -> None:
    with pytest.raises(ValueError, match="this is no pack of a student"):
        unpack_question(data)
