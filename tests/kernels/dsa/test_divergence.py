"""What makes a divergence differentiable, on a divergence that is easy to differentiate; refusals of the kernels."""

import pytest
import torch

from keyekit_kernels.dsa.divergence import IndexerKL, check_divergence_inputs


def squares(indexer, constants, settings, row_weight, need_gradients):
    """A row's sum of squares, as if it were a divergence: it depends on the index key through every row."""
    query, key, gate = indexer
    weight = torch.ones(len(query)) if row_weight is None else row_weight
    loss = (query.square().sum((1, 2)) * key.sum() + gate.sum(1)) * weight
    if not need_gradients:
        return loss, None
    by_query = 2 * query * key.sum() * weight[:, None, None]
    by_key = (query.square().sum((1, 2)) * weight).sum().expand(key.shape).clone()
    return loss, (by_query, by_key, weight[:, None].expand(gate.shape).clone())


@pytest.mark.parametrize("weight", [[1.0, 1.0, 1.0], [0.5, 0.5, 0.5], [1.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize("row_weight", [None, [1.0, 0.0, 3.0]])
def test_any_weighting_of_the_rows_gives_the_gradients_of_autograd(weight, row_weight) -> None:
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((3, 2, 4), (5, 4), (3, 2))]
    factors, rows = torch.tensor(weight), None if row_weight is None else torch.tensor(row_weight)
    expected, _ = squares(inputs, (), (), rows, False)
    gradients = torch.autograd.grad((expected * factors).sum(), inputs)
    losses = IndexerKL.apply(squares, (), True, *inputs, rows)
    torch.testing.assert_close(losses, expected)
    for ours, theirs in zip(torch.autograd.grad((losses * factors).sum(), inputs), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_strides_and_row_weights_are_looked_at() -> None:
    shapes = (3, 2, 16), (3, 16), (3, 2), (3, 2, 16), (3, 1, 16)
    tensors = [torch.zeros(shape) for shape in shapes]
    check_divergence_inputs(*tensors, None, torch.ones(3))
    with pytest.raises(ValueError, match=r"row_weight is \[2\]: \[3\] is needed"):
        check_divergence_inputs(*tensors, None, torch.ones(2))
    with pytest.raises(ValueError, match="gate has strides"):
        check_divergence_inputs(*tensors[:2], torch.zeros(2, 3).t(), *tensors[3:], None, None)
