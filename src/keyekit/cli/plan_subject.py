"""What ``keyekit plan`` plans: a preset, a recipe, or a piece of one that describes a network; always on the meta device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from torch import nn

from keyekit.cli.errors import CommandError
from keyekit.cli.lightning import KeyeCLI, RecipeParser, prepare
from keyekit.models.memory import PRECISIONS
from keyekit.models.presets import PRESETS
from keyekit.optim.groups import freeze
from keyekit.registry import closest
from keyekit.tasks.base import Task

__all__ = ["Subject", "subject_of"]

_PRECISIONS = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "bf16-mixed",
    "16-mixed": "bf16-mixed",
    "16-true": "bf16-true",
}
"""Lightning's other names of precisions whose numbers are as wide."""


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
        return _from_piece(word, options) if _is_piece(Path(word)) else _from_recipe(word, options)
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


class _NetworkReader(KeyeCLI):
    """Parses a recipe as ``keyekit fit`` does and builds its task alone, without storage."""

    model: Any

    def instantiate_classes(self) -> None:
        """Build the task on the meta device."""
        config = Namespace(model=self.config[self._wanted]["model"])
        with torch.device("meta"):
            self.model = self._parser(self._wanted).instantiate_classes(config)["model"]

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""

    def _set_seed(self) -> None:
        """Leave randomness alone."""


def _from_recipe(recipe: str, options: Sequence[str]) -> Subject:
    cli = _NetworkReader("fit", prepare([recipe, *options]))
    if not isinstance(cli.model, Task):
        raise CommandError(f"{recipe}: a plan needs a task of keyekit.tasks, got {type(cli.model).__name__}")
    freeze(cli.model.network, cli.model.groups)
    return _with_preset(Subject(name=recipe, network=cli.model.network, setting=_setting(cli.config["fit"])))


def _is_piece(path: Path) -> bool:
    if not path.is_file():
        return False  # the recipe's own message is better
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return False
    return isinstance(found, dict) and "class_path" in found


def _from_piece(piece: str, options: Sequence[str]) -> Subject:
    command_line = prepare([piece, *options])
    parser = RecipeParser(parser_mode="omegaconf+", prog="keyekit plan")
    parser.command_line = command_line
    parser.add_subclass_arguments(nn.Module, "network", fail_untyped=False)
    config = parser.parse_args([f"--network={Path(piece).resolve()}", *command_line.options])
    with torch.device("meta"):
        network = parser.instantiate_classes(config)["network"]
    return _with_preset(Subject(name=piece, network=network))


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


def _setting(config: Namespace) -> dict[str, Any]:
    """What a recipe says about ranks, sharding, precision and packs; what it leaves open is left to the defaults."""
    trainer = config["trainer"]
    found: dict[str, Any] = {"sharding": _sharding(trainer.get("strategy"))}
    devices = str(trainer.get("devices"))
    if devices.isdigit():
        found["devices"] = int(devices) * int(trainer.get("num_nodes") or 1)
    precision = str(trainer.get("precision") or "32-true")
    precision = _PRECISIONS.get(precision, precision)
    if precision not in PRECISIONS:
        raise CommandError(
            f"the memory of precision {precision!r} is not known: choose --precision {'|'.join(PRECISIONS)}"
        )
    found["precision"] = precision
    data = config["data"].get("init_args") or {}
    if data.get("pack_tokens"):
        found["sequence_length"] = int(data["pack_tokens"])
    reader = data.get("reader") or {}
    reader = reader.get("init_args", reader)
    if reader.get("max_frame_tokens"):
        found["frame_tokens"] = int(reader["max_frame_tokens"])
    return found


def _sharding(strategy: Any) -> str:
    """``full`` for a strategy whose name says so."""
    name = strategy if isinstance(strategy, str) else strategy.get("class_path", "") if strategy else ""
    return "full" if any(word in str(name).lower() for word in ("fsdp", "sharded", "modelparallel")) else "none"
