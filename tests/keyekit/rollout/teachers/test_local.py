"""A teacher in the process says what its logits say."""

from __future__ import annotations

import pytest
import torch

from keyekit.models.pretrained import continued_config
from keyekit.models.weights import save_weights
from keyekit.objectives.distillation.base import target_rows
from keyekit.rollout.teachers.local import LocalTeacher


@pytest.fixture
def targets(pack) -> torch.Tensor:
    return target_rows(pack.labels, pack.num_targets)


def test_its_best_words_are_those_of_its_logits(network, pack, log_probs, targets, data) -> None:
    scores = LocalTeacher.of(network, data.tokenizer).score(pack, topk=5)
    best = log_probs[targets].topk(5)
    assert torch.equal(scores.words.indices[targets], best.indices)
    torch.testing.assert_close(scores.words.log_probs[targets], best.values)
    assert scores.answered == (True,) * len(pack.samples)
    assert scores.meters == {"respelt": 0.0}
    elsewhere = torch.ones(len(pack.tokens), dtype=torch.bool)
    elsewhere[targets] = False
    assert not scores.words.log_probs[elsewhere].any()


def test_it_scores_the_words_that_are_asked_for(network, pack, log_probs, targets) -> None:
    asked = torch.randint(0, 320, (len(pack.tokens), 3))
    words = LocalTeacher.of(network).score(pack, topk=1, asked=asked).words
    assert torch.equal(words.indices[targets], asked[targets])
    torch.testing.assert_close(words.log_probs[targets], log_probs[targets].gather(1, asked[targets]))


def test_its_head_gives_all_words_and_learns_nothing(network, pack, log_probs) -> None:
    head = LocalTeacher.of(network).head(pack)
    assert not head.hidden.requires_grad
    torch.testing.assert_close((head.hidden @ head.weight.T).log_softmax(-1), log_probs)


def test_a_folder_is_read_when_it_is_needed(network, pack, data, tmp_path, log_probs, targets) -> None:
    import json

    teacher = LocalTeacher(str(tmp_path / "export"), offload=True)
    with pytest.raises((FileNotFoundError, OSError)):
        _ = teacher.reading
    save_weights(network, tmp_path / "export")
    data.export_processor(tmp_path / "export")
    (tmp_path / "export" / "config.json").write_text(json.dumps(continued_config(network)))
    teacher.move("cpu")
    words = teacher.score(pack, topk=2).words
    assert torch.equal(words.indices[targets], log_probs[targets].topk(2).indices)
    assert teacher.vocabulary().tokens[0] == data.tokenizer.convert_ids_to_tokens(0)
    assert not any(parameter.requires_grad for parameter in teacher.reading.network.parameters())
