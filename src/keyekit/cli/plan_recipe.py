"""Reads the network of a recipe, or of a piece of one, without storage, through the parser of ``keyekit fit``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import nn

from keyekit.cli.errors import CommandError
from keyekit.cli.lightning import KeyeCLI, RecipeParser, prepare
from keyekit.cli.plan_subject import Subject
from keyekit.distributed.part_plan import PartPlan
from keyekit.models.memory import PRECISIONS
from keyekit.models.placement import Placement
from keyekit.optim.groups import freeze
from keyekit.tasks.base import Task

__all__ = ["read_piece", "read_recipe"]

_PRECISIONS = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "bf16-mixed",
    "16-mixed": "bf16-mixed",
    "16-true": "bf16-true",
}
"""Lightning's other names of precisions whose numbers are as wide."""


def read_recipe(recipe: str, options: Sequence[str]) -> Subject:
    """The network of a recipe's task with what the recipe says about training.

    Args:
        recipe: Its path.
        options: Changes to it, as ``keyekit fit`` takes them.

    Raises:
        CommandError: If the recipe does not parse, or its task is not one of keyekit's.
        RecipeError: If the recipe or one of its bases is missing or broken.
    """
    cli = _NetworkReader("fit", prepare([recipe, *options]))
    if not isinstance(cli.model, Task):
        raise CommandError(f"{recipe}: a plan needs a task of keyekit.tasks, got {type(cli.model).__name__}")
    freeze(cli.model.network, cli.model.groups)
    setting = _setting(cli.config["fit"]) | {"frozen_reference": cli.model.keeps_reference}
    return Subject(name=recipe, network=cli.model.network, setting=setting)


def read_piece(piece: str, options: Sequence[str]) -> Subject:
    """The network that a file with a class and its arguments describes.

    Args:
        piece: Its path.
        options: Changes to it, such as ``--network.decoder.num_layers=2``.

    Raises:
        CommandError: If it does not parse.
    """
    command_line = prepare([piece, *options])
    parser = RecipeParser(parser_mode="omegaconf+", prog="keyekit plan")
    parser.command_line = command_line
    parser.add_subclass_arguments(nn.Module, "network", fail_untyped=False)
    config = parser.parse_args([f"--network={Path(piece).resolve()}", *command_line.options])
    with torch.device("meta"):
        network = parser.instantiate_classes(config)["network"]
    return Subject(name=piece, network=network)


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


def _setting(config: Namespace) -> dict[str, Any]:
    """What a recipe says about ranks, sharding, precision and packs; what it leaves open is left to the defaults."""
    trainer = config["trainer"]
    found: dict[str, Any] = {"sharding": _sharding(trainer.get("strategy"))}
    devices = str(trainer.get("devices"))
    if devices.isdigit():
        found["devices"] = int(devices) * int(trainer.get("num_nodes") or 1)
    precision = str(trainer.get("precision") or "32-true")
    found["precision"] = _PRECISIONS.get(precision, precision)
    found |= _spread(trainer.get("strategy"))
    if found.get("parts") and found["precision"] == "32-true" and found["parts"]["decoder"].gathered == 2:
        found["precision"] = "bf16-gathered"
    if found["precision"] not in PRECISIONS:
        raise CommandError(
            f"the memory of precision {precision!r} is not known: choose --precision {'|'.join(PRECISIONS)}"
        )
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


def _spread(strategy: Any) -> dict[str, Any]:
    """Placement of the parts and the groups of ranks, where the strategy is ours."""
    if not isinstance(strategy, Namespace) or not str(strategy.get("class_path")).endswith(".Sharded"):
        return {}
    arguments = strategy["init_args"]
    return {
        "parts": {part: _placement(arguments.get(part)) for part in ("vision", "projector", "decoder")},
        "sequence_ranks": int(arguments.get("sequence_parallel") or 1),
        "expert_ranks": int(arguments.get("expert_parallel") or 1),
    }


def _placement(given: Any) -> Placement:
    plan = PartPlan() if given is None else PartPlan(**vars(given.get("init_args", given)))
    return Placement(
        shards={"full": None, "hybrid": plan.shard_group, "replicate": 1}[plan.sharding],
        recomputed=plan.activation_checkpointing,
        offloaded=plan.offload,
        gathered=None if plan.gathered_dtype is None else plan.gathered_dtype.itemsize,
    )
