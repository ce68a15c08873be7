from __future__ import annotations

import pytest
import torch

from keyekit.distributed.part_plan import PartPlan


def test_gradients_are_added_up_in_float32_where_parameters_are_gathered_in_16_bits():
    assert (PartPlan().gathered_dtype, PartPlan().reduced_dtype) == (None, None)
    plan = PartPlan(parameter_dtype="bfloat16")
    assert (plan.gathered_dtype, plan.reduced_dtype) == (torch.bfloat16, torch.float32)
    assert PartPlan(parameter_dtype="bfloat16", reduce_dtype="bfloat16").reduced_dtype == torch.bfloat16


def test_hybrid_needs_its_group_and_the_others_have_none():
    with pytest.raises(ValueError, match="needs shard_group"):
        PartPlan(sharding="hybrid")
    with pytest.raises(ValueError, match=r"shard_group=8 .*sharding='replicate'"):
        PartPlan(sharding="replicate", shard_group=8)
    with pytest.raises(ValueError, match="choose 'full', 'hybrid' or 'replicate'"):
        PartPlan(sharding="zero3")  # pyright: ignore[reportArgumentType]
