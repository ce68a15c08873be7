"""Triton divergence over selected keys against the definition: losses and all gradients, and what a backward pass does."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from keyekit_kernels.dsa import kl, reference
from keyekit_kernels.dsa.kl import sparse_indexer_kl, sparse_kl
from keyekit_kernels.dsa.reference_gradients import causal_selection

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("index query", "index key", "gate")
# name: heads, groups, width; indexer heads and width; queries, keys, most selected keys
CASES = {
    "two heads a group": (4, 2, 16, 4, 16, 5, 24, 19),
    "one head a group": (2, 2, 32, 2, 32, 3, 9, 4),
    "eight heads a group": (8, 1, 16, 16, 16, 3, 40, 33),
    "three heads a group": (6, 2, 16, 3, 16, 4, 20, 16),
    "sixteen heads a group": (16, 1, 16, 4, 16, 2, 9, 8),
    "twenty heads a group": (20, 1, 16, 20, 16, 2, 9, 8),
    "one key": (2, 1, 16, 4, 16, 1, 1, 1),
    "fewer keys than selected": (2, 1, 16, 1, 16, 4, 6, 6),
    "official widths": (2, 1, 128, 4, 128, 2, 20, 18),
    "narrow indexer": (2, 1, 64, 16, 64, 2, 20, 18),
}


def problem(case: str, dtype: torch.dtype, seed: int = 0):
    """Inputs, and selections of every length with an empty one in between."""
    heads, groups, width, index_heads, index_width, tokens, keys, topk = CASES[case]
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    # Indexer queries and keys of unit size a channel would make a one-hot student; the factor keeps it soft.
    indexer = [normal(tokens, index_heads, index_width) * 0.5, normal(keys, index_width), normal(tokens, index_heads)]
    attention = [normal(tokens, heads, width), normal(keys, groups, width)]
    visible = torch.linspace(1, keys, tokens).long()
    if tokens > 2:
        visible[1] = 0
    indices = reference.select_topk(torch.randn(tokens, keys, generator=generator), visible, topk).to(DEVICE)
    return indexer, attention, indices, width**-0.5


def expected(indexer, attention, indices, scale, weight=None):
    """Divergences, gradients of their weighted sum and log-sum-exp in float64 by autograd of the definition."""
    inputs = [tensor.double().requires_grad_() for tensor in indexer]
    query, key = (tensor.double() for tensor in attention)
    target = reference.attention_target(query, key, indices, scale)
    loss = reference.kl_over_selection(reference.scores_at(*inputs, indices), target, indices)
    loss = loss if weight is None else loss * weight.double()
    _, lse = reference.attention_over_selection(query, key, key, indices, scale)
    return loss.detach(), torch.autograd.grad(loss.sum(), inputs), lse.float()


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, limit: float, name: str) -> None:
    error = (ours.double() - theirs).norm() / theirs.norm().clamp(min=0.1)
    assert error <= limit, f"{name}: relative error {error:.1e}"


def limits(dtype: torch.dtype) -> tuple[float, float]:
    """Of losses and of gradients; dsa-kernels sheet 5.5."""
    return {torch.float32: (1e-5, 1e-4), torch.float16: (2e-3, 4e-3), torch.bfloat16: (1e-2, 1e-2)}[dtype]


def check(case: str, dtype: torch.dtype, weighted: bool) -> None:
    indexer, attention, indices, scale = problem(case, dtype)
    tokens = indices.shape[0]
    weight = torch.linspace(-1, 2, tokens, device=DEVICE).masked_fill(torch.arange(tokens, device=DEVICE) == 3, 0.0)
    weight = weight if weighted else None
    loss, gradients, lse = expected(indexer, attention, indices, scale, weight)
    counts = (indices >= 0).sum(1, dtype=torch.int32)
    ours, back = sparse_kl(*indexer, *attention, lse, indices, counts, scale, True, weight)
    plain, nothing = sparse_kl(*indexer, *attention, lse, indices, counts, scale, False, weight)
    forward, backward = limits(dtype)
    assert ours.dtype == torch.float32
    assert_near(ours, loss, forward, "loss")
    for name, mine, theirs in zip(NAMES, back, gradients, strict=True):
        assert_near(mine, theirs, backward, f"gradient of {name}")
    torch.testing.assert_close(plain, ours)  # on a GPU the two compilations may round apart
    assert nothing is None
    if tokens > 2:
        assert ours[1] == 0
        assert not back[0][1].any()
        assert not back[2][1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_the_definition(case: str, dtype: torch.dtype) -> None:
    check(case, dtype, weighted=case == "two heads a group")


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_bfloat16_on_the_device(case: str) -> None:
    check(case, torch.bfloat16, weighted=True)


@pytest.mark.gpu
@pytest.mark.parametrize(("index_heads", "index_width"), [(4, 128), (16, 64)])
def test_official_sizes_on_the_device(index_heads: int, index_width: int) -> None:
    torch.manual_seed(0)
    tokens, keys, topk = 64, 4096, 2048
    shapes = (tokens, index_heads, index_width), (keys, index_width), (tokens, index_heads)
    indexer = [torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) * 0.5 for shape in shapes]
    attention = [
        torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for shape in ((tokens, 32, 128), (keys, 4, 128))
    ]
    indices = reference.select_topk(torch.randn(tokens, keys), torch.arange(keys - tokens, keys), topk).to(DEVICE)
    loss, gradients, lse = expected(indexer, attention, indices, 128**-0.5)
    counts = (indices >= 0).sum(1, dtype=torch.int32)
    ours, back = sparse_kl(*indexer, *attention, lse, indices, counts, 128**-0.5)
    for name, mine, theirs in zip(("loss", *NAMES), (ours, *back), (loss, *gradients), strict=True):
        assert_near(mine, theirs, 1e-2, name)


def door(case: str = "two heads a group"):
    """Differentiable float32 inputs of the autograd function."""
    indexer, attention, indices, scale = problem(case, torch.float32)
    lse = expected(indexer, attention, indices, scale)[2]
    return [tensor.requires_grad_() for tensor in indexer], attention, lse, indices, scale


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each launch of the kernel was for."""
    found: list[str] = []

    launch = kl.launch_sparse

    def counted(indexer, constants, settings, row_weight, need_gradients):
        idle = row_weight is not None and not row_weight.any()
        found.append("idle" if idle else "gradients" if need_gradients else "loss")
        return launch(indexer, constants, settings, row_weight, need_gradients)

    monkeypatch.setattr(kl, "launch_sparse", counted)
    return found


