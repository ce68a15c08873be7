"""``keyekit fit | validate | test | predict``: LightningCLI over recipes.

Example:
    >>> cli = run("fit", ["recipes/quickstart.yaml", "--trainer.max_steps=10"])  # doctest: +SKIP
    >>> cli.trainer.callback_metrics  # doctest: +SKIP
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning
import torch
import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from torch import nn

from keyekit.callbacks.alarms.base import TrainingFault
from keyekit.callbacks.export import Export
from keyekit.callbacks.signals import StopOnSignal
from keyekit.cli.command_line import CommandLine, parts_in
from keyekit.cli.diagnosis import diagnose, locate, refusal
from keyekit.cli.errors import CommandError
from keyekit.cli.recipe_changes import recipe_changes
from keyekit.cli.run_folder import EarlierRun, RunOptions, create_run_folder, find_earlier_run
from keyekit.distributed.checkpoint_file import WholeCheckpointIO
from keyekit.distributed.part_plan import RankError
from keyekit.models.weights import CheckpointError
from keyekit.registry import load_target

__all__ = ["KeyeCLI", "fit", "load_parts", "predict", "run", "test", "validate"]

_log = logging.getLogger(__name__)


class RecipeParser(LightningArgumentParser):
    """Lightning's parser with errors that name the valid choices, the closest one and the place in the recipe."""

    command_line: CommandLine | None = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of exiting, so that Python callers see the message too."""
        if not self.exit_on_error:  # one of the parsers inside: its message becomes part of the outer one
            super().error(message, ex)
        raise CommandError(diagnose(message, self.command_line)) from ex


class SaveRecipe(SaveConfigCallback):
    """Writes the resolved recipe into the run folder and tells every rank which folder that is."""

    def setup(self, trainer: Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Agree on the folder, then save."""
        folder = trainer.strategy.broadcast(trainer.default_root_dir)
        # Lightning has no setter, and only rank 0 knew the number before this point.
        trainer._default_root_dir = folder  # pyright: ignore[reportAttributeAccessIssue]
        super().setup(trainer, pl_module, stage)


