"""Exact top-k kernels against a stable sort: indices are equal, whatever the scores."""

import pytest
import torch

from keyekit_kernels.dsa import reference
from keyekit_kernels.dsa.topk import block_maxima, select_topk

pytestmark = pytest.mark.interpreter

WIDTH = 96
VISIBLE = torch.tensor([0, 1, 16, 17, 41, 95, 96], dtype=torch.int32)
ROWS = len(VISIBLE)


def special() -> torch.Tensor:
    """Infinities, NaN and zeros of both signs among few values."""
    values = torch.tensor([torch.nan, -torch.inf, torch.inf, 0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38])
    return values[torch.randint(0, len(values), (ROWS, WIDTH))]


SCORES = {
    "random": lambda: torch.randn(ROWS, WIDTH),
    "tied": lambda: torch.randint(-2, 3, (ROWS, WIDTH)).float(),
    "all tied": lambda: torch.full((ROWS, WIDTH), 0.5),
    "special": special,
    "zeros of both signs": lambda: torch.where(torch.rand(ROWS, WIDTH) < 0.5, 0.0, -0.0),
    "all NaN": lambda: torch.full((ROWS, WIDTH), torch.nan),
    "all minus infinity": lambda: torch.full((ROWS, WIDTH), -torch.inf),
    "few finite": lambda: torch.where(torch.rand(ROWS, WIDTH) < 0.1, torch.randn(ROWS, WIDTH), -torch.inf),
    "descending": lambda: -torch.arange(WIDTH).float().expand(ROWS, -1).contiguous(),
    "ascending": lambda: torch.arange(WIDTH).float().expand(ROWS, -1).contiguous(),
    "clustered": lambda: torch.cat([torch.randn(ROWS, 24) + 99, torch.randn(ROWS, WIDTH - 24)], 1),
    "neighbours": lambda: (torch.randint(0, 9, (ROWS, WIDTH)) + 1_000_000_000).int().view(torch.float32),
}


def expected_rows(scores: torch.Tensor, visible: torch.Tensor, topk: int) -> torch.Tensor:
    chosen = reference.select_topk(scores, visible, topk)
    return torch.nn.functional.pad(chosen, (0, topk - chosen.shape[1]), value=-1)


@pytest.mark.parametrize(
    ("kind", "topk", "sub_block"),
    [*((kind, 16, 8) for kind in SCORES), ("tied", 5, 4), ("special", 5, 4), ("random", 1, 8)],
)
@pytest.mark.parametrize("few", [True, False], ids=["in slices", "whole"])
def test_rows_equal_a_stable_sort(kind: str, topk: int, sub_block: int, few: bool, monkeypatch) -> None:
    monkeypatch.setattr("keyekit_kernels.dsa.topk._FEW_ROWS", ROWS if few else 0)
    scores = SCORES[kind]()
    chosen = select_topk(scores, block_maxima(scores, VISIBLE, sub_block), VISIBLE, topk)
    assert chosen.dtype == torch.int32
    assert torch.equal(chosen, expected_rows(scores, VISIBLE, topk))


@pytest.mark.parametrize(
    ("kind", "topk", "sub_block"),
    [
        ("random", 1, 4),
        ("tied", 1, 4),
        *((kind, 3, 2) for kind in ("random", "tied", "all tied", "special", "few finite")),
    ],
)
def test_rows_with_a_further_level_of_maxima_equal_a_stable_sort(
    kind: str, topk: int, sub_block: int, monkeypatch
) -> None:
    monkeypatch.setattr("keyekit_kernels.dsa.topk._LARGEST_LEVEL", 8)
    scores = SCORES[kind]()
    chosen = select_topk(scores, block_maxima(scores, VISIBLE, sub_block), VISIBLE, topk)
    assert torch.equal(chosen, expected_rows(scores, VISIBLE, topk))


@pytest.mark.parametrize("width", [131072, 524288])
def test_published_sizes(width: int) -> None:
    scores = torch.randn(3, width)
    scores[1] = scores[1].mul(4).round()
    scores[2, ::3] = torch.nan
    visible = torch.tensor([width, width - 5, width - 1], dtype=torch.int32)
    expected = reference.select_topk(scores, visible, 2048)
    assert torch.equal(select_topk(scores, block_maxima(scores, visible), visible, 2048), expected)


