"""Merges against sums in float64, over the structure of the released checkpoints."""

import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from keyekit.models.merging import MergedTensors, average, combine, permuted_experts, task_vectors
from keyekit.models.weights import CheckpointError, WeightFolder
from keyekit.models.weights import writer as writer_module
from keyekit.models.weights.layout import Layout
from keyekit.models.weights.writer import write_shards
from keyekit.testing.checkpoint import tiny_checkpoint

GATE = "model.layers.1.mlp.gate.weight"


def whole(source, name) -> torch.Tensor:
    shape = source.tensors[name].shape
    return source.read(name, (0,) * len(shape), shape)


def single(folder: Path, **tensors: torch.Tensor) -> WeightFolder:
    folder.mkdir()
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    return WeightFolder(folder)


def test_coefficients() -> None:
    assert average([2, 6]) == (0.25, 0.75)
    assert task_vectors([0.25, -0.5]) == (1.25, 0.25, -0.5)
    for weights in ([0, 0], [], [1, -1], [1, float("nan")], [float("inf"), 1]):
        with pytest.raises(ValueError, match="an average takes weights of 0 or more"):
            average(weights)
    with pytest.raises(ValueError, match="finite"):
        task_vectors([float("inf")])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("coefficients", [average([1, 1, 1]), average([5, 0.1, 2]), task_vectors([0.7, -0.4])])
def test_sums_are_those_of_float64_rounded_once(dtype, coefficients) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(7, 5, 3).to(dtype) for _ in range(3)]
    exact = sum(c * tensor.double() for c, tensor in zip(coefficients, tensors, strict=True))
    merged = combine(tensors, coefficients)
    assert merged.dtype == dtype
    if dtype in (torch.bfloat16, torch.float16):  # accumulated in the narrow type some would differ by a step
        assert (merged == exact.to(dtype)).float().mean() > 0.98
    tolerance = {torch.float64: 1e-15, torch.float32: 4e-7}.get(dtype, torch.finfo(dtype).eps)
    torch.testing.assert_close(merged.double(), exact, rtol=tolerance, atol=tolerance)


def test_equal_tensors_stay_bit_for_bit_as_they_are() -> None:
    torch.manual_seed(0)
    tensor = torch.randn(10_000)
    naive = sum(tensor * (1 / 3) for _ in range(3))
    assert not torch.equal(naive, tensor), "the plain sum rounds, or this test shows nothing"
    assert torch.equal(combine([tensor] * 3, average([1, 1, 1])), tensor)
    assert torch.equal(combine([tensor] * 3, task_vectors([0.3, 0.9])), tensor)


def test_coefficients_that_are_no_merge_are_refused() -> None:
    with pytest.raises(ValueError, match="must add up to 1"):
        combine([torch.ones(2)] * 2, [1.0, 1.0])
    with pytest.raises(ValueError, match="shorter"):
        combine([torch.ones(2)] * 2, [1.0])


@pytest.mark.parametrize("forms", [("fused", "fused"), ("fused", "separate")])
def test_folders_of_any_form_merge_tensor_by_tensor(tmp_path, forms) -> None:
    """Experts by their index, whatever form each folder has; regions equal the region of the whole."""
    for seed, form in enumerate(forms):
        tiny_checkpoint(tmp_path / str(seed), experts=form, seed=seed)
    sources = [WeightFolder(tmp_path / str(seed)) for seed in range(2)]
    merged = MergedTensors(sources, average([1, 3]))
    assert list(merged.tensors) == list(sources[0].tensors)
    for name in merged.tensors:
        exact = 0.25 * whole(sources[0], name).double() + 0.75 * whole(sources[1], name).double()
        torch.testing.assert_close(whole(merged, name).double(), exact, rtol=2**-8, atol=1e-6)
    experts = "model.layers.0.mlp.experts.gate_up_proj"
    region = merged.read(experts, (1, 3, 20), (2, 5, 9))
    assert torch.equal(region, whole(merged, experts)[1:3, 3:8, 20:29])