class KeyeCLI(LightningCLI):
    """One sub-command on one recipe.

    After construction the run is over; ``trainer``, ``model``, ``datamodule`` and ``run_folder`` are what it used. If it was
    to go on with a run that is finished, nothing was built and ``run_folder`` is that run's.

    Args:
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        command_line: Recipes and options.
    """

    run_folder: Path
    run_options: RunOptions
    earlier: EarlierRun | None

    def __init__(self, subcommand: str, command_line: CommandLine) -> None:
        self._wanted = subcommand
        self._command_line = command_line
        super().__init__(
            lightning.LightningModule,
            lightning.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=SaveRecipe,
            save_config_kwargs={"overwrite": True, "config_filename": _config_name(subcommand)},
            trainer_defaults={"callbacks": [StopOnSignal()]},
            parser_kwargs={"parser_mode": "omegaconf+"},
            parser_class=RecipeParser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=[subcommand, *command_line.arguments],
        )

    def subcommands(self) -> dict[str, set[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Only the sub-command that was asked for: building the other three parsers takes seconds."""
        return {self._wanted: LightningCLI.subcommands()[self._wanted]}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Create a parser that knows the recipes, for its error messages."""
        parser = super().init_parser(prog=f"keyekit {self._wanted}", **kwargs)
        assert isinstance(parser, RecipeParser)
        parser.command_line = self._command_line
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder and the key that recipes inherit by."""
        parser.add_class_arguments(RunOptions, "run")
        parser.add_argument("--base", type=list[str] | str | None, default=None, help="Recipes to inherit from.")
        parser.set_defaults({"run.name": self._command_line.name})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, then forget ``base``: its files are already merged, and the saved recipe stands alone.

        It forgets ``run.resume`` too: whoever runs the saved recipe wants a run, not to hear that this one is finished.
        """
        self.config = parser.parse_args(args)
        self.config[self._wanted].pop("base", None)
        self.run_options = RunOptions(**vars(self.config[self._wanted]["run"]))
        self.config[self._wanted]["run"]["resume"] = False

    def _parse_ckpt_path(self) -> None:
        """Leave the recipe alone: a checkpoint brings weights and progress, never configuration."""

    def instantiate_classes(self) -> None:
        """Build everything, with the place where an earlier run ended; nothing if that one is finished."""
        self.earlier = self._earlier_run()
        if self.earlier is not None and self.earlier.state == "finished":
            self.run_folder = self.earlier.folder
            return
        try:
            super().instantiate_classes()
        except ValueError as error:
            reason = refusal(error)
            if reason is None:
                raise
            raise CommandError(reason) from error
        if self.earlier is not None and self.earlier.checkpoint is not None:
            self.config_init[self._wanted]["ckpt_path"] = str(self.earlier.checkpoint)

    def before_instantiate_classes(self) -> None:
        """Build networks without memory if the strategy gives them theirs."""
        strategy = self.config[self._wanted].trainer.get("strategy")
        if isinstance(strategy, Namespace) and strategy.get("init_args", Namespace()).get("meta", False):
            self.parser.add_instantiator(_built_on_meta, nn.Module, subclasses=True)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Create the trainer with its run folder and a TensorBoard logger in it."""
        config = self._get(self.config_init, "trainer")
        self.run_folder = _run_folder(self.run_options) if self.earlier is None else self.earlier.folder
        if config.get("default_root_dir") is None:
            kwargs["default_root_dir"] = str(self.run_folder)
        if config.get("logger") in (None, True):
            kwargs["logger"] = TensorBoardLogger(save_dir=self.run_folder, name="", version="")
        rank_zero_info("run folder: %s", self.run_folder)
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # unless the recipe has another among its plugins
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run what is left to do."""
        earlier = self.earlier
        if earlier is None or earlier.state == "cut":
            super()._run_subcommand(subcommand)
        elif earlier.state == "untested":
            rank_zero_info("%s is trained; what is left is the test", earlier.folder)
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=str(earlier.checkpoint), verbose=False)
        else:
            rank_zero_info("%s is finished: nothing to do; without --run.resume a new run begins", earlier.folder)

    def _earlier_run(self) -> EarlierRun | None:
        """The run to go on with, if that was asked for."""
        if self._wanted != "fit" or not self.run_options.resume:
            return None
        if self._get(self.config, "ckpt_path") is not None:
            raise CommandError("--run.resume finds the checkpoint itself: leave out --ckpt_path, or resume without it")
        first = rank_zero_only.rank == 0
        earlier = find_earlier_run(self.run_options, _export_folder(self._get(self.config, "trainer")), warn=first)
        if first and earlier is not None and earlier.state != "finished":
            begins = "goes on" if earlier.checkpoint is not None else "begins again, without a whole checkpoint"
            _log.info("%s %s", earlier.folder, begins)
            self._tell_changes(earlier.folder / _config_name("fit"))
        return earlier

    def _tell_changes(self, saved: Path) -> None:
        """Warn if the recipe is no longer the one that the run began with."""
        if not saved.is_file():
            return
        now = yaml.safe_load(self._parser("fit").dump(self.config["fit"], skip_none=False))
        changes = recipe_changes(yaml.safe_load(saved.read_text(encoding="utf-8")), now)
        if changes:
            _log.warning(
                "the recipe is not the one that %s began with, and counts from here on: %s", saved.parent, changes
            )

    def after_fit(self) -> None:
        """Test what was trained, if the recipe says so; an interrupted fit is not tested."""
        if self.run_options.test and not self.trainer.interrupted:
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)


def _built_on_meta(kind: type, *arguments: Any, **named: Any) -> Any:
    """An instance whose tensors have no memory; a task's own tensors have some."""
    if issubclass(kind, lightning.LightningModule):
        return kind(*arguments, **named)
    with torch.device("meta"):
        return kind(*arguments, **named)


def _config_name(subcommand: str) -> str:
    return "config.yaml" if subcommand == "fit" else f"{subcommand}.yaml"


