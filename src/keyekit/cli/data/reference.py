"""``keyekit data reference``: what the reference of a preference recipe says of its pairs, written beside them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from keyekit.cli.errors import CommandError
from keyekit.cli.lightning import KeyeCLI, prepare
from keyekit.data.loader import PackLoader
from keyekit.data.module import ConversationDataModule
from keyekit.data.preferences import PreferenceDataset
from keyekit.data.reference_log_probs import ReferenceLogProbs, reference_file
from keyekit.data.sources.jsonl import read_jsonl
from keyekit.models.weights.digest import weights_digest
from keyekit.tasks.preference import PreferenceOptimization

__all__ = ["main"]

_TOLERANCE = 1e-3
"""Most that a response's log-probability may change, by share, when other pairs stand beside it in a pack."""


def main(arguments: Sequence[str]) -> int:
    """Ask the reference about every pair of a recipe, once.

    Args:
        arguments: Words after ``keyekit data reference``: what ``keyekit fit`` would get.

    Returns:
        Exit status: 0, or 1 if the log-probabilities depend on what else is in a pack.

    Raises:
        CommandError: If the recipe does not train on pairs, or has no weights to start from.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        _parser().print_help()
        return 0 if arguments else 2
    writer = _ReferenceWriter("predict", prepare([*arguments, "--trainer.callbacks=null"]))
    return writer.status


class _ReferenceWriter(KeyeCLI):
    """Runs the network of a recipe, with the recipe's own strategy and precision, over packs of its pairs."""

    status = 0

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The recipe's trainer, which writes nothing."""
        self.save_config_callback = None
        self.run_folder = Path()
        return LightningCLI.instantiate_trainer(self, logger=False, enable_checkpointing=False, **kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        task, data = self.model, self.datamodule
        if not isinstance(task, PreferenceOptimization) or not isinstance(data, ConversationDataModule):
            raise CommandError("the recipe learns from no pairs: name one whose model is PreferenceOptimization")
        if task.init_from is None:
            raise CommandError("the reference is what training starts from: give its folder, --model.init_from=FOLDER")
        data.trainer = self.trainer
        if self.trainer.local_rank == 0:
            data.prepare_data()
        self.trainer.strategy.barrier()
        data.setup("fit")
        weights = self.trainer.strategy.broadcast(weights_digest(task.init_from) if self.trainer.is_global_zero else "")
        files = [Path(file) for file in (*data.train_sources, *data.heldout_pairs)]
        for file in files:
            self._write(file, task, data, weights)

    def _write(self, file: Path, task: PreferenceOptimization, data: ConversationDataModule, weights: str) -> None:
        dataset = PreferenceDataset(
            read_jsonl(file, data.policy),
            data.encoder,
            data.policy,
            data.budget,
            cost=data.sample_cost(),
            long_samples=data.long_samples,
        )
        alone = data.long_samples == "alone"
        rows = self._asked(task, PackLoader(dataset, data.budget, shuffle=False, alone=alone))
        known = ReferenceLogProbs(
            weights=weights, values={pair: (chosen, rejected) for pair, _, chosen, rejected in rows}
        )
        known.check(dataset.pairs)
        again = self._asked(task, PackLoader(dataset, data.budget, seed=1, alone=alone), packs=1)
        if rank_zero_only.rank == 0:
            known.write(reference_file(file), {pair: name for pair, name, *_ in rows})
            self._tell(file, known, again)

    def _asked(self, task: PreferenceOptimization, loader: PackLoader, packs: int | None = None) -> list[Any]:
        """What the network says of the pairs of a loader, or of its first packs, gathered from all ranks."""
        self.trainer.limit_predict_batches = 1.0 if packs is None else packs
        found = self.trainer.predict(task, dataloaders=loader) or []
        rows = [row for pack in found for row in pack]
        if self.trainer.world_size == 1:
            return rows
        gathered: list[Any] = [None] * self.trainer.world_size
        dist.all_gather_object(gathered, rows)
        return [row for rank in gathered for row in rank]

    def _tell(self, file: Path, known: ReferenceLogProbs, again: list[Any]) -> None:
        """Say how much depends on which pairs share a pack."""
        changes = [
            abs(new - old) / max(abs(old), 1.0)
            for pair, _, *sides in again
            for new, old in zip(sides, known.values[pair], strict=True)
        ]
        worst = max(changes, default=0.0)
        same = "bit-equal" if worst == 0 else f"equal to {worst:.1e} of their size"
        print(
            f"{len(known.values)} pairs in {reference_file(file)}; {len(again)} of them in another pack: {same}",
            flush=True,
        )
        if worst > _TOLERANCE:
            print(
                "what a pair is worth depends on its neighbours by more than rounding: do not train on this", flush=True
            )
            self.status = 1


def _parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="keyekit data reference",
        usage="keyekit data reference RECIPE [options of keyekit fit]",
        description="Ask the reference (model.init_from) of a recipe with PreferenceOptimization about all of its pairs, and "
        "write FILE.reference.jsonl beside each file of pairs. A fit with --model.reference_files=[...] then needs no "
        "reference beside the model; it refuses files of other weights or other pairs.",
        add_help=False,
    )
