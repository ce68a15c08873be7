"""The share of keys that sparse schemes report."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from keyekit.nn.attention.share import key_share, real_segments
from keyekit.testing.tiny import tiny_context


def test_the_tail_is_no_sample() -> None:
    context = replace(tiny_context([3, 0, 2, 4]), num_tokens=5)
    assert list(real_segments(context)) == [(3, 3), (0, 0), (2, 2)]
    share = key_share(context, lambda queries, keys: queries, torch.device("cpu"))
    assert share.item() == pytest.approx(5 / 9)


def test_a_pack_without_samples_has_no_share() -> None:
    assert key_share(replace(tiny_context([4]), num_tokens=0), lambda queries, keys: 1, torch.device("cpu")) == 0