@pytest.mark.parametrize("reduce", ["sum", "mean", "row", "weighted"])
def test_every_reduction_backpropagates_exactly(reduce: str, launches: list[str]) -> None:
    indexer, attention, lse, indices, scale = door()
    tokens = indices.shape[0]
    weight = {
        "sum": torch.ones(tokens),
        "mean": torch.full((tokens,), 1 / tokens),
        "row": (torch.arange(tokens) == 2).float(),
        "weighted": torch.randn(tokens),
    }[reduce].to(DEVICE)
    losses = sparse_indexer_kl(*indexer, *attention, lse, indices, scale)
    {
        "sum": losses.sum,
        "mean": losses.mean,
        "row": lambda: losses[2],
        "weighted": lambda: (losses * weight).sum(),
    }[reduce]().backward()
    _, gradients, _ = expected(indexer, attention, indices, scale, weight)
    for name, tensor, theirs in zip(NAMES, indexer, gradients, strict=True):
        assert_near(tensor.grad, theirs, 1e-4, f"gradient of {name}")
    assert launches[0] == "gradients"
    assert launches[1:] == {"sum": [], "mean": ["idle"], "row": ["gradients"], "weighted": ["gradients"]}[reduce]


def test_row_weights_spare_the_second_run_and_leave_rows_out(launches: list[str]) -> None:
    indexer, attention, lse, indices, scale = door()
    weight = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.0], device=DEVICE)
    with torch.no_grad():
        for tensor in (indexer[0], attention[0]):
            tensor[4] = torch.nan  # what lies in the rows of padding must not matter
    losses = sparse_indexer_kl(*indexer, *attention, lse, indices, scale, row_weight=weight)
    losses.sum().backward()
    rows = slice(0, 4)
    kept = [indexer[0][rows], indexer[1], indexer[2][rows]], [attention[0][rows], attention[1]], indices[rows], scale
    loss, gradients, _ = expected(*kept, weight[rows])
    assert_near(losses[rows], loss, 1e-5, "loss")
    assert losses[4] == 0
    for name, tensor, theirs in zip(NAMES, indexer, gradients, strict=True):
        assert_near(tensor.grad[: len(theirs)], theirs, 1e-4, f"gradient of {name}")
    assert launches == ["gradients"]


