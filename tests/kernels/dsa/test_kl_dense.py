"""Triton divergence from dense causal attention against the definition: losses and all gradients, packed and ragged."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from keyekit_kernels.dsa import reference
from keyekit_kernels.dsa.kl import sparse_indexer_kl
from keyekit_kernels.dsa.kl_dense import attention_log_normaliser, dense_indexer_kl, dense_kl
from keyekit_kernels.dsa.packed_rows import cut_chunks
from keyekit_kernels.dsa.reference_gradients import causal_selection

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("index query", "index key", "gate")
# name: heads, groups, width; indexer heads and width; queries and keys of each sequence, rows of padding behind them
CASES = {
    "ragged": (4, 2, 16, 4, 16, (18, 1, 3), (18, 1, 3), 0),
    "padding": (2, 2, 16, 2, 16, (5, 2), (5, 2), 3),
    "eight heads a group": (8, 1, 32, 16, 16, (6,), (6,), 0),
    "three heads a group": (6, 2, 16, 3, 32, (7,), (7,), 0),
    "sixteen heads a group": (16, 1, 16, 4, 16, (3,), (9,), 0),
    "twenty heads": (20, 1, 16, 20, 16, (3,), (9,), 0),
    "more keys than queries": (2, 1, 16, 4, 16, (2, 0, 17), (35, 2, 20), 1),
    "a block exactly": (2, 1, 16, 4, 16, (16,), (32,), 0),
    "official widths": (2, 1, 128, 4, 128, (5,), (18,), 0),
    "narrow indexer": (2, 1, 64, 16, 64, (4,), (17,), 0),
}


def problem(case: str, dtype: torch.dtype):
    heads, groups, width, index_heads, index_width, query_lengths, key_lengths, padding = CASES[case]
    generator = torch.Generator().manual_seed(0)
    tokens, keys = sum(query_lengths) + padding, sum(key_lengths)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    # Indexer queries and keys of unit size a channel would make a one-hot student; the factor keeps it soft.
    indexer = [normal(tokens, index_heads, index_width) * 0.5, normal(keys, index_width), normal(tokens, index_heads)]
    attention = [normal(tokens, heads, width), normal(keys, groups, width)]
    return indexer, attention, query_lengths, key_lengths, width**-0.5


def expected(indexer, attention, query_lengths, key_lengths, scale, weight=None):
    """Divergences, gradients of their weighted sum and log-sum-exp in float64, from every visible key as a selection."""
    inputs = [tensor.double().requires_grad_() for tensor in indexer]
    query, key = (tensor.double() for tensor in attention)
    indices = causal_selection(query_lengths, key_lengths, DEVICE)
    padding = query.shape[0] - indices.shape[0]
    indices = torch.nn.functional.pad(indices, (0, 0, 0, padding), value=-1)
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
    indexer, attention, *lengths, scale = problem(case, dtype)
    tokens = indexer[0].shape[0]
    weight = torch.linspace(-1, 2, tokens, device=DEVICE).masked_fill(torch.arange(tokens, device=DEVICE) == 3, 0.0)
    weight = weight if weighted else None
    loss, gradients, expected_lse = expected(indexer, attention, *lengths, scale, weight)
    lse = attention_log_normaliser(*attention, *lengths, scale)
    forward, backward = limits(dtype)
    assert_near(lse, expected_lse.double(), forward, "log-sum-exp")
    ours, back = dense_kl(*indexer, *attention, lse, *lengths, scale, True, weight)
    plain, nothing = dense_kl(*indexer, *attention, lse, *lengths, scale, False, weight)
    assert ours.dtype == torch.float32
    assert_near(ours, loss, forward, "loss")
    for name, mine, theirs in zip(NAMES, back, gradients, strict=True):
        assert_near(mine, theirs, backward, f"gradient of {name}")
    assert torch.equal(plain, ours)
    assert nothing is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_the_definition(case: str, dtype: torch.dtype) -> None:
    check(case, dtype, weighted=case == "ragged")


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_bfloat16_on_the_device(case: str) -> None:
    check(case, torch.bfloat16, weighted=True)


@pytest.mark.gpu
@pytest.mark.parametrize(("index_heads", "index_width"), [(4, 128), (16, 64)])
def test_official_sizes_on_the_device(index_heads: int, index_width: int) -> None:
    torch.manual_seed(0)
    query_lengths, key_lengths = (70, 1, 130), (700, 1, 130)
    tokens, keys = sum(query_lengths), sum(key_lengths)
    shapes = (tokens, index_heads, index_width), (keys, index_width), (tokens, index_heads)
    indexer = [torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) * 0.5 for shape in shapes]
    attention = [
        torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for shape in ((tokens, 32, 128), (keys, 4, 128))
    ]
    loss, gradients, expected_lse = expected(indexer, attention, query_lengths, key_lengths, 128**-0.5)
    lse = attention_log_normaliser(*attention, query_lengths, key_lengths, 128**-0.5)
    assert_near(lse, expected_lse.double(), 1e-3, "log-sum-exp")
    ours, back = dense_kl(*indexer, *attention, lse, query_lengths, key_lengths, 128**-0.5)
    for name, mine, theirs in zip(("loss", *NAMES), (ours, *back), (loss, *gradients), strict=True):
        assert_near(mine, theirs, 1e-2, name)


@pytest.mark.parametrize("given", [False, True], ids=["own log-sum-exp", "given log-sum-exp"])
@pytest.mark.parametrize("uniform", [False, True], ids=["weighted", "mean"])
def test_the_door_backpropagates_exactly(given: bool, uniform: bool) -> None:
    indexer, attention, *lengths, scale = problem("padding", torch.float32)
    weight = torch.full((10,), 0.1, device=DEVICE) if uniform else torch.linspace(-1, 1, 10, device=DEVICE)
    loss, gradients, lse = expected(indexer, attention, *lengths, scale, weight)
    inputs = [tensor.requires_grad_() for tensor in indexer]
    query, key = (tensor.requires_grad_() for tensor in attention)
    losses = dense_indexer_kl(*inputs, query, key, *lengths, scale, lse if given else None)
    assert_near(losses * weight, loss, 1e-5, "loss")
    assert not losses[7:].any()
    (losses.mean() if uniform else (losses * weight).sum()).backward()
    for name, tensor, theirs in zip(NAMES, inputs, gradients, strict=True):
        assert_near(tensor.grad, theirs, 1e-4, f"gradient of {name}")
    assert query.grad is None
    assert key.grad is None


def test_row_weights_leave_rows_out_whatever_lies_there() -> None:
    indexer, attention, *lengths, scale = problem("ragged", torch.float32)
    tokens = indexer[0].shape[0]
    weight = (torch.arange(tokens, device=DEVICE) < tokens - 4).float() / tokens
    loss, gradients, _ = expected(indexer, attention, *lengths, scale, weight)
    for tensor in (indexer[0], attention[0]):
        tensor[tokens - 4 :] = torch.nan
    inputs = [tensor.requires_grad_() for tensor in indexer]
    losses = dense_indexer_kl(*inputs, *attention, *lengths, scale, row_weight=weight)
    losses.sum().backward()
    assert_near(losses, loss, 1e-5, "loss")
    for name, tensor, theirs in zip(NAMES, inputs, gradients, strict=True):
        assert_near(tensor.grad, theirs, 1e-4, f"gradient of {name}")


@pytest.mark.parametrize("pairs", [2**26, 16 * 32, 1])
def test_results_are_the_same_bits_in_every_run_and_exact_however_chunks_are_cut(pairs: int, monkeypatch) -> None:
    monkeypatch.setattr("keyekit_kernels.dsa.kl_dense._PAIRS", pairs)
    indexer, attention, *lengths, scale = problem("more keys than queries", torch.float32)
    tokens = indexer[0].shape[0]
    weight = (torch.arange(tokens, device=DEVICE) != 4).float() / tokens
    loss, gradients, lse = expected(indexer, attention, *lengths, scale, weight)
    ours, back = dense_kl(*indexer, *attention, lse, *lengths, scale, True, weight)
    assert_near(ours, loss, 1e-5, "loss")
    for name, mine, theirs in zip(NAMES, back, gradients, strict=True):
        assert_near(mine, theirs, 1e-4, f"gradient of {name}")
    again, gradients_again = dense_kl(*indexer, *attention, lse, *lengths, scale, True, weight)
    assert torch.equal(ours, again)
    assert all(torch.equal(one, other) for one, other in zip(back, gradients_again, strict=True))


def test_chunks_of_one_query_are_cut(monkeypatch) -> None:
    monkeypatch.setattr("keyekit_kernels.dsa.kl_dense._PAIRS", 1)
    monkeypatch.setattr("keyekit_kernels.dsa.kl_dense.cut_chunks", counted := CountedCuts())
    indexer, attention, *lengths, scale = problem("padding", torch.float32)
    dense_indexer_kl(*indexer, *attention, *lengths, scale)
    assert counted.chunks == 7


class CountedCuts:
    """Cuts as the package does, and remembers into how many chunks."""

    chunks = 0

    def __call__(self, *arguments):
        cut = cut_chunks(*arguments)
        self.chunks = len(cut)
        return cut


@pytest.mark.gpu
def test_on_the_device_results_are_the_same_bits_in_every_run() -> None:
    lengths = (700, 1, 300)
    shapes = (1001, 16, 64), (1001, 64), (1001, 16)
    indexer = [torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for shape in shapes]
    attention = [torch.randn(1001, heads, 128, device=DEVICE, dtype=torch.bfloat16) for heads in (32, 4)]
    lse = attention_log_normaliser(*attention, lengths, lengths, 0.1)
    runs = [dense_kl(*indexer, *attention, lse, lengths, lengths, 0.1) for _ in range(10)]
    for loss, gradients in runs[1:]:
        for one, other in zip((loss, *gradients), (runs[0][0], *runs[0][1]), strict=True):
            assert torch.equal(one, other)


def test_half_precision_gradients_survive_until_the_loss_scale() -> None:
    indexer, attention, *lengths, scale = problem("ragged", torch.float16)
    weight = torch.full((indexer[0].shape[0],), 1e-7, device=DEVICE)
    _, gradients, _ = expected(indexer, attention, *lengths, scale, weight)
    inputs = [tensor.requires_grad_() for tensor in indexer]
    losses = dense_indexer_kl(*inputs, *attention, *lengths, scale, row_weight=weight)
    (losses.sum() * 2.0**22).backward()
    for name, tensor, theirs in zip(NAMES, inputs, gradients, strict=True):
        assert_near(tensor.grad.double(), theirs * 2.0**22, 4e-3, f"gradient of {name}")


def test_dense_equals_sparse_where_every_visible_key_is_selected() -> None:
    indexer, attention, *lengths, scale = problem("three heads a group", torch.float32)
    inputs = [tensor.requires_grad_() for tensor in indexer]
    lse = attention_log_normaliser(*attention, *lengths, scale)
    dense = dense_indexer_kl(*inputs, *attention, *lengths, scale, lse)
    sparse = sparse_indexer_kl(*inputs, *attention, lse, causal_selection(*lengths, DEVICE), scale)
    torch.testing.assert_close(dense, sparse, rtol=1e-5, atol=1e-6)
    pairs = (torch.autograd.grad(losses.sum(), inputs) for losses in (dense, sparse))
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_packed_equals_each_sequence_alone() -> None:
    indexer, attention, query_lengths, key_lengths, scale = problem("more keys than queries", torch.float32)
    packed = dense_indexer_kl(*indexer, *attention, query_lengths, key_lengths, scale)
    first = key_start = 0
    for queries, keys in zip(query_lengths, key_lengths, strict=True):
        q, k = slice(first, first + queries), slice(key_start, key_start + keys)
        own = indexer[0][q], indexer[1][k], indexer[2][q], attention[0][q], attention[1][k]
        torch.testing.assert_close(dense_indexer_kl(*own, [queries], [keys], scale), packed[q])
        first, key_start = first + queries, key_start + keys


class LargestTensor(TorchDispatchMode):
    """Remembers the most bytes that any operation returned in one tensor."""

    nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [tensor.nbytes for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)]
        self.nbytes = max([self.nbytes, *sizes])
        return result


def test_no_tensor_has_the_size_of_the_matrix(monkeypatch) -> None:
    length, width = 48, 16
    monkeypatch.setattr("keyekit_kernels.dsa.kl_dense._PAIRS", length * width)
    shapes = (length, 1, width), (length, width), (length, 1), (length, 1, width), (length, 1, width)
    index_query, index_key, gate, query, key = (torch.randn(shape, device=DEVICE) for shape in shapes)
    inputs = [tensor.requires_grad_() for tensor in (index_query, index_key, gate)]
    lse = attention_log_normaliser(query, key, [length], [length], 0.25)
    scores = torch.randn(length, length)
    selected = reference.select_topk(scores, torch.arange(1, length + 1), topk=4).to(DEVICE)
    with LargestTensor() as ours:
        dense_indexer_kl(*inputs, query, key, [length], [length], 0.25).mean().backward()
        sparse_indexer_kl(*inputs, query, key, lse, selected, 0.25).mean().backward()
    assert ours.nbytes == 4 * length * width
    with LargestTensor() as plain:
        reference.indexer_scores(*inputs)
    assert plain.nbytes >= 4 * length * length


@pytest.mark.parametrize(
    ("query_lengths", "key_lengths", "message"),
    [
        ((8,), (7,), "query_lengths sum to 8, but there are 7 rows"),
        ((7,), (9,), "key_lengths sum to 9, but there are 7 rows"),
        ((2, 3), (5, 2), "3 queries and 2 keys"),
    ],
)
def test_lengths_that_do_not_fit_are_named(query_lengths, key_lengths, message: str) -> None:
    indexer, attention, *_, scale = problem("three heads a group", torch.float32)
    with pytest.raises(ValueError, match=message):
        dense_indexer_kl(*indexer, *attention, query_lengths, key_lengths, scale)


def test_bad_tensors_are_named() -> None:
    (index_query, index_key, gate), attention, *lengths, scale = problem("three heads a group", torch.float32)
    with pytest.raises(ValueError, match="gate is"):
        dense_indexer_kl(index_query, index_key, gate[:, :1], *attention, *lengths, scale)
