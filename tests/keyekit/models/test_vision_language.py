"""The whole network: packed equals unpacked, batches without images, padding, mismatched placeholders."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from keyekit.batch import IGNORED_LABEL, Batch, SampleInfo, Segments, VisionBatch
from keyekit.models.decoder import Decoder
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.nn.attention.block_topk import BlockTopK
from keyekit.nn.attention.dense import Dense
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.attention.nsa import NSA
from keyekit.nn.attention.sliding_window import SlidingWindow
from keyekit.nn.moe.dense import SwiGLU
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.nn.moe.routers import SigmoidBias
from keyekit.nn.projector import MergeProjector
from keyekit.nn.rope.positions import VisualSpan, multimodal_positions
from keyekit.nn.vision.keye_vit import KeyeViT
from keyekit.objectives.cross_entropy import CrossEntropy
from keyekit.testing.tiny import tiny_vision_language_model

ATTENTIONS = {
    "dense": Dense,
    "dsa": partial(DSA, topk=5, num_indexer_heads=2, indexer_head_dim=16),
    "sliding_window": partial(SlidingWindow, window=5, sinks=2, sink_logits=True),
    "block_topk": partial(BlockTopK, block_size=2, topk_blocks=3),
    "nsa": partial(
        NSA, compress_block=4, compress_stride=2, select_block=4, topk_blocks=3, window=4, compressor_dim=16
    ),
}
FEED_FORWARDS = {
    "swiglu": SwiGLU,
    "softmax": partial(MixtureOfExperts, num_experts=4, active_experts=2, expert_dim=24),
    "sigmoid": partial(MixtureOfExperts, num_experts=4, active_experts=2, expert_dim=24, router=SigmoidBias),
}


def network(attention: str = "dense", feed_forward: str = "swiglu") -> VisionLanguageModel:
    torch.manual_seed(0)
    decoder = Decoder(
        vocab_size=50,
        dim=32,
        num_layers=2,
        num_heads=2,
        num_groups=1,
        head_dim=32,
        hidden_dim=48,
        rope_section=(4, 6, 6),
        attention=ATTENTIONS[attention],
        feed_forward=FEED_FORWARDS[feed_forward],
    )
    return VisionLanguageModel(KeyeViT(24, 1, 2, 32, image_size=56), MergeProjector(24, 32), decoder)


def sample(length: int, grids: list[tuple[int, int]], seed: int) -> Batch:
    """One sample as a batch of its own: two text tokens, its media, text to the end."""
    generator = torch.Generator().manual_seed(seed)
    spans, start = [], 2
    for rows, columns in grids:
        spans.append(VisualSpan(start=start, rows=rows // 2, columns=columns // 2))
        start = spans[-1].stop + 1
    index = [i for span in spans for i in range(span.start, span.stop)]
    labels = torch.full((length,), IGNORED_LABEL)
    labels[-4:] = torch.randint(0, 50, (4,), generator=generator)
    patches = torch.randn(sum(r * c for r, c in grids), 3, 14, 14, generator=generator)
    return Batch(
        tokens=torch.randint(0, 50, (length,), generator=generator),
        labels=labels,
        positions=multimodal_positions(length, spans),
        segments=Segments.of([length]),
        vision=VisionBatch(patches=patches, grids=tuple(grids)) if grids else None,
        vision_index=torch.tensor(index, dtype=torch.int64),
        samples=(SampleInfo(id=str(seed), task="t", start=0, stop=length),),
        num_targets=4,
    )


def pack(parts: list[Batch], tail: int = 0) -> Batch:
    """Join samples by hand, apart from the packer under test elsewhere."""
    lengths = [part.tokens.numel() for part in parts]
    starts = [sum(lengths[:i]) for i in range(len(parts))]
    visions = [part.vision for part in parts if part.vision is not None]
    pad = torch.zeros(tail, dtype=torch.int64)
    patches = torch.cat([v.patches for v in visions]) if visions else None
    return Batch(
        tokens=torch.cat([*(p.tokens for p in parts), pad]),
        labels=torch.cat([*(p.labels for p in parts), pad + IGNORED_LABEL]),
        positions=torch.cat([*(p.positions for p in parts), torch.arange(tail).expand(3, -1)], dim=1),
        segments=Segments.of(lengths + ([tail] if tail else [])),
        vision=VisionBatch(patches=patches, grids=tuple(g for v in visions for g in v.grids)) if visions else None,
        vision_index=torch.cat([p.vision_index + s for p, s in zip(parts, starts, strict=True)]),
        samples=tuple(
            replace(p.samples[0], start=s, stop=s + n) for p, s, n in zip(parts, starts, lengths, strict=True)
        ),
        num_targets=sum(p.num_targets for p in parts),
    )


def summed_loss(model: VisionLanguageModel, batch: Batch) -> torch.Tensor:
    output = model(batch)
    loss = CrossEntropy()(output.hidden, model.decoder.lm_head.weight, batch.labels, batch.num_targets)
    tokens = batch.samples[-1].stop
    for extra in output.losses.values():  # means over tokens: weigh them to make sums comparable
        loss = loss + extra * tokens
    return loss


@pytest.mark.parametrize("feed_forward", FEED_FORWARDS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_packed_equals_unpacked_in_loss_and_gradients(attention: str, feed_forward: str) -> None:
    model = network(attention, feed_forward).double()
    shapes = [(17, [(4, 4)]), (9, []), (23, [(2, 4), (4, 2)])]
    parts = [sample(n, g, seed) for seed, (n, g) in enumerate(shapes)]
    parts = [
        replace(p, vision=None if p.vision is None else replace(p.vision, patches=p.vision.patches.double()))
        for p in parts
    ]
    packed = summed_loss(model, pack(parts, tail=6))
    unpacked = sum(summed_loss(model, part) for part in parts)
    torch.testing.assert_close(packed, unpacked, rtol=1e-6, atol=1e-6)
    parameters = dict(model.named_parameters())
    mine = torch.autograd.grad(packed, list(parameters.values()), allow_unused=True)
    other = torch.autograd.grad(unpacked, list(parameters.values()), allow_unused=True)
    for name, a, b in zip(parameters, mine, other, strict=True):
        a, b = (torch.zeros(1) if g is None else g for g in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_a_batch_without_images_trains_and_touches_every_parameter() -> None:
    model = network().train()
    summed_loss(model, sample(12, [], 0)).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert not any(gradients[name].any() for name in gradients if name.startswith(("vision", "projector")))
    assert gradients["decoder.lm_head.weight"].any()


def test_the_blank_patch_does_not_change_the_result() -> None:
    model, batch = network(), sample(12, [], 0)
    torch.testing.assert_close(model.train()(batch).hidden, model.eval()(batch).hidden, rtol=0, atol=0)


def test_what_the_model_sees_changes_what_it_says() -> None:
    model = network().eval()
    batch = sample(17, [(4, 4)], 0)
    other = replace(batch, vision=replace(batch.vision, patches=-batch.vision.patches))
    assert not torch.allclose(model(batch).hidden[-1], model(other).hidden[-1])


def test_placeholders_and_features_must_agree() -> None:
    batch = sample(17, [(4, 4)], 0)
    with pytest.raises(ValueError, match="4 vision features for 3 placeholders"):
        network()(replace(batch, vision_index=batch.vision_index[:3]))


@pytest.mark.parametrize("attention", ["dsa", "block_topk", "nsa"])
def test_replaying_the_selections_reproduces_the_output(attention: str) -> None:
    model = network(attention, "softmax").eval()
    batch = sample(17, [(4, 4)], 0)
    first = model(batch)
    assert len(first.selections) == 2
    assert first.selections[0].keys is not None
    assert first.selections[0].experts is not None
    torch.testing.assert_close(model(batch, selections=first.selections).hidden, first.hidden)
    changed = [replace(s, experts=(s.experts + 1) % 4) for s in first.selections]
    assert not torch.allclose(model(batch, selections=changed).hidden, first.hidden)


def test_a_projector_of_another_width_is_refused() -> None:
    model = tiny_vision_language_model()
    with pytest.raises(ValueError, match="width 48, the decoder reads 32"):
        VisionLanguageModel(model.vision, MergeProjector(32, 48), model.decoder)
