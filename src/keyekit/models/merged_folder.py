"""A checkpoint folder out of several: merged weights, and the other files, which have to agree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from keyekit.models.merging import MergedTensors, Missing, average, permuted_experts, task_vectors
from keyekit.models.pretrained import CONFIG
from keyekit.models.weights.folder import WeightFolder
from keyekit.models.weights.layout import MAX_SHARD_SIZE
from keyekit.models.weights.names import ExpertForm
from keyekit.models.weights.replacing import companions, replacing
from keyekit.models.weights.source import CheckpointError
from keyekit.models.weights.writer import write_shards

__all__ = ["RECORD", "MergeReport", "merge_folders", "merged_tensors", "refuse_other_settings"]

RECORD = "merge.json"
"""In a merged folder, what it was made of."""

_DECISIVE = (
    # What a model is, how text becomes tokens and pictures become patches: one of several is not as good as another.
    "config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_IDLE_KEYS = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")
"""Of config.json: they do not change what the network computes."""
_LISTED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What :func:`merge_folders` did.

    Args:
        tensors: How many tensors the folder holds.
        copied: Names of those that came from one model alone.
        incomplete: Names of those that some model lacked.
        permuted: Routers whose experts seem to be numbered differently in the models.
        companions: Names of the other files.
    """

    tensors: int
    copied: tuple[str, ...]
    incomplete: tuple[str, ...]
    permuted: tuple[str, ...]
    companions: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.tensors} tensors, {len(self.copied)} of them from one model alone"]
        lines += [f"  not in all models: {name}" for name in self.incomplete]
        if self.permuted:
            lines.append(
                f"WARNING: the experts of {len(self.permuted)} layers seem to be numbered differently in the models (first "
                f"{self.permuted[0]}): models without a common ancestor cannot be averaged"
            )
        return "\n".join([*lines, f"copied {', '.join(self.companions) or 'no other files'}"])


def merged_tensors(
    folders: Sequence[WeightFolder],
    *,
    weights: Sequence[float] | None = None,
    base: WeightFolder | None = None,
    scales: Sequence[float] | None = None,
    parts: Mapping[str, Sequence[float]] | None = None,
    missing: Missing = "refuse",
    dtype: torch.dtype | None = None,
) -> MergedTensors:
    """The merge as a source of tensors; see :func:`merge_folders` for the arguments.

    Raises:
        ValueError: If weights, base and scales do not belong together, or numbers do not fit the models.
        CheckpointError: If the models do not fit together.
    """
    if base is None:
        if scales is not None:
            raise ValueError("scales belong to the differences from a base: name the base too, or give weights")
        given = {"weights": [1.0] * len(folders) if weights is None else weights, **(parts or {})}
        chosen = _coefficients(given, len(folders), average)
        return MergedTensors(folders, chosen.pop("weights"), chosen, missing=missing, dtype=dtype)
    if weights is not None or scales is None:
        raise ValueError("with a base give scales, one number for each model or one for all, and no weights")
    given = {"scales": list(scales) * len(folders) if len(scales) == 1 else scales, **(parts or {})}
    chosen = _coefficients(given, len(folders), task_vectors)
    return MergedTensors([base, *folders], chosen.pop("scales"), chosen, anchor=0, missing=missing, dtype=dtype)


