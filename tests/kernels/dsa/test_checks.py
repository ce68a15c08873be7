"""What the door refuses, with either implementation, and that reading indices is a choice."""

import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from keyekit_kernels import dsa
from keyekit_kernels.dsa.checks import check_selection, obstacle_to_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOTH = pytest.mark.parametrize("implementation", ["torch", "triton"])


def tensors() -> dict[str, torch.Tensor]:
    shapes = {"query": (6, 4, 16), "key": (6, 2, 16), "value": (6, 2, 16)}
    shapes |= {"index_query": (6, 2, 16), "index_key": (6, 16), "gate": (6, 2), "lse": (6, 4)}
    return {name: torch.randn(shape, device=DEVICE) for name, shape in shapes.items()}


def causal() -> torch.Tensor:
    column = torch.arange(6, dtype=torch.int32, device=DEVICE)
    return torch.where(column <= column[:, None], column, -1)


def attend(made: dict, indices: torch.Tensor, implementation: str, lengths=(None, None)) -> None:
    dsa.sparse_attention(made["query"], made["key"], made["value"], indices, 0.25, implementation, *lengths)


def compare(made: dict, indices: torch.Tensor, implementation: str) -> None:
    names = ("index_query", "index_key", "gate", "query", "key")
    dsa.indexer_kl(*(made[name] for name in names), indices, 0.25, implementation, made["lse"])


def select(made: dict, implementation: str, queries=(6,), keys=(6,), topk: int = 3) -> torch.Tensor:
    return dsa.index_topk(made["index_query"], made["index_key"], made["gate"], queries, keys, topk, implementation)


def compare_with_all(made: dict, implementation: str, queries=(6,), keys=(6,)) -> None:
    names = ("index_query", "index_key", "gate", "query", "key")
    dsa.indexer_kl_dense(*(made[name] for name in names), queries, keys, 0.25, implementation, made["lse"])


CHANGES = {
    "heads that do not divide": (
        {"query": lambda x: x[:, :3]},
        "query has 3 heads, which do not divide into the 2 groups",
    ),
    "two widths": ({"query": lambda x: x[..., :8]}, "query is [6, 4, 8] and key [6, 2, 16]: [T, H, K] and [S, G, K]"),
    "two types": ({"key": torch.Tensor.double}, "key is torch.float64"),
    "whole numbers": ({"query": torch.Tensor.int, "key": torch.Tensor.int}, "key is torch.int32"),
}


@BOTH
@pytest.mark.parametrize("change", CHANGES)
def test_attention_heads_that_do_not_fit_are_named(change: str, implementation: str) -> None:
    alter, message = CHANGES[change]
    made = tensors()
    made |= {name: function(made[name]) for name, function in alter.items()}
    for run in (attend, compare):
        with pytest.raises(ValueError, match=re.escape(message)):
            run(made, causal(), implementation)
    with pytest.raises(ValueError, match=re.escape(message)):
        compare_with_all(made, implementation)


