"""Samples taken out of a pack are what they were in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from keyekit.rollout.teachers.selection import select_samples, vision_of_samples


@pytest.mark.parametrize("chosen", [[0], [3, 1], [5, 4, 2, 0], [0, 1, 2, 3, 4, 5]])
def test_a_selection_is_read_as_it_was_in_the_pack(chosen, pack, network, log_probs) -> None:
    part = select_samples(pack, chosen)
    assert [sample.id for sample in part.samples] == [pack.samples[number].id for number in chosen]
    with torch.no_grad():
        found = network.decoder.logits(network(part).hidden).log_softmax(-1)
    spans = [slice(pack.samples[number].start, pack.samples[number].stop) for number in chosen]
    torch.testing.assert_close(found, torch.cat([log_probs[span] for span in spans]), atol=2e-5, rtol=1e-4)
    assert torch.equal(part.labels, torch.cat([pack.labels[span] for span in spans]))
    assert part.num_targets == int((part.labels != -100).sum())


def test_texts_alone_have_no_pictures(pack) -> None:
    texts = [number for number, sample in enumerate(pack.samples) if sample.task == "sum"]
    part = select_samples(pack, texts)
    assert part.vision is None
    assert not len(part.vision_index)
    assert select_samples(pack, []).num_targets == 0


def test_pictures_that_do_not_add_up_are_refused(pack) -> None:
    with pytest.raises(ValueError, match="merge patches differently"):
        vision_of_samples(pack, merge=4)
    with pytest.raises(ValueError, match="placeholders, but no picture"):
        vision_of_samples(replace(pack, vision=None))
    with pytest.raises(ValueError, match="placeholders"):
        vision_of_samples(replace(pack, vision_index=pack.vision_index[:-4]), merge=2)