def merge_folders(
    target: Path | str,
    folders: Sequence[Path | str],
    *,
    weights: Sequence[float] | None = None,
    base: Path | str | None = None,
    scales: Sequence[float] | None = None,
    parts: Mapping[str, Sequence[float]] | None = None,
    like: Path | str | None = None,
    missing: Missing = "refuse",
    dtype: torch.dtype | None = None,
    experts: ExpertForm | None = None,
    max_shard_size: int | None = None,
    advance: Callable[[int], None] | None = None,
    sizes: Callable[[int], None] | None = None,
) -> MergeReport:
    """Write a folder with the merged weights of several; it appears when it is whole.

    Args:
        target: Where to; replaced if it is there.
        folders: The models: exports or released checkpoints. Order, files and form of the experts follow the first.
        weights: Of an average, one for each model; equal by default.
        base: The model that the others were trained from; then their differences from it are added to it.
        scales: With a base, the factors of the differences: one for each model, or one for all.
        parts: Other weights, or scales, for tensors by name pattern; see :class:`MergedTensors`.
        like: Folder whose config, tokenizer and other files count where the models' differ. Without it they must agree.
        missing: What becomes of a tensor that a model lacks.
        dtype: Of the floating-point tensors; as they are by default.
        experts: ``fused`` or ``separate``; as in the first folder by default.
        max_shard_size: Bytes after which a new file begins; as in the first folder by default.
        advance: Called with the number of bytes after each block.
        sizes: Called with the number of bytes of all tensors before the first block.

    Returns:
        What was done.

    Raises:
        FileNotFoundError: If a folder or its weights are missing.
        ValueError: If numbers do not fit the models.
        CheckpointError: If the models do not fit together, or a folder is damaged.
        OSError: If the target cannot be written; what was there before is untouched.
    """
    sources = [WeightFolder(folder) for folder in folders]
    origin = None if base is None else WeightFolder(base)
    merged = merged_tensors(
        sources, weights=weights, base=origin, scales=scales, parts=parts, missing=missing, dtype=dtype
    )
    paths = [Path(folder) for folder in [*folders, *([] if base is None else [base])]]
    if like is None:
        refuse_other_settings(paths)
    first = sources[0].layout
    form = experts or first.expert_form
    same = max_shard_size is None and dtype is None
    layout = first.adapted(merged.tensors, form, max_shard_size or MAX_SHARD_SIZE, unchanged=same)
    if sizes is not None:
        sizes(sum(stored.nbytes for stored in merged.tensors.values()))
    with replacing(target) as partial:
        write_shards(merged, layout, partial, advance)
        copied = _copy([Path(like)] if like is not None else paths, partial)
        _name_dtype(partial / CONFIG, dtype)
        (partial / RECORD).write_text(_record(merged, paths, base is not None), encoding="utf-8")
    return MergeReport(
        tensors=len(merged.tensors),
        copied=merged.copied,
        incomplete=tuple(merged.incomplete),
        permuted=tuple(permuted_experts(sources)),
        companions=tuple(copied),
    )


def refuse_other_settings(folders: Sequence[Path]) -> None:
    """Check that the models are described alike.

    Raises:
        CheckpointError: If config, tokenizer or processing settings differ; it lists how.
    """
    problems: list[str] = []
    for name in _DECISIVE:
        there = [folder / name for folder in folders if (folder / name).is_file()]
        for other in there[1:]:
            problems += _differences(there[0], other)
    if problems:
        more = [f"... and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
        raise CheckpointError(
            "\n  ".join(["the models are not described alike:", *problems[:_LISTED], *more, "what can be done:"])
            + "\n  - merge models of one architecture, tokenizer and processing"
            + "\n  - if the difference does not matter, say whose files count: --like FOLDER"
        )


def _coefficients(
    given: Mapping[str, Sequence[float]], count: int, method: Callable[[Sequence[float]], tuple[float, ...]]
) -> dict[str, tuple[float, ...]]:
    for what, numbers in given.items():
        if len(numbers) != count:
            raise ValueError(f"{what}: {len(numbers)} numbers {list(numbers)} for {count} models; give one for each")
    return {what: method(numbers) for what, numbers in given.items()}


def _differences(one: Path, other: Path) -> list[str]:
    if one.suffix != ".json":
        return [] if one.read_bytes() == other.read_bytes() else [f"{one} and {other} differ"]
    here, there = _flat(_json(one)), _flat(_json(other))
    if one.name == CONFIG:
        here, there = ({k: v for k, v in described.items() if k not in _IDLE_KEYS} for described in (here, there))
    keys = [key for key in dict.fromkeys([*here, *there]) if here.get(key) != there.get(key)]
    return [f"{key} is {_shown(here, key)} in {one} but {_shown(there, key)} in {other}" for key in keys]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, with dotted keys."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        key: inner
        for name, child in value.items()
        for key, inner in _flat(child, f"{prefix}.{name}" if prefix else name).items()
    }


def _shown(described: Mapping[str, Any], key: str) -> str:
    if key not in described:
        return "absent"
    text = json.dumps(described[key], ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _copy(folders: Sequence[Path], target: Path) -> list[str]:
    """Files without weights; of several with one name the first."""
    copied = []
    for folder in folders:
        for path in companions(folder):
            if path.name != RECORD and not (target / path.name).exists():
                shutil.copy2(path, target / path.name)
                copied.append(path.name)
    return copied


def _name_dtype(config: Path, dtype: torch.dtype | None) -> None:
    if dtype is None or not config.is_file():
        return
    described = {**_json(config), "torch_dtype": str(dtype).removeprefix("torch.")}
    config.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _record(merged: MergedTensors, paths: Sequence[Path], has_base: bool) -> str:
    """What the folder was made of: the same order as the coefficients, a base first."""
    ordered = [paths[-1], *paths[:-1]] if has_base else paths
    described = {
        "models": [str(path) for path in ordered],
        "base": str(ordered[0]) if has_base else None,
        "coefficients": list(merged.coefficients),
        "parts": {pattern: list(values) for pattern, values in merged.parts.items()},
    }
    return json.dumps(described, indent=2) + "\n"
