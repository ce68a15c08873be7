"""What ``keyekit plan`` plans: a preset, a recipe, or a piece of one that describes a network; always on the meta device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from keyekit.cli.errors import CommandError
from keyekit.models.presets import PRESETS
from keyekit.registry import closest

__all__ = ["Subject", "subject_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A network without storage and what its recipe says about training.

    Args:
        name: What to call it.
        network: The network, on the meta device; what the recipe freezes needs no gradient.
        setting: Values for :class:`~keyekit.models.plan.Setting`.
        unused: Names and shapes of tensors that ship but belong to no network.
        context: Tokens of the longest sequence, if known.
    """

    name: str
    network: nn.Module
    setting: dict[str, Any] = field(default_factory=dict)
    unused: dict[str, tuple[int, ...]] = field(default_factory=dict)
    context: int | None = None


def subject_of(word: str, options: Sequence[str]) -> Subject:
    """Build what a word names.

    Args:
        word: Name of a preset, or path of a recipe or of a piece of one.
        options: Changes to the recipe, as ``keyekit fit`` takes them.

    Raises:
        CommandError: If it names nothing, or options follow a preset.
        RecipeError: If the recipe or one of its bases is missing or broken.
    """
    if word.endswith((".yaml", ".yml")):
        from keyekit.cli.plan_recipe import read_piece, read_recipe  # imports Lightning, which a preset does not need

        return _with_preset((read_piece if _is_piece(Path(word)) else read_recipe)(word, options))
    if word not in PRESETS:
        raise CommandError(
            f"there is no preset {word!r}{closest(word, PRESETS)}; there are {', '.join(PRESETS)}; a recipe ends in .yaml"
        )
    if options:
        piece = f"recipes/_base/models/{word}.yaml"
        raise CommandError(f"a preset takes no {options[0]}: name its piece, keyekit plan {piece} --network.decoder...")
    chosen = PRESETS[word]
    with torch.device("meta"):
        network = chosen.build()
    setting = {"sequence_length": min(chosen.context, 8192)}
    return Subject(
        name=f"{word} ({chosen.title})", network=network, setting=setting, unused=chosen.unused, context=chosen.context
    )


def _is_piece(path: Path) -> bool:
    if not path.is_file():
        return False  # the recipe's own message is better
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return False
    return isinstance(found, dict) and "class_path" in found


def _with_preset(subject: Subject) -> Subject:
    """Add what is known of a released model if the network has its shapes to the last tensor."""
    shapes = _shapes(subject.network)
    released = [entry for entry in PRESETS.values() if entry.unused] if len(shapes) > 500 else []
    for entry in released:
        with torch.device("meta"):
            same = _shapes(entry.build()) == shapes
        if same:
            return Subject(
                name=f"{subject.name} (shapes of {entry.title})",
                network=subject.network,
                setting=subject.setting,
                unused=entry.unused,
                context=entry.context,
            )
    return subject


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in network.named_parameters()}