@pytest.mark.parametrize("budget", [2**29, 4 * 16 * 40, 1])
def test_sums_in_order_are_the_same_bits_however_they_are_cut(budget: int, monkeypatch) -> None:
    monkeypatch.setattr("keyekit_kernels.dsa.ordered_sum.PARTIAL_BYTES", budget)
    indexer, attention, indices, scale = problem("two heads a group", torch.float32)
    weight = torch.tensor([0.5, 1.0, -2.0, 0.0, 1.0], device=DEVICE)
    loss, gradients, lse = expected(indexer, attention, indices, scale, weight)
    counts = (indices >= 0).sum(1, dtype=torch.int32)
    arguments = (*indexer, *attention, lse, indices, counts, scale, True, weight)
    ours, back = sparse_kl(*arguments, deterministic=True)
    assert_near(ours, loss, 1e-5, "loss")
    for name, mine, theirs in zip(NAMES, back, gradients, strict=True):
        assert_near(mine, theirs, 1e-4, f"gradient of {name}")
    again, gradients_again = sparse_kl(*arguments, deterministic=True)
    assert torch.equal(ours, again)
    assert all(torch.equal(one, other) for one, other in zip(back, gradients_again, strict=True))


def test_sums_in_order_reach_the_door_and_take_rows_without_keys(monkeypatch) -> None:
    indexer, attention, lse, indices, scale = door()
    losses = sparse_indexer_kl(*indexer, *attention, lse, indices, scale, deterministic=True)
    weight = torch.linspace(-1, 2, len(losses), device=DEVICE)
    (losses * weight).sum().backward()
    _, gradients, _ = expected(indexer, attention, indices, scale, weight)
    for name, tensor, theirs in zip(NAMES, indexer, gradients, strict=True):
        assert_near(tensor.grad, theirs, 1e-4, f"gradient of {name}")
    none = sparse_indexer_kl(*indexer, *attention, lse, indices[:, :0], scale, deterministic=True)
    assert torch.equal(none, torch.zeros_like(none))


@pytest.mark.gpu
def test_on_the_device_sums_in_order_are_the_same_bits_in_every_run() -> None:
    shapes = (512, 16, 64), (512, 64), (512, 16)
    indexer = [torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for shape in shapes]
    attention = [torch.randn(512, heads, 128, device=DEVICE, dtype=torch.bfloat16) for heads in (32, 4)]
    indices = reference.select_topk(torch.randn(512, 512), torch.arange(1, 513), 64).to(DEVICE)
    _, _, lse = expected(indexer, attention, indices, 0.1)
    counts = (indices >= 0).sum(1, dtype=torch.int32)
    runs = [sparse_kl(*indexer, *attention, lse, indices, counts, 0.1, deterministic=True) for _ in range(10)]
    for loss, gradients in runs[1:]:
        for one, other in zip((loss, *gradients), (runs[0][0], *runs[0][1]), strict=True):
            assert torch.equal(one, other)


def test_nothing_is_differentiated_where_nobody_asks(launches: list[str]) -> None:
    indexer, attention, lse, indices, scale = door()
    with torch.no_grad():
        sparse_indexer_kl(*indexer, *attention, lse, indices, scale)
    sparse_indexer_kl(*(tensor.detach() for tensor in indexer), *attention, lse, indices, scale)
    assert launches == ["loss", "loss"]