@pytest.mark.parametrize("topk", [1, 7, 95, 96, 200])
def test_any_number_of_keys(topk: int) -> None:
    scores = SCORES["tied"]()[-2:].contiguous()
    visible = VISIBLE[-2:].contiguous()
    assert torch.equal(
        select_topk(scores, block_maxima(scores, visible), visible, topk), expected_rows(scores, visible, topk)
    )


def test_hidden_scores_and_what_a_buffer_held_are_never_used() -> None:
    scores = torch.randn(ROWS, WIDTH)
    hidden = torch.arange(WIDTH) >= VISIBLE[:, None]
    poisoned = scores.masked_fill(hidden, torch.inf)
    maxima = block_maxima(poisoned, VISIBLE).masked_fill(torch.arange(0, WIDTH, 8) >= VISIBLE[:, None], torch.inf)
    out = torch.full((ROWS, 5), 1234567, dtype=torch.int32)
    assert select_topk(poisoned, maxima, VISIBLE, 5, out=out) is out
    assert torch.equal(out, expected_rows(scores, VISIBLE, 5))


def test_only_the_sub_blocks_that_can_matter_are_read() -> None:
    scores = torch.randn(1, WIDTH)
    visible = torch.tensor([WIDTH], dtype=torch.int32)
    maxima = block_maxima(scores, visible)
    expected = expected_rows(scores, visible, 3)
    best = maxima[0].topk(3).indices
    unread = torch.ones(WIDTH // 8, dtype=torch.bool).index_fill(0, best, False).repeat_interleave(8)
    scores[0, unread] = torch.inf  # contradicts the maxima: would be selected if it were read
    assert torch.equal(select_topk(scores, maxima, visible, 3), expected)


def test_first_key_moves_indices_but_not_the_tail() -> None:
    scores = torch.randn(ROWS, WIDTH)
    first_key = torch.arange(ROWS, dtype=torch.int32) * 1000
    local = expected_rows(scores, VISIBLE, 16)
    moved = torch.where(local < 0, -1, local + first_key[:, None])
    assert torch.equal(select_topk(scores, block_maxima(scores, VISIBLE), VISIBLE, 16, first_key=first_key), moved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(2, 16).double()}, "scores is .* torch.float64: contiguous float32"),
        ({"scores": torch.zeros(16, 2).t()}, "contiguous float32"),
        ({"visible": torch.tensor([1, 2])}, "visible is .* torch.int64: contiguous int32"),
        ({"maxima": torch.zeros(2, 3)}, "sub_block a power of two is needed"),
        ({"topk": -1}, "topk=-1"),
        ({"topk": 20_000}, "topk=20000 of 16 scores in sub-blocks of 8: .* must not exceed 32768"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    arguments = {"scores": torch.zeros(2, 16), "maxima": torch.zeros(2, 2), "visible": torch.ones(2).int(), "topk": 3}
    with pytest.raises(ValueError, match=message):
        select_topk(**{**arguments, **change})


@pytest.mark.gpu
@pytest.mark.parametrize("few", [True, False], ids=["in slices", "whole"])
@pytest.mark.parametrize("width", [4096, 32768, 131072, 262144])
def test_device_rows_equal_a_stable_sort_in_every_run(width: int, few: bool, monkeypatch) -> None:
    monkeypatch.setattr("keyekit_kernels.dsa.topk._FEW_ROWS", 8 if few else 0)
    scores = torch.randn(8, width, device="cuda")
    scores[1] = scores[1].mul(4).round()  # plateaus
    scores[2] = 1.0
    scores[3, ::3] = torch.nan
    visible = torch.full((8,), width, dtype=torch.int32, device="cuda")
    visible[4:] = torch.tensor([1, 2047, 2049, width - 3])
    expected = reference.select_topk(scores, visible, 2048)
    maxima = block_maxima(scores, visible)
    for _ in range(20):
        assert torch.equal(select_topk(scores, maxima, visible, 2048), expected)


@pytest.mark.gpu
def test_device_addresses_pass_two_to_the_thirty_first() -> None:
    rows, width = 8200, 262144
    scores = torch.empty(rows, width, device="cuda")
    maxima = torch.empty(rows, width // 8, device="cuda")
    visible = torch.zeros(rows, dtype=torch.int32, device="cuda")
    scores[-2:] = torch.randn(2, width, device="cuda")
    visible[-2:] = width
    maxima[-2:] = block_maxima(scores[-2:], visible[-2:])
    chosen = select_topk(scores, maxima, visible, 2048)
    assert torch.equal(chosen[-2:], reference.select_topk(scores[-2:], visible[-2:], 2048))
    assert (chosen[:-2] == -1).all()
