"""What student and teacher server send each other: tensors in the safetensors format, which can hold nothing but numbers."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from keyekit.batch import Batch, SampleInfo, Segments, VisionBatch
from keyekit.data.processing.patchify import normalise_patches
from keyekit.objectives.distillation.base import target_rows
from keyekit.objectives.distillation.topk import TopK

__all__ = ["Question", "pack_answer", "pack_question", "unpack_answer", "unpack_question"]

_LABELLED = "meta"


class Question(NamedTuple):
    """What a student asks of a teacher.

    Args:
        batch: The pack.
        topk: Words that the teacher lists.
        asked: ``[T, N]`` ids that it scores instead.
    """

    batch: Batch
    topk: int
    asked: Tensor | None


def pack_question(batch: Batch, topk: int, asked: Tensor | None = None) -> bytes:
    """A pack as bytes; pictures go as the eight bits per channel that they were made of, if they were.

    Args:
        batch: Of ``T`` tokens.
        topk: Words that the teacher is to list.
        asked: ``[T, N]`` ids that it is to score instead.
    """
    tensors = {
        "tokens": batch.tokens.int(),
        "labels": batch.labels.int(),
        "positions": batch.positions.int(),
        "lengths": torch.tensor(batch.segments.lengths, dtype=torch.int32),
        "vision_index": batch.vision_index.int(),
    }
    if asked is not None:
        tensors["asked"] = asked[target_rows(batch.labels, batch.num_targets)].int()
    if batch.vision is not None:
        tensors["patches"] = _pixels(batch.vision.patches)
        tensors["grids"] = torch.tensor(batch.vision.grids, dtype=torch.int32)
        tensors["frames"] = torch.tensor(batch.vision.frames, dtype=torch.int32)
    about = {"topk": topk, "samples": [[s.id, s.start, s.stop] for s in batch.samples]}
    return save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, {_LABELLED: json.dumps(about)})


def unpack_question(data: bytes) -> Question:
    """The inverse of :func:`pack_question`.

    Raises:
        ValueError: If the bytes are no question, or its tensors do not fit each other.
    """
    try:
        tensors, about = _read(data)
        samples = tuple(
            SampleInfo(id=str(name), task="", start=int(start), stop=int(stop))
            for name, start, stop in about["samples"]
        )
        topk = int(about["topk"])
        lengths = tensors["lengths"].tolist()
        tokens, labels, positions = (tensors[name].long() for name in ("tokens", "labels", "positions"))
        index = tensors["vision_index"].long()
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"this is no pack of a student: {type(error).__name__}: {error}") from None
    total = len(tokens) if tokens.dim() == 1 else -1
    stops = [sample.stop for sample in samples]
    starts = [sample.start for sample in samples]
    fits = (
        total >= 0
        and labels.shape == (total,)
        and positions.shape == (3, total)
        and all(isinstance(length, int) and length >= 0 for length in lengths)
        and sum(lengths) == total
        and starts == [0, *stops[:-1]][: len(starts)]
        and [stop - start for start, stop in zip(starts, stops, strict=True)] == lengths[: len(samples)]
        and len(lengths) - len(samples) in (0, 1)
        and index.dim() == 1
        and (len(index) == 0 or (bool((index.diff() > 0).all()) and int(index[0]) >= 0 and int(index[-1]) < total))
    )
    if not fits:
        raise ValueError("tokens, labels, positions, lengths, samples and places of pictures do not fit each other")
    num_targets = int((labels != -100).sum())
    return Question(
        batch=Batch(
            tokens=tokens,
            labels=labels,
            positions=positions,
            segments=Segments.of(lengths),
            vision=_vision(tensors),
            vision_index=index,
            samples=samples,
            num_targets=num_targets,
        ),
        topk=topk,
        asked=_asked(tensors, labels, num_targets),
    )


def pack_answer(words: TopK, rows: Tensor) -> bytes:
    """Words of the targets as bytes.

    Args:
        words: ``[T, N]``.
        rows: ``[R]`` positions of the targets.
    """
    chosen = words.rows(rows)
    return save(
        {
            "indices": chosen.indices.int().contiguous().cpu(),
            "log_probs": chosen.log_probs.float().contiguous().cpu(),
        }
    )


def unpack_answer(data: bytes, num_targets: int) -> TopK:
    """The inverse of :func:`pack_answer`, for the targets alone.

    Raises:
        ValueError: If the bytes are no answer to a question with so many targets.
    """
    try:
        tensors = load(data)
        words = TopK(indices=tensors["indices"].long(), log_probs=tensors["log_probs"].float())
    except (KeyError, ValueError, SafetensorError) as error:
        raise ValueError(f"this is no answer of a teacher: {type(error).__name__}: {error}") from None
    if len(words.indices) != num_targets:
        raise ValueError(f"the teacher answers for {len(words.indices)} tokens, {num_targets} were asked about")
    return words


def _read(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description. The header's length is checked first: it is the peer that wrote it."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise ValueError("the bytes are cut off")
    header = json.loads(data[8 : 8 + size])
    about = json.loads(header["__metadata__"][_LABELLED])
    return load(data), about


def _pixels(patches: Tensor) -> Tensor:
    """Normalised patches as the uint8 they were made of; as float32 if they were made of something else."""
    pixels = ((patches.float() + 1) * 127.5).round()
    if bool((pixels >= 0).all()) and bool((pixels <= 255).all()):
        whole = pixels.to(torch.uint8)
        if torch.equal(normalise_patches(whole), patches.float()):
            return whole
    return patches.float()


def _vision(tensors: dict[str, Tensor]) -> VisionBatch | None:
    if "patches" not in tensors:
        return None
    patches = tensors["patches"]
    grids, frames = (tensors[name].tolist() if name in tensors else [] for name in ("grids", "frames"))
    sound = (
        patches.dim() == 4
        and patches.shape[1] == 3
        and patches.shape[2] == patches.shape[3]
        and bool(grids)
        and all(isinstance(grid, list) and len(grid) == 2 and min(grid) > 0 for grid in grids)
        and sum(rows * columns for rows, columns in grids) == len(patches)
        and all(isinstance(count, int) and count > 0 for count in frames)
        and sum(frames) == len(grids)
    )
    if not sound:
        raise ValueError("patches, grids and frames do not fit each other")
    values = normalise_patches(patches) if patches.dtype == torch.uint8 else patches.float()
    return VisionBatch(patches=values, grids=tuple((r, c) for r, c in grids), frames=tuple(frames))


def _asked(tensors: dict[str, Tensor], labels: Tensor, num_targets: int) -> Tensor | None:
    if "asked" not in tensors:
        return None
    ids = tensors["asked"].long()
    if ids.dim() != 2 or len(ids) != num_targets or ids.shape[1] < 1:
        raise ValueError(f"ids {tuple(ids.shape)} are asked about, there are {num_targets} targets")
    spread = ids.new_zeros(len(labels), ids.shape[1])
    return spread.index_copy(0, target_rows(labels, num_targets), ids)