def test_the_attention_stays_a_constant_and_one_tensor_may_learn_alone() -> None:
    (index_query, index_key, gate), attention, lse, indices, scale = door()
    query, key = (tensor.requires_grad_() for tensor in attention)
    losses = sparse_indexer_kl(index_query.detach(), index_key, gate.detach(), query, key, lse, indices, scale)
    losses.sum().backward()
    assert query.grad is None
    assert key.grad is None
    _, gradients, _ = expected([index_query, index_key, gate], attention, indices, scale)
    assert_near(index_key.grad, gradients[1], 1e-4, "gradient of index key")


def test_checkpointing_gives_the_same_gradients() -> None:
    indexer, attention, lse, indices, scale = door()

    def forward(*tensors: torch.Tensor) -> torch.Tensor:
        return sparse_indexer_kl(*tensors, *attention, lse, indices, scale).mean()

    plain = torch.autograd.grad(forward(*indexer), indexer)
    again = torch.autograd.grad(checkpoint(forward, *indexer, use_reentrant=False), indexer)
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other)


def test_no_query_at_all() -> None:
    indexer = [torch.zeros(shape, device=DEVICE, requires_grad=True) for shape in ((0, 2, 16), (3, 16), (0, 2))]
    query, key, lse = (torch.zeros(shape, device=DEVICE) for shape in ((0, 2, 16), (3, 1, 16), (0, 2)))
    losses = sparse_indexer_kl(*indexer, query, key, lse, causal_selection([], [], DEVICE), 1.0)
    assert losses.shape == (0,)
    losses.sum().backward()
    assert not indexer[1].grad.any()


def test_half_precision_gradients_survive_until_the_loss_scale() -> None:
    indexer, attention, indices, scale = problem("two heads a group", torch.float16)
    _, gradients, lse = expected(indexer, attention, indices, scale, torch.full((5,), 1e-7, device=DEVICE))
    inputs = [tensor.requires_grad_() for tensor in indexer]
    losses = sparse_indexer_kl(
        *inputs, *attention, lse, indices, scale, row_weight=torch.full((5,), 1e-7, device=DEVICE)
    )
    (losses.sum() * 2.0**20).backward()
    for name, tensor, theirs in zip(NAMES, inputs, gradients, strict=True):
        assert_near(tensor.grad.double() / 2**20, theirs, 4e-3, f"gradient of {name}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": lambda x: x[:, :1]}, r"gate is \[5, 1\]: \[5, 4\] is needed"),
        ({"index_key": lambda x: x[:3]}, "index_key has 3 rows, but key has 24"),
        ({"lse": lambda x: x[:, :3]}, r"lse is \[5, 3\]: \[5, 4\] is needed"),
        ({"query": lambda x: x[:, :3].contiguous()}, "3 heads, which do not divide into the 2 groups"),
        ({"query": lambda x: x[..., :8], "key": lambda x: x[..., :8]}, "query has heads of width 8"),
        ({"key": lambda x: x.double()}, r"key is torch.float64"),
        (
            {"index_key": lambda x: x.half()},
            "index_query is torch.float32, index_key is torch.float16: give all in one",
        ),
        (
            {"index_query": lambda x: x.double(), "index_key": lambda x: x.double()},
            "index_query is torch.float64, the kernels take float32",
        ),
        ({"query": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)}, "query has strides"),
        ({"indices": lambda x: x.long()}, r"indices is .* torch.int64: give \[5, N\] int32"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    (index_query, index_key, gate), (query, key), lse, indices, scale = door()
    inputs = {
        "index_query": index_query,
        "index_key": index_key,
        "gate": gate,
        "query": query,
        "key": key,
        "lse": lse,
        "indices": indices,
    }
    inputs |= {name: alter(inputs[name]) for name, alter in change.items()}
    with pytest.raises(ValueError, match=message):
        sparse_indexer_kl(**inputs, scale=scale)


def test_gradients_of_gradients_are_refused() -> None:
    indexer, attention, lse, indices, scale = door()
    losses = sparse_indexer_kl(*indexer, *attention, lse, indices, scale)
    (grad,) = torch.autograd.grad(losses.square().sum(), indexer[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
