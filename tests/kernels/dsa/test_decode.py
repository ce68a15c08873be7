"""A decoding step on paged caches against the unpaged reference."""

import pytest
import torch

from keyekit_kernels.dsa import reference
from keyekit_kernels.dsa.decode import decode_step, paged_logits
from keyekit_kernels.dsa.quantization import dequantize, hadamard, pack_pages, quantize

pytestmark = pytest.mark.interpreter

PAGES = 12
LENGTHS = (1, 70, 0, 192, 128)
GROUPS, HEADS, WIDTH = 2, 6, 16
INDEX_HEADS, INDEX_WIDTH = 3, 32


def caches(dtype: torch.dtype = torch.float32, exact: bool = True) -> dict:
    """Caches whose pages lie in any order; with ``exact`` the scores are exact sums, with ties."""
    slots, batch = PAGES * 64, len(LENGTHS)
    if exact:
        values = torch.randint(-3, 4, (slots, INDEX_WIDTH)).to(torch.float8_e4m3fn)
        scales = 2.0 ** torch.randint(-2, 3, (slots,))
        index_query = torch.randint(-3, 4, (batch, INDEX_HEADS, INDEX_WIDTH)).to(torch.float8_e4m3fn)
        query_scale = 2.0 ** torch.randint(-2, 3, (batch, INDEX_HEADS))
        gate = torch.randint(-2, 3, (batch, INDEX_HEADS)).float()
    else:
        values, scales = quantize(hadamard(torch.randn(slots, INDEX_WIDTH)))
        index_query, query_scale = quantize(hadamard(torch.randn(batch, INDEX_HEADS, INDEX_WIDTH)))
        gate = torch.randn(batch, INDEX_HEADS)
    table = torch.full((batch, 4), 2**30, dtype=torch.int32)  # past the length: the address of no page
    pages = iter(torch.randperm(PAGES).tolist())
    for sequence, length in enumerate(LENGTHS):
        for page in range(-(-length // 64)):
            table[sequence, page] = next(pages)
    return {
        "query": torch.randn(batch, HEADS, WIDTH).to(dtype),
        "key": torch.randn(slots, GROUPS, WIDTH).to(dtype),
        "value": torch.randn(slots, GROUPS, WIDTH).to(dtype),
        "index_query": index_query,
        "query_scale": query_scale,
        "gate": gate,
        "index_pages": pack_pages(values, scales),
        "page_table": table,
        "lengths": torch.tensor(LENGTHS, dtype=torch.int32),
        "index_key": dequantize(values, scales),
    }


def slots_of(cache: dict, sequence: int) -> torch.Tensor:
    position = torch.arange(LENGTHS[sequence])
    return cache["page_table"][sequence, position // 64].long() * 64 + position % 64


def expected_step(cache: dict, topk: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Output, log-sum-exp, selection and scores, sequence by sequence on unpaged copies."""
    outputs, sums, chosen, scores = [], [], [], []
    for sequence, length in enumerate(LENGTHS):
        slots, own = slots_of(cache, sequence), slice(sequence, sequence + 1)
        query = dequantize(cache["index_query"].float(), cache["query_scale"])[own]
        scores.append(reference.indexer_scores(query, cache["index_key"][slots], cache["gate"][own])[0])
        indices = reference.select_topk(scores[-1][None], torch.tensor([length]), topk)
        indices = torch.nn.functional.pad(indices, (0, topk - indices.shape[1]), value=-1)
        key, value = (cache[name][slots if length else slice(0, 1)] for name in ("key", "value"))
        output, lse = reference.attention_over_selection(cache["query"][own], key, value, indices, 0.25)
        outputs.append(output)
        sums.append(lse)
        chosen.append(indices)
    return torch.cat(outputs), torch.cat(sums), torch.cat(chosen), scores


def step(cache: dict, topk: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    arguments = {name: x for name, x in cache.items() if name != "index_key"}
    return decode_step(**arguments, topk=topk, scale=0.25)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
@pytest.mark.parametrize("topk", [16, 50, 130])
def test_a_step_equals_the_unpaged_reference(dtype: torch.dtype, tolerance: float, topk: int) -> None:
    cache = caches(dtype)
    output, lse, indices = step(cache, topk)
    expected, sums, chosen, _ = expected_step(cache, topk)
    assert torch.equal(indices, chosen)
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse, sums, rtol=1e-5, atol=1e-5)
    assert (output[2] == 0).all()
    assert (lse[2] == -1e30).all()


def test_paged_scores_are_those_of_the_ragged_cache() -> None:
    cache = caches(exact=False)
    names = ("query_scale", "gate", "index_pages", "page_table", "lengths")
    scores, maxima = paged_logits(cache["index_query"], *(cache[name] for name in names))
    assert scores.shape == (5, 256)
    for row, peaks, expected in zip(scores, maxima, expected_step(cache, 8)[3], strict=True):
        length = len(expected)
        torch.testing.assert_close(row[:length], expected, rtol=1e-5, atol=1e-5)
        padded = torch.nn.functional.pad(row[:length], (0, -length % 8), value=-torch.inf)
        assert torch.equal(peaks[: -(-length // 8)], padded.view(-1, 8).amax(1))


def test_a_nan_key_is_not_selected_before_others() -> None:
    cache = caches()
    page = cache["index_pages"][int(cache["page_table"][3, 0])]
    page.view(torch.float32)[16 * INDEX_WIDTH + 5] = (
        torch.nan
    )  # the scale of token 5: the interpreter has no NaN in e4m3
    indices = step(cache, 100)[2]
    assert 5 not in indices[3].tolist()
    assert (indices[3] >= 0).all()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("index_query", torch.Tensor.float, "query is .* torch.float32: float8_e4m3fn"),
        ("gate", lambda x: x[:, :2], r"gate \[5, 2\]: \[5, 3\] is needed"),
        ("index_pages", lambda x: x[:, :-4], r"uint8 \[pages, 2304\] is needed"),
        ("page_table", torch.Tensor.long, "page_table is .* torch.int64: contiguous int32"),
        ("lengths", lambda x: x[:2], r"lengths is \[2\] torch.int32: contiguous int32 \[5\]"),
    ],
)
def test_bad_input_is_named(name: str, change, message: str) -> None:
    cache = caches()
    cache[name] = change(cache[name])
    with pytest.raises(ValueError, match=message):
        step(cache, 16)


@pytest.mark.gpu
def test_device_step_equals_the_unpaged_reference() -> None:
    cache = caches(torch.bfloat16)
    expected, sums, chosen, _ = expected_step(cache, 50)
    output, lse, indices = step({name: x.cuda() for name, x in cache.items()}, 50)
    assert torch.equal(indices.cpu(), chosen)
    torch.testing.assert_close(output.cpu().float(), expected.float(), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(lse.cpu(), sums, rtol=1e-3, atol=1e-3)
