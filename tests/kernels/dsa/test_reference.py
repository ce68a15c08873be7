"""The definition of DeepSeek Sparse Attention against direct formulas."""

import torch
from torch.nn import functional

from keyekit_kernels.dsa import reference


def test_topk_orders_by_score_then_index_and_pads_with_minus_one() -> None:
    scores = torch.tensor(
        [[5.0, 1.0, 5.0, 5.0, 9.0], [0.0, 0.0, 0.0, 0.0, 0.0], [1.0, float("nan"), -float("inf"), 2.0, 3.0]]
    )
    chosen = reference.select_topk(scores, torch.tensor([4, 2, 4]), topk=3)
    assert chosen.dtype == torch.int32
    assert chosen.tolist() == [[0, 2, 3], [0, 1, -1], [0, 1, 3]]


def test_topk_equals_a_sorted_list_on_tied_scores() -> None:
    torch.manual_seed(0)
    scores = torch.randint(-3, 4, (40, 37)).double()
    visible = torch.randint(1, 38, (40,))
    chosen = reference.select_topk(scores, visible, topk=8)
    for row in range(40):
        candidates = sorted(range(int(visible[row])), key=lambda key: (-scores[row, key].item(), key))[:8]
        expected = sorted(candidates) + [-1] * (8 - len(candidates))
        assert chosen[row].tolist() == expected


def test_indexer_scores_follow_the_formula() -> None:
    torch.manual_seed(0)
    query, key, gate = torch.randn(3, 2, 4).double(), torch.randn(5, 4).double(), torch.randn(3, 2).double()
    scores = reference.indexer_scores(query, key, gate)
    for t in range(3):
        for s in range(5):
            # dsa-kernels sheet 2.1; Keye-VL-2.0 sheet 4.1 item 6: indexer_dim ** -0.5, no head factor
            expected = sum(gate[t, j] * max(query[t, j] @ key[s], 0) * 4**-0.5 for j in range(2))
            torch.testing.assert_close(scores[t, s], torch.as_tensor(expected))


def test_scores_at_gathers_the_full_matrix() -> None:
    torch.manual_seed(1)
    query, key, gate = torch.randn(6, 3, 8).double(), torch.randn(9, 8).double(), torch.randn(6, 3).double()
    indices = torch.stack([torch.randperm(9)[:4] for _ in range(6)]).int()
    full = reference.indexer_scores(query, key, gate)
    torch.testing.assert_close(reference.scores_at(query, key, gate, indices), full.gather(1, indices.long()))


def test_attention_over_selection_equals_a_masked_softmax_with_gradients() -> None:
    torch.manual_seed(0)
    tensors = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((7, 6, 8), (11, 2, 8), (11, 2, 8))
    ]
    query, key, value = tensors
    indices = torch.stack([torch.randperm(11)[:5].sort().values for _ in range(7)]).int()
    indices[2, 3:] = -1
    output, lse = reference.attention_over_selection(query, key, value, indices, 8**-0.5)
    mask = torch.zeros(7, 12, dtype=torch.bool).scatter(1, torch.where(indices < 0, 11, indices).long(), True)[:, :11]
    wide_key, wide_value = key.repeat_interleave(3, 1), value.repeat_interleave(3, 1)
    logits = torch.einsum("thk,shk->ths", query, wide_key) * 8**-0.5
    logits = logits.masked_fill(~mask[:, None], -torch.inf)
    expected = torch.einsum("ths,shk->thk", logits.softmax(-1), wide_value)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(lse, logits.logsumexp(-1))
    weight = torch.randn_like(output)
    ours = torch.autograd.grad((output * weight).sum(), tensors)
    theirs = torch.autograd.grad((expected * weight).sum(), tensors)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_query_without_keys_gives_zero_and_finite_gradients() -> None:
    query = torch.randn(2, 2, 4, requires_grad=True)
    key = torch.randn(3, 1, 4, requires_grad=True)
    indices = torch.tensor([[-1, -1], [0, 2]], dtype=torch.int32)
    output, _ = reference.attention_over_selection(query, key, key, indices, 0.5)
    assert output[0].abs().sum() == 0
    output.sum().backward()
    assert query.grad.isfinite().all()
    assert key.grad.isfinite().all()


def test_kl_equals_torch_and_its_gradient_is_student_minus_teacher() -> None:
    torch.manual_seed(0)
    scores = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    target = torch.rand(5, 4, dtype=torch.float64).softmax(-1)
    indices = torch.arange(4).expand(5, 4).int()
    divergence = reference.kl_over_selection(scores, target, indices)
    expected = functional.kl_div(scores.log_softmax(-1), target, reduction="none").sum(-1)
    torch.testing.assert_close(divergence, expected)
    divergence.sum().backward()
    torch.testing.assert_close(scores.grad, scores.detach().softmax(-1) - target)  # dsa-kernels sheet 2.2


def test_group_sum_has_the_gradient_of_the_mean_times_the_number_of_groups() -> None:
    # Keye-VL-2.0 sheet 16 item 9: sum over groups of KL(p_g || q) against G * KL(mean p || q).
    torch.manual_seed(0)
    groups = torch.rand(4, 3, 6, dtype=torch.float64).softmax(-1)
    indices = torch.arange(6).expand(3, 6).int()
    scores = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    summed = sum(reference.kl_over_selection(scores, group, indices).sum() for group in groups)
    (by_group,) = torch.autograd.grad(summed, scores)
    (by_mean,) = torch.autograd.grad(4 * reference.kl_over_selection(scores, groups.mean(0), indices).sum(), scores)
    torch.testing.assert_close(by_group, by_mean)