@BOTH
@pytest.mark.parametrize(
    ("alter", "message"),
    [
        ({"value": lambda x: x[:5]}, "value is [5, 2, 16]: [6, 2, 16] is needed, the shape of key"),
        ({"value": torch.Tensor.half}, "value is torch.float16: give all in one floating type"),
    ],
)
def test_values_that_do_not_fit_are_named(alter: dict, message: str, implementation: str) -> None:
    made = tensors()
    made |= {name: function(made[name]) for name, function in alter.items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        attend(made, causal(), implementation)


@BOTH
@pytest.mark.parametrize(
    ("alter", "message"),
    [
        ({"index_key": lambda x: x[:, :8]}, "[6, 2, 16] and"),
        ({"gate": lambda x: x[:, :1]}, "gate is [6, 1]: [6, 2] is needed, a weight per query and head"),
        ({"index_key": torch.Tensor.half}, "is torch.float16: give all in one floating type"),
    ],
)
def test_indexer_tensors_that_do_not_fit_are_named(alter: dict, message: str, implementation: str) -> None:
    made = tensors()
    made |= {name: function(made[name]) for name, function in alter.items()}
    for run in (
        lambda: select(made, implementation),
        lambda: compare(made, causal(), implementation),
        lambda: compare_with_all(made, implementation),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            run()


@BOTH
def test_rows_that_do_not_fit_are_named(implementation: str) -> None:
    made = tensors()
    for name, message in (
        ("index_key", "index_key has 5 rows, but key has 6"),
        ("lse", "lse is [5, 4]: [6, 4] is needed"),
    ):
        for run in (compare_with_all, lambda made, implementation: compare(made, causal(), implementation)):
            with pytest.raises(ValueError, match=re.escape(message)):
                run(made | {name: made[name][:5]}, implementation)
    for run in (attend, compare):
        for indices in (causal().long(), causal()[:5], causal()[0]):
            with pytest.raises(ValueError, match=r"indices is .*: give \[6, N\] int32"):
                run(made, indices, implementation)


@BOTH
@pytest.mark.parametrize(
    ("queries", "keys", "message"),
    [
        ((6,), (3, 3), "query_lengths has 1 sequences, key_lengths has 2"),
        ((4, 2), (5, 1), "sequence 1 has 2 queries and 1 keys"),
        ((5,), (6,), "query_lengths add up to 5, query has 6 rows"),
        ((6,), (7,), "key_lengths add up to 7, key has 6 rows"),
        ((-1, 7), (3, 3), "sequence 0 has -1 queries"),
    ],
)
def test_lengths_that_do_not_fit_are_named(queries, keys, message: str, implementation: str) -> None:
    for run in (
        lambda: select(tensors(), implementation, queries, keys),
        lambda: attend(tensors(), causal(), implementation, (queries, keys)),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            run()


@BOTH
def test_one_kind_of_lengths_or_no_keys_at_all_are_refused(implementation: str) -> None:
    with pytest.raises(ValueError, match="query_lengths and key_lengths go together"):
        attend(tensors(), causal(), implementation, ((6,), None))
    with pytest.raises(ValueError, match="topk=0: at least one key is needed"):
        select(tensors(), implementation, topk=0)


def test_what_only_the_kernels_cannot_take_is_told_where_they_are_demanded() -> None:
    made = {name: tensor.cpu() for name, tensor in tensors().items()}
    narrow = made | {name: made[name][..., :12] for name in ("query", "key", "value", "index_query", "index_key")}
    wide = {name: tensor.double() for name, tensor in made.items()}
    assert obstacle_to_kernels({"query": made["query"]}) is None
    assert (
        obstacle_to_kernels({"query": narrow["query"]})
        == "query has heads of width 12, the kernels take 16, 32, 64, 128"
    )
    assert (
        obstacle_to_kernels({"query": wide["query"]})
        == "query is torch.float64, the kernels take float32, float16, bfloat16"
    )
    assert "bfloat16 on the processor" in obstacle_to_kernels({"query": made["query"].bfloat16()})
    for odd, message in ((narrow, "heads of width 12"), (wide, "torch.float64")):
        for run in (
            lambda odd, how: attend(odd, causal().cpu(), how),
            lambda odd, how: compare(odd, causal().cpu(), how),
            select,
            compare_with_all,
        ):
            run(odd, "torch")
            with pytest.raises(ValueError, match=message):
                run({name: tensor.to(DEVICE) for name, tensor in odd.items()}, "triton")


BAD = {  # indices of the last of three queries: two sequences of two queries and three keys, and one query and two keys
    "out of range: there are 5 keys": [3, 5, -1],
    "below -1": [3, -2, -1],
    "not compact: -1 stands before a key": [3, -1, 4],
    "not unique: a key stands there twice": [3, 3, -1],
    "not ascending": [4, 3, -1],
    "of another sequence": [2, 3, -1],
}


@pytest.mark.parametrize("problem", BAD)
def test_indices_that_no_selection_makes_are_described(problem: str) -> None:
    rows = torch.tensor([[0, 1, -1], [0, 1, 2], BAD[problem]], dtype=torch.int32)
    with pytest.raises(ValueError, match=f"indices of query 2 are {problem}.*{re.escape(str(BAD[problem]))}"):
        check_selection(rows, 5, [2, 1], [3, 2])


def test_the_future_and_what_is_right() -> None:
    early = torch.tensor([[0, 2], [1, 2], [3, 4]], dtype=torch.int32)
    with pytest.raises(ValueError, match="indices of query 0 are in the future of their query"):
        check_selection(early, 5, [2, 1], [3, 2])
    check_selection(early, 5)  # without lengths nobody knows
    check_selection(torch.tensor([[0, 1], [1, 2], [-1, -1]], dtype=torch.int32), 5, [2, 1], [3, 2])


@BOTH
@pytest.mark.parametrize("bad", [[5, 3], [3, 3], [3, 9], [2, 5]])
def test_the_door_reads_indices_only_when_told_to(bad: list[int], implementation: str, monkeypatch) -> None:
    made, indices = tensors(), causal()
    indices[4, :2], indices[4, 2:] = torch.tensor(bad, device=DEVICE), -1
    lengths = ((6,), (6,))
    monkeypatch.setenv("KEYEKIT_DSA_CHECK", "1")
    with pytest.raises(ValueError, match="indices of query 4 are"):
        attend(made, indices, implementation, lengths)
    if bad != [2, 5]:  # what lies in the future is not known to the divergence
        with pytest.raises(ValueError, match="indices of query 4 are"):
            compare(made, indices, implementation)
    attend(made, causal(), implementation, lengths)
    monkeypatch.setenv("KEYEKIT_DSA_CHECK", "0")
    if bad != [3, 9]:  # which PyTorch notices by itself
        attend(made, indices, "torch", lengths)


class Reads(TorchDispatchMode):
    """Counts what would wait for a device: numbers that are brought to the host."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device_while_checks_are_off(monkeypatch) -> None:
    counts = {}
    for setting in ("0", "1"):
        monkeypatch.setenv("KEYEKIT_DSA_CHECK", setting)
        with Reads() as reads:
            attend(tensors(), causal(), "torch", ((6,), (6,)))
            compare(tensors(), causal(), "torch")
        counts[setting] = reads.count
    assert counts["0"] == 0
    assert counts["1"] > 0
