"""The LightningDataModule for conversations: world or files, tokenizer, decoding, packs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from keyekit.data.cache import MediaCache
from keyekit.data.cost import SampleCost, SampleSize
from keyekit.data.dataset import ConversationDataset, Eyes
from keyekit.data.decode_service import DecodeService
from keyekit.data.draws import Draws
from keyekit.data.encode import SampleEncoder
from keyekit.data.errors import BadData, ErrorPolicy
from keyekit.data.loader import PackLoader, StatefulLoader
from keyekit.data.long_samples import LongPolicy
from keyekit.data.measure import Measures
from keyekit.data.mixture import Mixture
from keyekit.data.mixture_loader import MixtureLoader, PackMaker
from keyekit.data.pack_stream import PackStream
from keyekit.data.packer import PackBudget
from keyekit.data.preferences import PreferenceDataset
from keyekit.data.preparation import prepare_media, prepare_tokenizer, trained_folder
from keyekit.data.processor_settings import SETTINGS_FILE, processor_settings
from keyekit.data.reader import MediaReader
from keyekit.data.sample import Sample
from keyekit.data.sources.base import Source
from keyekit.data.sources.jsonl import JsonLines, read_jsonl
from keyekit.data.template import ChatTemplate
from keyekit.data.tokenizer import load_tokenizer
from keyekit.data.world.world import World
from keyekit.models.vision_language import VisionLanguageModel

__all__ = ["ConversationDataModule"]


class ConversationDataModule(lightning.LightningDataModule):
    """Packs of conversations for training, and prompts for evaluation.

    Samples come from a built-in world, from JSONL files, or both. Media are decoded once into a cache; sizes are then
    known, so packs are planned ahead and the loaders have a length. Under several ranks the packs of a step exchange samples
    until all have equally much to do. Test loaders ask every held-out question three times:
    with open eyes, with blank pictures, and with the pictures of another sample.

    Args:
        world: A generator of files, built when it is needed; ``None`` to use files alone.
        train: Task names of the world or paths of JSONL files to train on. As a mapping to weights, ``{count: 2, order: 0.5}``
            shows every sample of the first twice in an epoch and half of those of the second.
        mixture: Sources to train on in given portions, instead of ``train``.
        heldout: Task names or paths for evaluation.
        heldout_pairs: Paths of JSONL files with pairs, for the validation of a task that learns from pairs.
        tokenizer: Folder of a tokenizer, such as a checkpoint's; ``None`` trains one on the texts of the training files (so it
            has to be given where there are none).
        vocab_size: Largest vocabulary of a trained tokenizer.
        template: The chat template.
        reader: How media are sampled and sized.
        cache: Folder for decoded media and the trained tokenizer.
        pack_tokens: Tokens of a training pack.
        pack_patches: Patches that a training pack may hold; ``None`` for no limit.
        pack_flops: Estimated operations that a training pack may cost; ``None`` for no limit.
        pack_slack: Instead, by what share a training pack may cost more than full ones do on average, so that all ranks have
            equally much to do: 0.02 is a good value. Samples that cost more get packs of their own. ``None`` for no limit.
        long_samples: What happens to a sample that no training pack can hold: ``refuse`` makes it bad data, ``alone`` gives it
            a pack of its own, ``truncate`` cuts text behind its last picture.
        cost: Whose operations are estimated: a released model or its twin by name, or a measure of your own; by default the
            network that is trained.
        evaluation_tokens: Tokens of an evaluation pack.
        validation_samples: Held-out prompts that validation asks.
        test_samples: Most held-out prompts per task that the test asks; ``None`` for all.
        on_error: ``skip`` leaves bad samples out and counts them, ``raise`` stops.
        workers: Processes that decode media before the run.
        cache_bytes: Most that decoded media may take on disk; those not used for longest are decoded again when they are
            needed. ``None`` for no limit.
        decode_workers: Processes of each rank that decode during the run what is not in the cache, ahead of the packs that need
            it; 0 decodes where packs are made.
        decode_service: Other machines that do what ``workers`` and ``decode_workers`` do here; each rank has its own decoders.
        loader_workers: Processes that make packs of a mixture ahead; 0 makes them in the training process.
        pack_buffer: Samples of a mixture that wait for a pack at most. More fill packs better; with fewer, packs follow weights
            by step sooner.
        epoch_packs: Packs of all ranks that count as an epoch of a mixture; by default as many as its sources fill once.
        seed: Seed of the order.
    """

    test_conditions: tuple[Eyes, ...] = ("open", "blank", "swapped")

    def __init__(
        self,
        world: World | None = None,
        train: list[str] | dict[str, float] | None = None,
        mixture: Mixture | None = None,
        heldout: list[str] | None = None,
        heldout_pairs: list[str] | None = None,
        tokenizer: str | None = None,
        vocab_size: int = 1024,
        template: ChatTemplate | None = None,
        reader: MediaReader | None = None,
        cache: str = "data/cache",
        pack_tokens: int = 2048,
        pack_patches: int | None = None,
        pack_flops: float | None = None,
        pack_slack: float | None = None,
        long_samples: LongPolicy = "refuse",
        cost: str | SampleCost | None = None,
        evaluation_tokens: int = 4096,
        validation_samples: int = 256,
        test_samples: int | None = None,
        on_error: Literal["skip", "raise"] = "raise",
        workers: int = 2,
        cache_bytes: int | None = None,
        decode_workers: int = 0,
        decode_service: Callable[[MediaReader], DecodeService] | None = None,
        loader_workers: int = 0,
        pack_buffer: int = 128,
        epoch_packs: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not train and not mixture and not heldout:
            raise ValueError("name something to train on or to evaluate: train=[...], heldout=[...]")
        if train and mixture:
            raise ValueError("train and mixture both say what to train on: give one of them, the other null")
        if not train and not mixture and tokenizer is None:
            raise ValueError("without training data no tokenizer can be trained: give the folder of one, tokenizer=...")
        if pack_slack is not None and (pack_flops is not None or pack_slack < 0):
            raise ValueError(
                f"pack_flops={pack_flops}, pack_slack={pack_slack}: give one of them, and a slack that is not negative"
            )
        weights = train if isinstance(train, dict) else dict.fromkeys(train or (), 1.0)
        if any(not weight > 0 for weight in weights.values()):
            raise ValueError(f"weights must be above 0, got {weights}: leave out what is not to be trained on")
        self.world = world
        self.train_sources = dict(weights)
        self.mixture = mixture
        self.heldout_sources = tuple(heldout or ())
        self.heldout_pairs = tuple(heldout_pairs or ())
        self.tokenizer_folder = tokenizer
        self.vocab_size = vocab_size
        self.template = template or ChatTemplate()
        self.reader = reader or MediaReader()
        self.cache_folder = Path(cache)
        self.pack_tokens = pack_tokens
        self.budget = PackBudget(tokens=pack_tokens, patches=pack_patches, flops=pack_flops)
        self.pack_slack = pack_slack
        self.long_samples: LongPolicy = long_samples
        self.cost = cost
        self.evaluation_tokens = evaluation_tokens
        self.validation_samples = validation_samples
        self.test_samples = test_samples
        self.policy = ErrorPolicy(on_error)
        self.workers = workers
        self.cache_bytes = cache_bytes
        self.decode_workers = decode_workers
        self.decode_service = decode_service
        self.loader_workers = loader_workers
        self.pack_buffer = pack_buffer
        self.epoch_packs = epoch_packs
        self.seed = seed
        self._sources: dict[str, Source] | None = None
        self._cost: SampleCost | None = None
        self._sizes: dict[str, np.ndarray] = {}
        self._read: dict[str, list[Sample]] = {}
        self._datasets: dict[str, ConversationDataset] = {}
        self._service: DecodeService | None = None

    @property
    def skipped_counts(self) -> dict[str, int]:
        """Samples left out so far, by reason."""
        return self.policy.counts

    @property
    def heldout_tasks(self) -> tuple[str, ...]:
        """Task families among the held-out samples."""
        return tuple(sorted({encoded.sample.task for encoded in self._datasets["heldout"].encoded}))

    @property
    def heldout(self) -> ConversationDataset:
        """The held-out prompts, once the module is set up."""
        return self._datasets["heldout"]

    def training_sources(self) -> dict[str, Source]:
        """Everything that is trained on, by name: tasks of the world and paths are sources here."""
        if self._sources is None:
            named = dict.fromkeys(self.train_sources) if self.mixture is None else dict.fromkeys(self.mixture.names)
            given = {name: name if self.mixture is None else self.mixture.source(name) for name in named}
            self._sources = {
                name: JsonLines(str(self._path(source, "train"))) if isinstance(source, str) else source
                for name, source in given.items()
            }
        return self._sources

    def sample_cost(self) -> SampleCost:
        """What measures samples: the argument ``cost``, or the network that is trained; without both tokens and patches alone.

        Raises:
            ValueError: If packs have a limit of operations, but nothing says what a sample costs.
        """
        side = self.reader.geometry.patch_size
        if isinstance(self.cost, SampleCost):
            return self.cost
        if self.cost is not None:
            return SampleCost.of_preset(self.cost, side)
        trained = None if self.trainer is None else self.trainer.lightning_module
        network = getattr(trained, "network", None)
        if isinstance(network, VisionLanguageModel):
            return SampleCost.of_network(network, side)
        if self.budget.flops is not None or self.pack_slack is not None:
            raise ValueError(
                f"pack_flops={self.budget.flops} or pack_slack={self.pack_slack} limits operations, but no network says what a "
                "sample costs: name a released model, cost=keye_vl_8b, or hand over SampleCost.of_network(network)"
            )
        return SampleCost(patch_size=side)

    def prepare_data(self) -> None:
        """Build the world, train the tokenizer and decode all media, on one process of each machine."""
        if self.world is not None:
            self.world.build()
        if self.tokenizer_folder is None:
            prepare_tokenizer(self.cache_folder, self._training_samples(), self.vocab_size)
        samples = chain(self._training_samples(), self._samples("heldout"))
        prepare_media(self._media_cache(), samples, self.workers, self._decoding())
        if self.mixture is not None:
            self._load_encoder()
            self._measure(self.sample_cost())

    def setup(self, stage: str) -> None:
        """Load the tokenizer and encode what the stage needs."""
        self._load_encoder()
        if stage == "fit" and self._cost is None:
            cost = self.sample_cost()
            if self.mixture is not None:
                self._sizes = self._measure(cost, report=True)
            else:
                self._datasets["train"] = self._dataset(self._samples("train"), cost)
            self._cost = cost
        if self.heldout_sources and "heldout" not in self._datasets:
            prompts = self._limited(self._samples("heldout"), self.test_samples)
            heldout = ConversationDataset(prompts, self.encoder, self.policy, self.evaluation_tokens, with_answer=False)
            self._datasets["heldout"] = heldout
            self._datasets["validation"] = heldout.spread(self.validation_samples)

    def teardown(self, stage: str) -> None:
        """Leave the decoding service."""
        service, self._service = self._service, None
        if service is not None:
            service.close()

    def train_dataloader(self) -> PackLoader | MixtureLoader | StatefulLoader:
        """Training packs; a task that answers prompts itself makes its own of them."""
        if self.mixture is not None:
            return self._mixture_loader(self.mixture)
        dataset = self._datasets["train"]
        if self._learns_from == "prompts":
            return self._task.rollout_loader(dataset, self.tokenizer)
        budget = self._pack_budget(dataset.sizes)
        return PackLoader(
            dataset,
            budget,
            self.seed,
            decode_workers=self.decode_workers,
            alone=self._alone,
            sharing=self._sharing,
            service=self._decoding(),
        )

    def val_dataloader(self) -> PackLoader | list[PackLoader]:
        """Prompts for validation; pairs for a task that learns from pairs, if there are held-out ones."""
        if self.heldout_pairs and self._learns_from == "pairs":
            samples = [sample for file in self.heldout_pairs for sample in read_jsonl(Path(file), self.policy)]
            pairs = PreferenceDataset(samples, self.encoder, self.policy, self.budget)
            return PackLoader(pairs, self.budget, shuffle=False)
        if "validation" not in self._datasets:
            return []
        return self._prompts("validation")

    def test_dataloader(self) -> list[PackLoader]:
        """Prompts for the test, one loader for each of :attr:`test_conditions`."""
        return [self._prompts("heldout", eyes) for eyes in self.test_conditions]

    def predict_dataloader(self) -> PackLoader:
        """The held-out prompts with open eyes."""
        return self._prompts("heldout")

    def export_processor(self, folder: Path | str) -> None:
        """Write the tokenizer and the settings of media and template into an export."""
        self.tokenizer.save_pretrained(str(folder))
        settings = processor_settings(self.reader, self.template)
        (Path(folder) / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _load_encoder(self) -> None:
        folder = self.tokenizer_folder or trained_folder(self.cache_folder, self._training_samples(), self.vocab_size)
        self.tokenizer = load_tokenizer(folder)
        self.encoder = SampleEncoder(self.tokenizer, self.template, self._media_cache())

    @property
    def _task(self) -> Any:
        return None if self.trainer is None else self.trainer.lightning_module

    @property
    def _learns_from(self) -> str:
        """What the task wants; see :attr:`keyekit.tasks.base.Task.learns_from`."""
        wanted = getattr(self._task, "learns_from", "answers")
        if wanted != "answers" and self.mixture is not None:
            raise ValueError(f"{type(self._task).__name__} learns from {wanted}: name files under train, not a mixture")
        return wanted

    def _dataset(self, samples: list[Sample], cost: SampleCost) -> ConversationDataset:
        """Training samples as the task wants them."""
        common = (samples, self.encoder, self.policy, self.budget)
        if self._learns_from == "pairs":
            return PreferenceDataset(*common, cost=cost, long_samples=self.long_samples)
        with_answer = self._learns_from == "answers"
        return ConversationDataset(*common, with_answer=with_answer, cost=cost, long_samples=self.long_samples)

    @property
    def _alone(self) -> bool:
        """Whether what exceeds the budget of packs stands alone; what no pack may hold is left out before."""
        return self.long_samples == "alone" or self.pack_slack is not None

    def _pack_budget(self, sizes: list[SampleSize]) -> PackBudget:
        if self.pack_slack is None:
            return self.budget
        return PackBudget.alike(sizes, self.budget.tokens, self.budget.patches, self.pack_slack, alone=True)

    def _decoding(self) -> DecodeService | None:
        """The decoding service, connected when it is first needed and until the end of a fit or test."""
        if self.decode_service is not None and self._service is None:
            self._service = self.decode_service(self.reader)
        return self._service

    def _media_cache(self) -> MediaCache:
        return MediaCache(self.cache_folder / "media", self.reader, self.cache_bytes)

    def _prompts(self, name: str, eyes: Eyes = "open") -> PackLoader:
        return PackLoader(
            self._datasets[name],
            self.evaluation_tokens,
            shuffle=False,
            eyes=eyes,
            decode_workers=self.decode_workers,
            service=self._decoding(),
        )

    def _mixture_loader(self, mixture: Mixture) -> MixtureLoader:
        tokens = {name: sizes[:, 0] for name, sizes in self._sizes.items()}
        assert self._cost is not None
        measured = np.concatenate(list(self._sizes.values()))
        budget = self._pack_budget([SampleSize.of(row) for row in measured])
        stream = PackStream(Draws(mixture, tokens, self.seed), self._sizes, budget, self.pack_buffer, self._alone)
        maker = PackMaker(self.training_sources(), self.encoder, self._cost, self.budget, tokens, self.long_samples)
        trainer = self.trainer
        return MixtureLoader(
            stream,
            maker,
            self.epoch_packs or budget.packs(measured),
            self.policy,
            workers=self.loader_workers,
            decode_workers=self.decode_workers,
            accumulate=1 if trainer is None else trainer.accumulate_grad_batches,
            at_end=self._end,
            sharing=self._sharing,
            service=self._decoding(),
        )

    @property
    def _sharing(self) -> int:
        """Consecutive ranks that train on the same packs, as the strategy has it."""
        replicas = getattr(self.trainer, "distributed_sampler_kwargs", None)
        return 1 if replicas is None else self.trainer.world_size // replicas["num_replicas"]  # pyright: ignore[reportOptionalMemberAccess]

    def _end(self) -> None:
        if self.trainer is not None:
            rank_zero_info("the mixture is used up: every source came as often as max_epochs says, so the run ends")
            self.trainer.should_stop = True

    def _measure(self, cost: SampleCost, report: bool = False) -> dict[str, np.ndarray]:
        """Measures of all samples of the mixture; those that cannot be used are reported by one caller alone."""
        measures = Measures(self.cache_folder / "measures", self.encoder, cost, self.budget, self.long_samples)
        sizes = {}
        for name, source in self.training_sources().items():
            measured = measures.of(source, strict=self.policy.mode == "raise")
            for problem in measured.problems if report else ():
                self.policy.handle(problem)
            sizes[name] = measured.sizes
        return sizes

    def _training_samples(self) -> Iterable[Sample]:
        """Samples of the training sources, for tokenizer and media; bad ones of a mixture are reported when it is measured."""
        return self._samples("train") if self.mixture is None else self._mixture_samples()

    def _mixture_samples(self) -> Iterator[Sample]:
        for source in self.training_sources().values():
            for index in range(len(source)):
                try:
                    yield source[index]
                except BadData:
                    continue

    def _samples(self, split: Literal["train", "heldout"]) -> list[Sample]:
        if split not in self._read:  # once, so that a broken line counts once
            sources = self.train_sources if split == "train" else dict.fromkeys(self.heldout_sources, 1.0)
            samples: list[Sample] = []
            for source, weight in sources.items():
                samples += _weighted(read_jsonl(self._path(source, split), self.policy), weight, self.seed)
            self._read[split] = samples
        return self._read[split]

    def _path(self, source: str, split: str) -> Path:
        if source.endswith(".jsonl"):
            return Path(source)
        if self.world is None:
            raise ValueError(f"{source!r} is no .jsonl file, and there is no world that could have a task of that name")
        return self.world.files.path(source, split)

    @staticmethod
    def _limited(samples: list[Sample], limit: int | None) -> list[Sample]:
        if limit is None:
            return samples
        kept: list[Sample] = []
        seen: dict[str, int] = {}
        for sample in samples:
            seen[sample.task] = seen.get(sample.task, 0) + 1
            if seen[sample.task] <= limit:
                kept.append(sample)
        return kept


def _weighted(samples: list[Sample], weight: float, seed: int) -> list[Sample]:
    """Every sample as often as the weight says; of its fractional part, so many of them drawn by the seed."""
    part = round(weight % 1 * len(samples))
    drawn = np.random.default_rng(seed).choice(len(samples), part, replace=False)
    return samples * int(weight) + [samples[index] for index in sorted(drawn.tolist())]
