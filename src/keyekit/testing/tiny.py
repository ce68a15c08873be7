"""Models, specs and batches of a few thousand numbers with the structure of the real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from keyekit.batch import IGNORED_LABEL, Batch, SampleInfo, Segments, VisionBatch
from keyekit.models.decoder import Decoder
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.nn.attention.base import Attention, LayerContext
from keyekit.nn.attention.dense import Dense
from keyekit.nn.moe.base import FeedForward, RouterSpec
from keyekit.nn.moe.dense import SwiGLU
from keyekit.nn.projector import MergeProjector
from keyekit.nn.rope.positions import VisualSpan, multimodal_positions
from keyekit.nn.rope.rotary import MultimodalRope, Rotary
from keyekit.nn.spec import LayerSpec
from keyekit.nn.vision.keye_vit import KeyeViT

__all__ = [
    "tiny_batch",
    "tiny_context",
    "tiny_layer_spec",
    "tiny_record",
    "tiny_router_spec",
    "tiny_vision_language_model",
]

_VOCABULARY = 64


def tiny_layer_spec(layer: int = 0) -> LayerSpec:
    """A layer of width 32 with four query heads in two groups of width 16."""
    rope = MultimodalRope(head_dim=16, theta=10000.0, section=(2, 4, 2))
    return LayerSpec(
        layer=layer, dim=32, num_heads=4, num_groups=2, head_dim=16, hidden_dim=48, norm_eps=1e-6, rope=rope
    )


def tiny_router_spec() -> RouterSpec:
    """Six experts for width 32, two active."""
    return RouterSpec(dim=32, num_experts=6, active_experts=2)


def tiny_context(lengths: Sequence[int], spec: LayerSpec | None = None) -> LayerContext:
    """Context of text sequences of these lengths, each counted from position 0."""
    spec = spec or tiny_layer_spec()
    positions = torch.cat([multimodal_positions(length, []) for length in lengths], dim=1)
    return LayerContext(
        segments=Segments.of(lengths), rotary=Rotary(spec.rope, positions), num_tokens=sum(lengths), cache=None
    )


def tiny_vision_language_model(
    attention: Callable[[LayerSpec], Attention] = Dense, feed_forward: Callable[[LayerSpec], FeedForward] = SwiGLU
) -> VisionLanguageModel:
    """A vision-language model of Keye's structure with about fifty thousand parameters."""
    spec = tiny_layer_spec()
    return VisionLanguageModel(
        vision=KeyeViT(dim=32, num_layers=1, num_heads=2, hidden_dim=48, image_size=56),
        projector=MergeProjector(vision_dim=32, dim=spec.dim),
        decoder=Decoder(
            vocab_size=_VOCABULARY,
            dim=spec.dim,
            num_layers=2,
            num_heads=spec.num_heads,
            num_groups=spec.num_groups,
            head_dim=spec.head_dim,
            hidden_dim=spec.hidden_dim,
            attention=attention,
            feed_forward=feed_forward,
            rope_theta=10000.0,
            rope_section=spec.rope.section,
        ),
    )


def tiny_batch(
    lengths: Sequence[int] = (9, 14),
    grids: Sequence[tuple[int, int] | None] = ((2, 4), None),
    tail: int = 3,
    seed: int = 0,
) -> Batch:
    """A pack of random samples, each with one image or none, and a tail of padding.

    Args:
        lengths: Tokens of each sample, image tokens included.
        grids: Patch grid of each sample's image, or ``None`` for text alone.
        tail: Tokens of padding.
        seed: Of the random tokens and pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens, labels, positions, samples, vision_index = [], [], [], [], []
    start = 0
    for number, (length, grid) in enumerate(zip(lengths, grids, strict=True)):
        sample_tokens = torch.randint(1, _VOCABULARY, (length,), generator=generator)
        sample_labels = sample_tokens.roll(-1)
        sample_labels[-1] = IGNORED_LABEL
        spans = []
        if grid is not None:
            span = VisualSpan(start=1, rows=grid[0] // 2, columns=grid[1] // 2)
            spans.append(span)
            sample_labels[: span.stop] = IGNORED_LABEL
            vision_index.append(torch.arange(start + span.start, start + span.stop))
        tokens.append(sample_tokens)
        labels.append(sample_labels)
        positions.append(multimodal_positions(length, spans))
        samples.append(SampleInfo(id=str(number), task="count", start=start, stop=start + length))
        start += length
    tokens.append(torch.zeros(tail, dtype=torch.int64))
    labels.append(torch.full((tail,), IGNORED_LABEL))
    positions.append(multimodal_positions(tail, []))
    present = [grid for grid in grids if grid is not None]
    patches = torch.randn(sum(rows * columns for rows, columns in present), 3, 14, 14, generator=generator)
    packed_labels = torch.cat(labels)
    return Batch(
        tokens=torch.cat(tokens),
        labels=packed_labels,
        positions=torch.cat(positions, dim=1),
        segments=Segments.of([*lengths, tail] if tail else list(lengths)),
        vision=VisionBatch(patches=patches, grids=tuple(present)) if present else None,
        vision_index=torch.cat(vision_index) if vision_index else torch.empty(0, dtype=torch.int64),
        samples=tuple(samples),
        num_targets=int((packed_labels != IGNORED_LABEL).sum()),
    )


def tiny_record(
    name: str, question: str, answer: str, media: Sequence[tuple[str, str]] = (), task: str = "count"
) -> dict[str, Any]:
    """A conversation as it stands in a JSONL line.

    Args:
        name: Its id.
        question: The user's text.
        answer: The assistant's text and the expected answer.
        media: ``("image" | "video", path)`` of each medium, shown before the question.
        task: Its task family.
    """
    content = [{"type": kind, kind: path} for kind, path in media] + [{"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"id": name, "task": task, "messages": messages, "answer": answer}
