"""Training is the same on any number of ranks, however work is divided; docs/evidence/equalities.md has all of it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist

from keyekit.distributed.part_plan import PartPlan
from keyekit.testing.distributed import run_distributed
from keyekit.testing.equalities import PACKS, Packs, Variant, distance, on_some, train, train_all

STEPS = 4
CUT = 1  # two packs on each of two ranks: no whole step of one rank, which accumulates four
RECOMPUTED = PartPlan(activation_checkpointing=True)
ON_TWO = {
    "float32": Variant(dtype=torch.float32, steps=STEPS),
    "everything divided": Variant(
        model="sparse",
        strategy={
            "vision": PartPlan(sharding="replicate", activation_checkpointing=True),
            "decoder": RECOMPUTED,
            "expert_parallel": 2,
            "sequence_parallel": 2,
            "balance_vision": True,
        },
        steps=STEPS,
    ),
    "reduced once a step": Variant(
        model="balanced", strategy={"reduce_every_pack": False, "decoder": PartPlan(offload=True)}, steps=STEPS
    ),
}
ON_FOUR = {
    "hybrid vision, divided experts": Variant(
        model="sparse",
        strategy={"vision": PartPlan(sharding="hybrid", shard_group=2), "expert_parallel": 2},
        steps=STEPS,
    ),
}
RESUMED = Variant(model="balanced", steps=STEPS)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def alone(variant: Variant):
    """The same in one process without the strategy, with all packs of a step accumulated."""
    return train(0, 1, Variant(model=variant.model, strategy=None, dtype=variant.dtype, steps=variant.steps))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tmp_path_factory.mktemp("resumed") / "cut.ckpt"


@pytest.fixture(scope="module")
def ranks(checkpoint):
    """What came out on two and on four ranks; four processes do both, since starting them costs more than they do."""
    on_two = [*(partial(train, variant=variant) for variant in ON_TWO.values())]
    on_two.append(partial(train, variant=RESUMED, save=(CUT, checkpoint)))
    on_four = [*(partial(train, variant=variant) for variant in ON_FOUR.values())]
    on_four.append(partial(train, variant=RESUMED, resume=checkpoint))
    jobs = [partial(on_some, ranks=2, jobs=on_two), *on_four]
    first, *others = run_distributed(train_all, 4, jobs)[0]
    return dict(zip([*ON_TWO, "cut", *ON_FOUR, "resumed"], [*first, *others], strict=True))


def check_same(one, other, dtype: torch.dtype) -> None:
    # Adam divides by the root of a squared gradient: where that is near zero, rounding is magnified.
    loss, weights = (1e-10, 1e-10) if dtype == torch.float64 else (1e-6, 1e-5)
    assert len(one.losses) == len(other.losses) == STEPS
    assert one.losses == pytest.approx(other.losses, abs=loss, rel=0)
    assert distance(one.tensors, other.tensors) < weights


@pytest.mark.parametrize("name", [*ON_TWO, *ON_FOUR])
def test_several_ranks_train_as_one(ranks, name: str) -> None:
    variant = (ON_TWO | ON_FOUR)[name]
    check_same(alone(variant), ranks[name], variant.dtype)


def test_what_two_ranks_saved_goes_on_alone_and_on_four(ranks, checkpoint, monkeypatch) -> None:
    whole = alone(RESUMED)
    assert ranks["cut"].losses == pytest.approx(whole.losses[:CUT], abs=1e-10, rel=0)
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.setenv(name, "0")  # restored afterwards
        monkeypatch.delenv(name)
    try:
        single = train(0, 1, RESUMED, resume=checkpoint)
    finally:
        dist.destroy_process_group()
    for resumed in (single, ranks["resumed"]):
        assert resumed.losses == pytest.approx(whole.losses[CUT:], abs=1e-10, rel=0)
        assert distance(whole.tensors, resumed.tensors) < 1e-10


def test_each_of_two_ranks_is_once_the_only_one_without_an_image() -> None:
    """Or the cells above would not show that such steps train."""
    packs = [Packs().batch(0, number).vision is None for number in range(STEPS * PACKS)]
    without = set(zip(packs[::2], packs[1::2], strict=True))
    assert {(True, False), (False, True)} <= without
