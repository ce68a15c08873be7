"""Choices are cut apart by sequence and put together for another pack."""

from __future__ import annotations

import torch

from keyekit.batch import Segments
from keyekit.models.decoder import LayerSelection
from keyekit.rollout.ledger import Recorder, disagreement, replayed, split_by_sequence


def test_keys_are_counted_from_the_sequence_and_shifted_in_the_pack() -> None:
    segments = Segments.of([1, 1], key_lengths=[3, 5])  # one new token each, while decoding
    layer = LayerSelection(keys=torch.tensor([[0, 2, -1], [3, 6, 7]]), experts=torch.tensor([[4, 1], [0, 5]]))
    first, second = split_by_sequence([layer, LayerSelection()], segments)
    assert first[0].keys.tolist() == [[0, 2, -1]]
    assert second[0].keys.tolist() == [[0, 3, 4]]
    assert second[0].experts.tolist() == [[0, 5]]
    assert second[1] == LayerSelection()
    recorders = [Recorder(), Recorder()]
    for recorder, part in zip(recorders, (first, second), strict=True):
        recorder.add(part)
    pack = replayed([recorder.ledger() for recorder in recorders], 4, "cpu")
    assert pack[0].keys.tolist() == [[0, 2, -1], [1, 4, 5], [2, -1, -1], [3, -1, -1]]
    assert pack[0].experts.tolist() == [[4, 1], [0, 5], [0, 1], [0, 1]]
    assert pack[1] == LayerSelection()


def test_responses_share_the_choices_of_their_prompt_and_then_part() -> None:
    recorder = Recorder()
    recorder.add([LayerSelection(experts=torch.tensor([[1], [2]]))])
    one, other = recorder.fork(), recorder.fork()
    one.add([LayerSelection(experts=torch.tensor([[3]]))])
    assert one.ledger().layers[0].experts.tolist() == [[1], [2], [3]]
    assert other.ledger().layers[0].experts.tolist() == [[1], [2]]
    assert len(one.ledger()) == 3
    assert len(Recorder().ledger()) == 0


def test_steps_that_select_more_keys_widen_the_rows_before() -> None:
    recorder = Recorder()
    recorder.add([LayerSelection(keys=torch.tensor([[0]]))])
    recorder.add([LayerSelection(keys=torch.tensor([[0, 1]]))])
    assert recorder.ledger().layers[0].keys.tolist() == [[0, -1], [0, 1]]


def test_disagreement_counts_recorded_choices_that_were_not_taken() -> None:
    recorded = [
        LayerSelection(experts=torch.tensor([[0, 1], [2, 3], [0, 1]]), keys=torch.tensor([[0, -1], [1, 0], [2, -1]])),
        LayerSelection(experts=torch.tensor([[5, 4], [1, 0], [0, 1]])),
    ]
    taken = [
        LayerSelection(experts=torch.tensor([[1, 0], [2, 7], [6, 7]]), keys=torch.tensor([[0, -1], [0, -1], [9, 9]])),
        LayerSelection(experts=torch.tensor([[4, 5], [6, 7], [6, 7]])),
    ]
    shares = disagreement(recorded, taken, num_tokens=2)  # the third token is padding
    assert shares["router_disagreement"].item() == 3 / 8  # order does not count
    assert abs(shares["index_disagreement"].item() - 1 / 3) < 1e-6
    assert not any(share.item() for share in disagreement(recorded, recorded, 3).values())
    assert disagreement([LayerSelection()], [LayerSelection()], 3) == {}
