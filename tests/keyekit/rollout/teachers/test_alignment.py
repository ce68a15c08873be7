"""Whatever a teacher would read differently is named: words, placeholders, pictures, positions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from keyekit.data.processing.patchify import normalise_patches
from keyekit.rollout.teachers.alignment import Reading


@pytest.fixture
def reading(network, data) -> Reading:
    return Reading(network=network, tokenizer=data.tokenizer)


class Stuttering:
    """A tokenizer that has one more token for every response."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer
        self.convert_tokens_to_ids = tokenizer.convert_tokens_to_ids
        self.decode = tokenizer.decode

    def encode(self, text, add_special_tokens) -> list[int]:
        is_response = text.endswith("<|im_end|>") and "<|im_start|>" not in text
        return self.tokenizer.encode(text, add_special_tokens=False) + [5] * is_response


def test_what_student_and_teacher_read_alike_passes(reading, pack) -> None:
    assert reading.check(pack) == {"respelt": 0.0}
    assert Reading(network=reading.network).check(pack) == {}


def moved(tensor: torch.Tensor, place, value: int) -> torch.Tensor:
    changed = tensor.clone()
    changed[place] = value
    return changed


def test_positions_are_computed_again(reading, pack) -> None:
    last = pack.samples[2].stop - 1
    wrong = moved(pack.positions, (1, last), 7)
    with pytest.raises(
        ValueError, match=rf"{pack.samples[2].id}: token \d+ has position \(\d+, 7, \d+\) for the student"
    ):
        reading.check(replace(pack, positions=wrong))


def test_placeholders_are_found_again(reading, pack, data) -> None:
    first = int(pack.vision_index[0])
    with pytest.raises(ValueError, match="where they begin and end must be the same"):
        reading.check(replace(pack, tokens=moved(pack.tokens, first, 300)))
    text = next(sample for sample in pack.samples if sample.task == "sum")
    pad = data.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    with pytest.raises(ValueError, match=f"{text.id}: the teacher sees 1 placeholders of pictures"):
        reading.check(replace(pack, tokens=moved(pack.tokens, text.start + 3, pad)))


def test_a_placeholder_that_the_student_said_is_a_word_like_any_other(reading, pack, data) -> None:
    said = int((pack.labels[:-1] != -100).nonzero()[0]) + 1
    pad = data.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    labels = moved(pack.labels, said - 1, pad)
    reading.check(replace(pack, tokens=moved(pack.tokens, said, pad), labels=labels))


def test_pictures_must_come_in_the_teachers_patches(reading, pack) -> None:
    small = normalise_patches(torch.zeros(len(pack.vision.patches), 3, 7, 7, dtype=torch.uint8))
    with pytest.raises(ValueError, match="cuts patches of 7 pixels, the teacher of 14"):
        reading.check(replace(pack, vision=replace(pack.vision, patches=small)))
    thin = replace(pack.vision, grids=((1, 16), *pack.vision.grids[1:]))
    with pytest.raises(ValueError, match="1x16 patches cannot be merged 2 by 2"):
        reading.check(replace(pack, vision=thin))
    flat = replace(pack.vision, grids=tuple((2, 8) for _ in pack.vision.grids))  # as many tokens, laid out otherwise
    with pytest.raises(ValueError, match="for the teacher"):
        reading.check(replace(pack, vision=flat))


def test_ids_outside_the_vocabulary_are_refused(reading, pack) -> None:
    with pytest.raises(ValueError, match="the teacher knows 320 words: it has another vocabulary"):
        reading.check(replace(pack, tokens=moved(pack.tokens, 0, 320)))


def test_another_spelling_is_refused_in_prompts_and_counted_in_responses(network, data, pack) -> None:
    letters = Stuttering(data.tokenizer)
    assert Reading(network=network, tokenizer=letters).check(pack)["respelt"] == 1.0
    letters.encode = lambda text, add_special_tokens: [5]
    with pytest.raises(ValueError, match="it splits words differently"):
        Reading(network=network, tokenizer=letters).check(pack)
    assert Reading(network=network, tokenizer=letters, respelling="count").check(pack)["respelt"] == 1.0
    assert Reading(network=network, tokenizer=letters, respelling="ignore").check(pack)["respelt"] == 0.0