def test_parts_have_coefficients_of_their_own_by_the_names_of_recipes(tmp_path) -> None:
    tensors = [tiny_checkpoint(tmp_path / str(seed), seed=seed, dtype=torch.float32) for seed in range(2)]
    sources = [WeightFolder(tmp_path / str(seed)) for seed in range(2)]
    parts = {"vision": average([1, 0]), "decoder.layers.[1].mlp": average([1, 3]), "decoder": average([0, 1])}
    merged = MergedTensors(sources, average([1, 1]), parts)
    for name in merged.tensors:
        a, b = (folder[name].double() for folder in tensors)
        expected = (a + b) / 2
        if name.startswith("visual."):
            expected = a
        elif name.startswith("model.layers.1.mlp."):
            expected = (a + 3 * b) / 4
        elif name.startswith(("model.", "lm_head.")):
            expected = b
        torch.testing.assert_close(whole(merged, name).double(), expected, rtol=1e-6, atol=1e-6)
    assert "lm_head.weight" in merged.copied
    assert "mlp_AR.linear_1.bias" not in merged.copied
    with pytest.raises(ValueError, match="'text' matches no tensor; names begin with decoder, projector, vision"):
        MergedTensors(sources, average([1, 1]), {"text": average([1, 0])})
    with pytest.raises(ValueError, match="vision: 1 numbers"):
        MergedTensors(sources, average([1, 1]), {"vision": (1.0,)})


def test_what_differs_is_named_with_what_can_be_done(tmp_path) -> None:
    a = single(tmp_path / "a", model__norm__weight=torch.ones(3), lm_head__weight=torch.ones(4, 3))
    b = single(tmp_path / "b", model__norm__weight=torch.ones(4), lm_head__weight=torch.ones(4, 3).half())
    with pytest.raises(CheckpointError) as caught:
        MergedTensors([a, b], average([1, 1]))
    message = str(caught.value)
    assert "2 differences" in message
    assert f"model.norm.weight: is [3] of float32 in {a.path / 'model.safetensors'} but [4] of float32" in message
    assert "lm_head.weight: is [4, 3] of float32" in message
    assert "--dtype bfloat16" in message
    assert "--part 'decoder.lm_head=1,0'" in message
    merged = MergedTensors([a, b], average([1, 1]), {"decoder.norm": average([0, 1])}, dtype=torch.float32)
    assert {name: stored.shape for name, stored in merged.tensors.items()} == {
        "model.norm.weight": (4,),
        "lm_head.weight": (4, 3),
    }
    assert whole(merged, "lm_head.weight").dtype == torch.float32


def test_tensors_that_a_model_lacks(tmp_path) -> None:
    embedding = torch.arange(6.0).view(3, 2)
    tied = single(tmp_path / "tied", model__embed_tokens__weight=embedding)
    own = single(tmp_path / "own", model__embed_tokens__weight=embedding + 1, lm_head__weight=embedding + 4)
    third = single(tmp_path / "third", model__embed_tokens__weight=embedding, lm_head__weight=embedding.clone())
    tied_message = "lm_head.weight: is in .* but missing in .*tied, which ties it to model.embed_tokens.weight"
    with pytest.raises(CheckpointError, match=tied_message):
        MergedTensors([tied, own, third], average([1, 1, 1]))
    taken = MergedTensors([tied, own, third], average([1, 1, 3]), missing="take")
    assert taken.incomplete == ["lm_head.weight"]
    torch.testing.assert_close(whole(taken, "lm_head.weight"), embedding + 1)
    left_out = MergedTensors([tied, own, third], average([1, 1, 1]), {"decoder.lm_head": average([1, 0, 0])})
    assert list(left_out.tensors) == ["model.embed_tokens.weight"]
    with pytest.raises(CheckpointError, match=r"missing in .*tied"):  # no difference from a base that lacks it
        MergedTensors([tied, own, third], task_vectors([1, 1]), anchor=0, missing="take")
    vectors = MergedTensors([third, tied, own], task_vectors([0.5, 0.5]), anchor=0, missing="take")
    torch.testing.assert_close(whole(vectors, "lm_head.weight"), embedding + 2)


