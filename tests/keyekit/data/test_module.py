"""The datamodule on a small world of real files."""

import json
import multiprocessing
import os
from collections import Counter

import lightning
import numpy as np
import pytest
import torch

from keyekit.data.contrastive import ContrastiveDataModule
from keyekit.data.cost import SampleCost
from keyekit.data.errors import BadData
from keyekit.data.frames_file import drop_pixels
from keyekit.data.mixture import Mixture
from keyekit.data.module import ConversationDataModule
from keyekit.data.packer import PackBudget
from keyekit.data.reader import MediaReader
from keyekit.data.sampling import UniformFps
from keyekit.data.sources.jsonl import JsonLines
from keyekit.data.tokenizer import load_tokenizer
from keyekit.data.world.world import World
from keyekit.models.sizes import NetworkSizes
from keyekit.testing.tiny import tiny_record as record
from keyekit.testing.tiny import tiny_vision_language_model

READER = MediaReader(frame_sampler=UniformFps(max_frames=4), min_frame_tokens=4, max_frame_tokens=4, max_image_tokens=4)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    counts = {"count": 12, "order": 6, "arithmetic": 10, "captions": 40}
    return World(root=str(tmp_path_factory.mktemp("world")), train=counts, heldout=counts, workers=1)


def test_from_nothing_to_batches(world, tmp_path) -> None:
    tasks = ["count", "order", "arithmetic"]
    data = ConversationDataModule(
        world=world, train=tasks, heldout=tasks, vocab_size=400, reader=READER, cache=str(tmp_path), pack_tokens=400,
        validation_samples=5, test_samples=8,
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    names = [sample.id for batch in loader for sample in batch.samples]
    assert len(names) == len(set(names)) == 12 + 12 + 10
    assert sum(len(batch.samples) for batch in data.val_dataloader()) == 5
    open_, blank, swapped = data.test_dataloader()
    assert [loader.eyes for loader in (open_, blank, swapped)] == list(data.test_conditions)
    asked = [sample.task for batch in open_ for sample in batch.samples]
    assert {task: asked.count(task) for task in tasks} == dict.fromkeys(tasks, 8)
    assert next(iter(open_)).num_targets == 0
    assert data.heldout_tasks == ("arithmetic", "count", "order")
    data.export_processor(tmp_path / "export")
    assert len(load_tokenizer(tmp_path / "export")) == len(data.tokenizer)
    assert (
        json.loads((tmp_path / "export/preprocessor_config.json").read_text())["keyekit"]["reader"]["max_frame_tokens"]
        == 4
    )


def test_files_alone_with_broken_samples(media, write_jsonl, tmp_path) -> None:
    lines = [
        record(f"s{i}", "how many?", "1", [("video", name)])
        for i, name in enumerate(["clip0.mp4", "cut.mp4", "none.mp4"])
    ]
    path = write_jsonl("mixed.jsonl", [*lines, "{broken", [1]])
    data = ConversationDataModule(
        train=[str(path)], cache=str(tmp_path), vocab_size=400, reader=READER, on_error="skip"
    )
    data.prepare_data()
    data.setup("fit")
    assert [sample.id for batch in data.train_dataloader() for sample in batch.samples] == ["s0"]
    assert data.skipped_counts == {"bad_line": 2, "broken_media": 1, "missing_media": 1}
    assert data.val_dataloader() == []


def test_mistakes_are_explained(tmp_path, world) -> None:
    with pytest.raises(ValueError, match="something to train on"):
        ConversationDataModule()
    with pytest.raises(ValueError, match="there is no world"):
        ConversationDataModule(train=["count"], cache=str(tmp_path)).prepare_data()
    with pytest.raises(ValueError, match="has no task 'box'"):
        ConversationDataModule(world=world, train=["box"], cache=str(tmp_path)).prepare_data()


def test_contrastive_pairs(world, tmp_path) -> None:
    data = ContrastiveDataModule(
        world=world,
        train=["captions"],
        heldout=["captions"],
        vocab_size=400,
        reader=READER,
        cache=str(tmp_path),
        batch_size=16,
    )
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    assert len(loader) == 2
    batch = next(iter(loader))
    assert batch.vision.grids == ((4, 4),) * 16
    captions, start = [], 0
    for length in batch.segments.lengths:
        captions.append(data.tokenizer.decode(batch.tokens[start : start + length]))
        start += length
    for i in range(16):
        for j in range(16):
            assert bool(batch.matches[i, j]) == (captions[i] == captions[j])
    assert len(data.val_dataloader()) == 2


def test_weights_repeat_and_draw(world, tmp_path) -> None:
    data = ConversationDataModule(
        world=world,
        train={"count": 2.0, "arithmetic": 0.5},
        vocab_size=400,
        reader=READER,
        cache=str(tmp_path),
        pack_tokens=400,
    )
    data.prepare_data()
    data.setup("fit")
    shown = [sample for batch in data.train_dataloader() for sample in batch.samples]
    assert [sum(sample.task == task for sample in shown) for task in ("count", "arithmetic")] == [24, 5]
    assert len({sample.id for sample in shown}) == 12 + 5
    with pytest.raises(ValueError, match="weights must be above 0"):
        ConversationDataModule(world=world, train={"count": 0.0})


def test_without_training_data_a_tokenizer_has_to_be_given(world) -> None:
    with pytest.raises(ValueError, match="give the folder of one"):
        ConversationDataModule(world=world, heldout=["count"])


def mixed(world, folder, **settings) -> ConversationDataModule:
    data = ConversationDataModule(
        world=world, vocab_size=400, reader=READER, cache=str(folder), pack_tokens=400, **settings
    )
    data.prepare_data()
    data.setup("fit")
    return data


def test_a_mixture_of_tasks_files_and_sources(world, tmp_path, write_jsonl) -> None:
    path = write_jsonl("more.jsonl", [record(f"m{number}", "x", "1") for number in range(20)])
    sources = {"counting": "count", "more": str(path), "sums": JsonLines(str(world.files.path("arithmetic", "train")))}
    mixture = Mixture(sources=sources, max_epochs={"counting": 1, "more": 2, "sums": 1})
    data = mixed(world, tmp_path, mixture=mixture, heldout=["count"])
    loader = data.train_dataloader()
    epochs = [[sample.meta["source"] for batch in loader for sample in batch.samples] for _ in range(2)]
    assert Counter(source for epoch in epochs for source in epoch) == {"counting": 12, "more": 40, "sums": 10}
    every = [sample for source in loader.maker.sources.values() for sample in source]
    tokens = sum(len(data.encoder.encode(sample)) for sample in every)
    assert loader.epoch_packs == -(-tokens // 400)
    assert len(mixed(world, tmp_path, mixture=mixture, epoch_packs=3).train_dataloader()) == 3
    assert sum(len(batch.samples) for batch in data.val_dataloader()) == 12


def test_bad_samples_of_a_mixture_count_once(world, tmp_path, write_jsonl) -> None:
    path = str(
        write_jsonl("bad.jsonl", [record("s", "x", "1"), "{broken", record("t", "x", "1", [("video", "no.mp4")])])
    )
    data = mixed(world, tmp_path, mixture=Mixture(sources=[path]), on_error="skip")
    assert data.skipped_counts == {"bad_line": 1, "missing_media": 1}
    data.setup("fit")
    assert data.skipped_counts == {"bad_line": 1, "missing_media": 1}
    with pytest.raises(BadData, match=r"bad\.jsonl:2"):
        mixed(world, tmp_path, mixture=Mixture(sources=[path]))


def test_mistakes_in_mixtures_are_explained(world, tmp_path) -> None:
    with pytest.raises(ValueError, match="train and mixture both"):
        ConversationDataModule(world=world, train=["count"], mixture=Mixture(sources=["count"]))
    with pytest.raises(ValueError, match="has no task 'cuont'"):
        mixed(world, tmp_path, mixture=Mixture(sources=["cuont"]))


def test_budgets_and_policies_reach_the_packs(world, tmp_path) -> None:
    settings = {
        "pack_patches": 32,
        "pack_flops": 1e12,
        "cost": "keye_vl_8b_tiny",
        "long_samples": "alone",
        "cache_bytes": 10**9,
        "decode_workers": 1,
    }
    budget = PackBudget(tokens=400, patches=32, flops=1e12)
    data = mixed(world, tmp_path, mixture=Mixture(sources=["count", "arithmetic"], max_epochs=1), **settings)
    loader = data.train_dataloader()
    assert (data.encoder.cache.max_bytes, loader.decode_workers, loader.stream.budget) == (10**9, 1, budget)
    batches = list(loader)
    assert Counter(sample.task for batch in batches for sample in batch.samples) == {"count": 12, "arithmetic": 10}
    seeing = [batch for batch in batches if batch.vision is not None]
    assert {(len(batch.vision.patches), len(batch.samples)) for batch in seeing} == {(64, 1)}  # too many patches: alone
    assert loader.epoch_packs == data.budget.packs(np.concatenate(list(loader.stream.sizes.values())))
    assert all(sizes[:, 2].min() > 0 for sizes in loader.stream.sizes.values())
    plain = mixed(world, tmp_path, train=["count", "arithmetic"], **settings)
    seeing = [batch for batch in plain.train_dataloader() if batch.vision is not None]
    assert [len(batch.samples) for batch in seeing] == [1] * 12
    assert list(plain.training_sources()) == list(data.training_sources()) == ["count", "arithmetic"]
    assert [sample.id for sample in plain.training_sources()["count"]] == [
        s.id for s in data.training_sources()["count"]
    ]


@pytest.mark.parametrize(
    "chosen", [{"train": ["count", "arithmetic"]}, {"mixture": Mixture(sources=["count", "arithmetic"], max_epochs=1)}]
)
def test_packs_that_cost_alike(world, tmp_path, chosen) -> None:
    data = mixed(world, tmp_path, cost="keye_vl_8b_tiny", pack_slack=0.1, **chosen)
    loader = data.train_dataloader()
    seen = Counter(sample.id for _, batch in zip(range(30), loader, strict=False) for sample in batch.samples)
    assert len(seen) == 22
    budget = loader.budget if "train" in chosen else loader.stream.budget
    sizes = [
        data.sample_cost().of(data.encoder.encode(s)) for source in data.training_sources().values() for s in source
    ]
    assert budget == PackBudget.alike(sizes, 400, slack=0.1, alone=True)


def test_operations_are_those_of_the_network_that_is_trained(world, tmp_path) -> None:
    for limit in ({"pack_flops": 1e12}, {"pack_slack": 0.02}):
        with pytest.raises(ValueError, match="limits operations, but no network says what a sample costs"):
            mixed(world, tmp_path, train=["arithmetic"], **limit)
    with pytest.raises(ValueError, match="give one of them"):
        ConversationDataModule(train=["arithmetic"], pack_flops=1e12, pack_slack=0.02)
    data = mixed(world, tmp_path, train=["arithmetic"])
    assert data.sample_cost().sizes is None
    task, trainer = lightning.LightningModule(), lightning.Trainer(accelerator="cpu", logger=False, max_steps=0)
    task.network = tiny_vision_language_model()
    trainer.strategy.connect(task)
    data.trainer = trainer
    assert data.sample_cost().sizes == NetworkSizes.of(task.network)
    own = SampleCost.of_network(task.network)
    data.cost = own
    assert data.sample_cost() is own


class Counting(lightning.LightningModule):
    """Counts what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: Counter[str] = Counter()

    def training_step(self, batch, batch_idx):
        self.seen.update(sample.id for sample in batch.samples)
        return self.weight * batch.num_targets

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [int(os.environ.get("KEYEKIT_DAMAGED_FILES", "40"))])
def test_training_goes_on_over_damaged_files_and_counts_each(media, write_jsonl, tmp_path, count: int) -> None:
    """``KEYEKIT_DAMAGED_FILES=1000`` runs the whole proof. The cache holds a few clips, so that all are decoded ahead again."""
    data, random = (media / "clip0.mp4").read_bytes(), np.random.default_rng(0)
    damages = (
        data[: len(data) // 3],
        data[:4] + b"ftyp" + b"\xff" * 200 + data[208:],
        b"",
        b"\x89PNG\r\n\x1a\n" + data[8:],
        bytes(random.integers(0, 256, 5000, dtype=np.uint8)),
    )
    records = []
    for number in range(count):
        path = tmp_path / f"damaged{number}.mp4"
        path.write_bytes(damages[number % len(damages)])
        records.append(record(f"bad{number}", "x", "1", [("video", str(path))]))
        good = record(f"good{number}", "x", "1", [("video", f"clip{number % 3}.mp4")])
        good["messages"][0]["content"][0]["max_frames"] = 4 + number % 9
        records.append(good)
    module, folder = Counting(), tmp_path / "cache"
    data = ConversationDataModule(
        mixture=Mixture(sources=[str(write_jsonl("damaged.jsonl", records))], max_epochs=1),
        vocab_size=400,
        reader=MediaReader(frame_sampler=UniformFps(max_frames=12), min_frame_tokens=4, max_frame_tokens=4),
        cache=str(folder),
        pack_tokens=600,
        on_error="skip",
        cache_bytes=400_000,
        decode_workers=1,
    )
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = lightning.Trainer(max_steps=10_000, accelerator="cpu", default_root_dir=tmp_path, **quiet)  # pyright: ignore[reportArgumentType]
    trainer.fit(module, datamodule=data)
    assert module.seen == Counter({f"good{number}": 1 for number in range(count)})
    assert sum(data.skipped_counts.values()) == count
    assert set(data.skipped_counts) <= {"broken_media", "empty_video"}
    assert sum(path.stat().st_size for path in (folder / "media").glob("*.frames")) < 500_000
    assert not [child for child in multiprocessing.active_children() if child.is_alive()]


class Elsewhere:
    """A decoding service without another machine."""

    def __init__(self, reader: MediaReader) -> None:
        self.reader = reader
        self.asked: Counter = Counter()
        self.closed = False

    def ensure(self, items, cache, ahead=None):
        for item in items:
            if item is not None:
                self.asked[item.path.name] += 1
                cache.keep(item, self.reader.read(item))
            yield None

    def close(self) -> None:
        self.closed = True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "portions", [{"train": ["count"]}, {"mixture": Mixture(sources=["count"], max_epochs=1)}], ids=str
)
def test_a_service_decodes_before_and_during_the_run(world, tmp_path, portions) -> None:
    services: list[Elsewhere] = []

    def service(reader: MediaReader) -> Elsewhere:
        services.append(Elsewhere(reader))
        return services[-1]

    settings = {"world": world, "vocab_size": 400, "reader": READER, "cache": str(tmp_path), "pack_tokens": 100}
    data = ConversationDataModule(**portions, **settings, decode_service=service)
    data.prepare_data()
    assert set(services[0].asked.values()) == {1}
    clips = len(services[0].asked)
    for path in (tmp_path / "media").glob("*.frames"):
        drop_pixels(path)  # as when the cache is full
    data.setup("fit")
    names = [sample.id for batch in data.train_dataloader() for sample in batch.samples]
    assert len(names) == 12
    assert set(services[0].asked.values()) == {2}
    assert len(services[0].asked) == clips
    data.teardown("fit")
    assert [found.closed for found in services] == [True]
    data.train_dataloader()
    assert len(services) == 2  # a test after the fit has a connection of its own


@pytest.mark.filterwarnings("ignore")
def test_a_run_ends_when_its_mixture_is_used_up(world, tmp_path) -> None:
    mixture = Mixture(sources=["count", "arithmetic"], max_epochs=2)
    data = ConversationDataModule(
        world=world,
        vocab_size=400,
        reader=READER,
        cache=str(tmp_path),
        pack_tokens=400,
        mixture=mixture,
        loader_workers=1,
    )
    module = Counting()
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = lightning.Trainer(max_steps=10_000, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(module, datamodule=data)
    assert len(module.seen) == 22
    assert set(module.seen.values()) == {2}
    assert 1 < trainer.global_step < 100