def _export_folder(trainer: Namespace) -> str | None:
    """Where a finished fit leaves its export inside the run, if the recipe exports."""
    for callback in trainer.get("callbacks") or ():
        if callback.class_path.rpartition(".")[2] == Export.__name__:
            return callback.init_args.folder
    return None


def _run_folder(options: RunOptions) -> Path:
    """The numbered folder on rank 0; the folder above it elsewhere, until rank 0 tells the number."""
    if rank_zero_only.rank == 0:
        return create_run_folder(options)
    return Path(options.folder or Path(options.root) / options.name)


def _without_advertisements(record: logging.LogRecord) -> bool:
    """Lightning recommends services of its maker at every start."""
    return "litlogger" not in record.getMessage() and "litmodels" not in record.getMessage()


def _let_keyekit_speak() -> None:
    """Show what keyekit logs, such as the implementation that ``auto`` took, unless the program has its own way with logs."""
    for name in ("keyekit", "keyekit_kernels"):
        log = logging.getLogger(name)
        if not log.handlers and not logging.getLogger().handlers:
            log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO if rank_zero_only.rank == 0 else logging.WARNING)


def prepare(arguments: Sequence[str]) -> CommandLine:
    """Split arguments and import the parts that they and the recipes name, so that short names resolve.

    Raises:
        CommandError: If the words make no sense.
        RecipeError: If a recipe or one of its bases is missing or broken.
        PartError: If a part that is named cannot be imported.
    """
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    _let_keyekit_speak()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_without_advertisements)
    command_line = CommandLine.parse(arguments)
    for part in parts_in(command_line):
        load_target(part)
    return command_line


def run(subcommand: str, arguments: Sequence[str]) -> KeyeCLI:
    """Run a recipe from Python exactly as from the command line.

    Args:
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        arguments: What would follow on the command line: recipes and options.

    Returns:
        The finished run with ``trainer``, ``model``, ``datamodule`` and ``run_folder``.

    Raises:
        CommandError: If the arguments or the recipe do not describe a run.
        SystemExit: With 128 + the number of the signal if the process was told to stop; Lightning's own exception would pass
            for success.
    """
    command_line = prepare(arguments)
    try:
        return KeyeCLI(subcommand, command_line)
    except SIGTERMException as error:
        raise SystemExit(error.code or 128 + signal.SIGTERM) from error
    except (CheckpointError, RankError, TrainingFault) as error:
        raise CommandError("\n".join([str(error), *getattr(error, "__notes__", ())])) from error
    except FileNotFoundError as error:
        place = locate(command_line, error.filename)
        if place:
            error.add_note(f"{error.filename} is named by {place}")
        raise


def load_parts(config: Path) -> tuple[Any, Any]:
    """The task and datamodule that a saved recipe describes, with initial weights and without a trainer.

    Args:
        config: ``config.yaml`` of a run.
    """
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        cli = RecipeReader("fit", prepare([str(config), "--trainer.callbacks=null"]))
    finally:
        log.setLevel(level)
    return cli.model, cli.datamodule


class RecipeReader(KeyeCLI):
    """Builds the parts of a recipe and stops before anything runs or is written."""

    def before_instantiate_classes(self) -> None:
        """Build networks with memory, whatever strategy trained them."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that is never used and writes nothing."""
        return Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def fit(arguments: Sequence[str]) -> int:
    """``keyekit fit``."""
    return _main("fit", arguments)


def validate(arguments: Sequence[str]) -> int:
    """``keyekit validate``."""
    return _main("validate", arguments)


def test(arguments: Sequence[str]) -> int:
    """``keyekit test``."""
    return _main("test", arguments)


def predict(arguments: Sequence[str]) -> int:
    """``keyekit predict``."""
    return _main("predict", arguments)


def _main(subcommand: str, arguments: Sequence[str]) -> int:
    if not arguments:
        raise CommandError(f"which recipe? keyekit {subcommand} recipes/quickstart.yaml")
    run(subcommand, arguments)
    return 0