def test_values_that_have_no_average(tmp_path) -> None:
    a = single(tmp_path / "a", table=torch.tensor([1, 2, 3]), scaled=torch.ones(2).to(torch.float8_e4m3fn))
    b = single(tmp_path / "b", table=torch.tensor([1, 2, 3]), scaled=torch.ones(2).to(torch.float8_e4m3fn))
    assert torch.equal(whole(MergedTensors([a, b], average([1, 1])), "table"), torch.tensor([1, 2, 3]))
    c = single(tmp_path / "c", table=torch.tensor([1, 2, 4]), scaled=torch.zeros(2).to(torch.float8_e4m3fn))
    with pytest.raises(
        CheckpointError, match=r"(?s)table: differs .*int64 has no average.*scaled: differs.*float8_e4m3fn"
    ):
        MergedTensors([a, c], average([1, 1]))
    broken = single(tmp_path / "nan", x=torch.tensor([1.0, float("nan")]))
    with pytest.raises(CheckpointError, match=r"x holds NaN or infinite values in .*nan"):
        whole(MergedTensors([single(tmp_path / "ok", x=torch.ones(2)), broken], average([1, 1])), "x")
    large = [single(tmp_path / f"large{i}", x=torch.full((2,), (-1) ** i * 6e4).half()) for i in range(2)]
    with pytest.raises(CheckpointError, match="beyond the largest float16"):
        whole(MergedTensors(large, task_vectors([-1.0]), anchor=0), "x")


def test_experts_that_are_numbered_differently_are_noticed(tmp_path) -> None:
    tensors = tiny_checkpoint(tmp_path / "a", shards=1, dtype=torch.float32)
    further = {name: tensor + 0.3 * torch.randn_like(tensor) for name, tensor in tensors.items()}
    swapped = {**further, GATE: further[GATE][[1, 2, 0]]}
    for name, content in (("b", further), ("c", swapped)):
        (tmp_path / name).mkdir()
        save_file(content, tmp_path / name / "model.safetensors")
    a, b, c = (WeightFolder(tmp_path / name) for name in "abc")
    assert permuted_experts([a, b]) == []
    assert permuted_experts([a, b, c]) == [GATE]


class Peak:
    """The most anonymous memory of this process while it is open; mapped files are the page cache's."""

    def __enter__(self) -> "Peak":
        self.before = self.highest = self.now()
        self.open = True
        self.thread = threading.Thread(target=self.sample)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.open = False
        self.thread.join()

    def sample(self) -> None:
        while self.open:
            self.highest = max(self.highest, self.now())
            time.sleep(0.001)

    def now(self) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def test_memory_is_a_few_blocks_and_not_a_tensor(tmp_path, monkeypatch) -> None:
    """Three models of two tensors of 64 MiB, merged in blocks of 2 MiB."""
    rows = writer_module.row_blocks
    monkeypatch.setattr(writer_module, "row_blocks", lambda stored: rows(stored, 2 * 2**20))
    sources = []
    for seed in range(3):
        tensors = {f"model.{n}.weight": torch.full((4096, 4096), float(seed + i)) for i, n in enumerate("ab")}
        (tmp_path / str(seed)).mkdir()
        save_file(tensors, tmp_path / str(seed) / "model.safetensors")
        sources.append(WeightFolder(tmp_path / str(seed)))
    del tensors
    merged = MergedTensors(sources, average([1, 1, 1]))
    layout = Layout.plan(merged.tensors)
    (tmp_path / "out").mkdir()
    with Peak() as peak:
        write_shards(merged, layout, tmp_path / "out")
    assert peak.highest - peak.before < 40 * 2**20
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all((written[f"model.{n}.weight"] == 1 + i).all() for i, n in enumerate("ab"))
