"""The lightning indexer's projections."""

import torch
from torch.nn import functional

from keyekit.nn.attention.indexer import LightningIndexer
from keyekit.nn.rope.rotary import MultimodalRope, Rotary
from keyekit_kernels.dsa.quantization import hadamard
from keyekit_kernels.dsa.reference import indexer_scores


def test_projections_follow_the_sheet() -> None:
    # Keye-VL-2.0 sheet 4.1 items 1 to 3
    torch.manual_seed(0)
    indexer = LightningIndexer(dim=24, num_heads=3, head_dim=16)
    hidden = torch.randn(7, 24)
    rotary = Rotary(MultimodalRope(head_dim=32, section=(4, 6, 6)), torch.arange(7).expand(3, -1))
    query, key, gate = indexer(hidden, rotary)
    assert (query.shape, key.shape, gate.shape) == ((7, 3, 16), (7, 16), (7, 3))
    raw = hidden @ indexer.q_proj.weight.T
    torch.testing.assert_close(gate, raw[:, 48:])
    heads = raw[:, :48].view(7, 3, 16)
    normal = heads / (heads.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(query[0], normal[0])  # position 0 is not rotated
    torch.testing.assert_close(query[1:], rotary(normal)[1:])
    torch.testing.assert_close(key[0], functional.layer_norm(hidden @ indexer.k_proj.weight.T, (16,), eps=1e-6)[0])
    assert not torch.allclose(key[3], functional.layer_norm(hidden @ indexer.k_proj.weight.T, (16,), eps=1e-6)[3])


def test_the_hadamard_rotation_changes_no_score() -> None:
    """Keye-VL-2.0 sheet 4.1 item 4: it is common to queries and keys, so only rounding would tell."""
    torch.manual_seed(0)
    indexer = LightningIndexer(dim=24, num_heads=3, head_dim=16)
    rotary = Rotary(MultimodalRope(head_dim=32, section=(4, 6, 6)), torch.arange(9).expand(3, -1))
    query, key, gate = indexer(torch.randn(9, 24), rotary)
    plain = indexer_scores(query, key, gate)
    rotated = indexer_scores(hadamard(query), hadamard(key), gate)
    assert not torch.allclose(hadamard(query), query, atol=0.1)
    torch.testing.assert_close(rotated, plain, rtol=1e-5, atol=1e-5)
