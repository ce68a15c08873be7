"""Log-sum-exp of dense causal attention, packed, against torch; tiles with the longest work first."""

import pytest
import torch

from keyekit_kernels.dsa.dense_lse import attention_log_normaliser, tile_table

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_each_sequence_has_its_own_and_padding_has_none() -> None:
    query_lengths, key_lengths = (3, 0, 20), (5, 2, 20)
    query = torch.randn(25, 4, 16, device=DEVICE)  # two rows of padding
    key = torch.randn(27, 2, 16, device=DEVICE)
    lse = attention_log_normaliser(query, key, query_lengths, key_lengths, 0.3)
    expected, first, start = [], 0, 0
    for queries, keys in zip(query_lengths, key_lengths, strict=True):
        own = key[start : start + keys].repeat_interleave(2, 1)
        logits = torch.einsum("thk,shk->ths", query[first : first + queries], own) * 0.3
        visible = torch.arange(keys, device=DEVICE) <= torch.arange(keys - queries, keys, device=DEVICE)[:, None]
        expected.append(logits.masked_fill(~visible[:, None], -torch.inf).logsumexp(2))
        first, start = first + queries, start + keys
    torch.testing.assert_close(lse[:23], torch.cat(expected), rtol=1e-5, atol=1e-5)
    assert (lse[23:] == -1e30).all()


def test_the_longest_tiles_come_first() -> None:
    tiles, table = tile_table((3, 0, 5), (9, 2, 5), 2, torch.device("cpu"))
    assert tiles == [(2, 1, 0, 9), (0, 2, 0, 7), (7, 1, 11, 5), (5, 2, 11, 3), (3, 2, 11, 1)]
    assert table.tolist() == [list(tile) for tile in tiles]
    assert table.dtype == torch.int32
    assert tile_table((), (), 2, torch.device("cpu"))[1].shape == (0, 4)
    with pytest.raises(ValueError, match="3 queries and 2 keys"):
        tile_table((3,), (2,), 2, torch.device("cpu"))
