"""Loaders: deterministic, sized, and exact when resumed by a real trainer."""

from dataclasses import replace

import lightning
import pytest
import torch

from keyekit.data.cache import MediaCache, MediaReader
from keyekit.data.cost import SampleCost, SampleSize
from keyekit.data.dataset import ConversationDataset
from keyekit.data.encode import SampleEncoder
from keyekit.data.errors import ErrorPolicy
from keyekit.data.frames_file import drop_pixels
from keyekit.data.loader import PackLoader, StatefulLoader
from keyekit.data.packer import PackBudget
from keyekit.data.sample import parse_sample
from keyekit.data.sampling import UniformFps
from keyekit.data.template import ChatTemplate
from keyekit.testing.tiny import tiny_record as record


@pytest.fixture
def dataset(tokenizer, tmp_path, media) -> ConversationDataset:
    encoder = SampleEncoder(tokenizer, ChatTemplate(), MediaCache(tmp_path / "cache", MediaReader()))
    words = ("x", "x x", "x x x x")
    texts = [parse_sample(record(f"s{i}", words[i % 3], "1"), "f:1", media) for i in range(40)]
    return ConversationDataset(texts, encoder, ErrorPolicy("raise"), 64)


def ids(loader: PackLoader, epoch: int) -> list[list[str]]:
    return [[sample.id for sample in loader.batch(epoch, place).samples] for place in range(len(loader))]


def test_every_epoch_has_every_sample_once_in_another_order(dataset) -> None:
    loader = PackLoader(dataset, budget=64, seed=3)
    epochs = [ids(loader, epoch) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(name for pack in epoch for name in pack) == sorted(f"s{i}" for i in range(40))
    assert epochs[0] != epochs[1] != epochs[2]
    assert {frozenset(pack) for pack in epochs[0]} != {frozenset(pack) for pack in epochs[1]}
    assert epochs == [ids(PackLoader(dataset, budget=64, seed=3), epoch) for epoch in range(3)]
    assert epochs[0] != ids(PackLoader(dataset, budget=64, seed=4), 0)


def test_ranks_share_the_packs(dataset, monkeypatch) -> None:
    whole = ids(PackLoader(dataset, budget=64), 0)
    shares = []
    for rank in range(3):
        monkeypatch.setattr("keyekit.data.loader.rank_and_world", lambda sharing=1, rank=rank: (rank, 3))
        shares.append(ids(PackLoader(dataset, budget=64), 0))
    assert len({len(share) for share in shares}) == 1
    dealt = [pack for round_ in zip(*shares, strict=True) for pack in round_]
    assert dealt[: len(whole)] == whole
    assert dealt[len(whole) :] == whole[: len(dealt) - len(whole)]


class Recorder(lightning.LightningModule):
    """Remembers the samples of every training step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[str, ...]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(tuple(sample.id for sample in batch.samples))
        return self.weight * batch.num_targets

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(dataset, folder, steps: int, resume: str | None = None) -> Recorder:
    module = Recorder()
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(module, PackLoader(dataset, budget=64, seed=1), ckpt_path=resume, weights_only=False)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cut", [1, 4, "epoch", "later"])
def test_an_interrupted_run_sees_what_an_uninterrupted_one_sees(dataset, tmp_path, cut) -> None:
    per_epoch = len(PackLoader(dataset, budget=64, seed=1))
    cut = {"epoch": per_epoch, "later": per_epoch + 2}.get(cut, cut)
    total = 2 * per_epoch + 3
    whole = train(dataset, tmp_path, total).seen
    assert len(whole) == total
    assert whole[:per_epoch] != whole[per_epoch : 2 * per_epoch]
    first = train(dataset, tmp_path, cut).seen
    second = train(dataset, tmp_path, total, resume=str(tmp_path / f"{cut}.ckpt")).seen
    assert first + second == whole


def test_the_base_says_what_is_missing() -> None:
    with pytest.raises(TypeError, match="must define"):
        StatefulLoader().batch(0, 0)


def on_rank(monkeypatch, rank: int, world: int) -> None:
    monkeypatch.setattr("keyekit.data.loader.rank_and_world", lambda sharing=1: (rank, world))


@pytest.mark.parametrize("world", [2, 3, 7])
def test_evaluation_asks_everything_once_with_equally_many_packs_on_every_rank(
    dataset, monkeypatch, world: int
) -> None:
    shares = []
    for rank in range(world):
        on_rank(monkeypatch, rank, world)
        loader = PackLoader(dataset, budget=200, shuffle=False)
        shares.append([[sample.id for sample in batch.samples] for batch in loader])
        assert len(shares[-1]) == len(loader)
    assert len({len(share) for share in shares}) == 1
    assert sorted(name for share in shares for pack in share for name in pack) == sorted(f"s{i}" for i in range(40))


def test_evaluation_starts_over_when_it_was_left_early(dataset) -> None:
    loader = PackLoader(dataset, budget=64, shuffle=False)
    first = [next(iter(loader)).samples[0].id for _ in range(3)]
    assert len(set(first)) == 1
    loader.load_state_dict(loader.state_dict() | {"position": 2})
    assert [sample.id for sample in next(iter(loader)).samples] == ids(loader, 0)[2]


def test_training_goes_on_where_a_short_epoch_ended(dataset) -> None:
    loader = PackLoader(dataset, budget=64)
    seen = [next(iter(loader)).samples for _ in range(len(loader))]
    assert [[sample.id for sample in pack] for pack in seen] == ids(loader, 0)


def test_resumed_on_other_ranks_nothing_is_left_out(dataset, monkeypatch) -> None:
    on_rank(monkeypatch, 0, 4)
    saved = PackLoader(dataset, budget=64, seed=1)
    state = saved.state_dict() | {"position": 1}
    assert state["ranks"] == 4
    on_rank(monkeypatch, 0, 1)
    loader = PackLoader(dataset, budget=64, seed=1)
    loader.load_state_dict(state)
    assert [[sample.id for sample in batch.samples] for batch in loader] == ids(loader, 0)[4:]


class Cubic(SampleCost):
    """A cost by which samples differ much."""

    def size(self, tokens, grids=(), targets=None) -> SampleSize:
        measured = super().size(tokens, grids, targets)
        return replace(measured, flops=float(tokens - 20) ** 3)


@pytest.fixture
def clips(tokenizer, tmp_path, media) -> ConversationDataset:
    """Texts and clips; with the budget of the tests below one sample in ten stands alone."""
    reader = MediaReader(frame_sampler=UniformFps(max_frames=4), min_frame_tokens=4, max_frame_tokens=4)
    encoder = SampleEncoder(tokenizer, ChatTemplate(), MediaCache(tmp_path / "cache", reader))
    shown = [[("video", f"clip{i % 3}.mp4")] if i % 2 else [] for i in range(40)]
    records = [record(f"s{i}", "x " * (1 + i % 7 + (i % 10 == 0) * 200), "1", shown[i]) for i in range(40)]
    given = [parse_sample(line, "f:1", media) for line in records]
    return ConversationDataset(given, encoder, ErrorPolicy("raise"), BUDGET, cost=Cubic(), long_samples="alone")


BUDGET = PackBudget(tokens=200, patches=128)


def rounds(clips, monkeypatch, world: int, epoch: int = 0) -> list[list]:
    """For each rank its batches."""
    shares = []
    for rank in range(world):
        on_rank(monkeypatch, rank, world)
        loader = PackLoader(clips, BUDGET, seed=5, alone=True)
        shares.append([loader.batch(epoch, place) for place in range(len(loader))])
    return shares


def test_all_budgets_are_kept_and_long_samples_stand_alone(clips, monkeypatch) -> None:
    (batches,) = rounds(clips, monkeypatch, 1)
    assert sorted(sample.id for batch in batches for sample in batch.samples) == sorted(f"s{i}" for i in range(40))
    lengths = [max(sample.stop for sample in batch.samples) for batch in batches]
    alone = [batch for batch, length in zip(batches, lengths, strict=True) if length > 200]
    assert {sample.id for batch in alone for sample in batch.samples} == {"s0", "s10", "s20", "s30"}
    assert all(len(batch.samples) == 1 and batch.tokens.numel() == batch.samples[0].stop for batch in alone)
    others = [batch for batch in batches if len(batch.tokens) == 200]
    assert len(others) + len(alone) == len(batches)
    assert all(batch.vision is None or len(batch.vision.patches) <= 128 for batch in batches)
    assert max(len(batch.vision.patches) for batch in batches if batch.vision is not None) == 128


def test_ranks_of_a_step_have_equally_much_to_do_and_the_step_the_same_samples(clips, monkeypatch) -> None:
    (whole,) = rounds(clips, monkeypatch, 1)
    first, second = rounds(clips, monkeypatch, 2)
    cost = {encoded.sample.id: clips.cost.of(encoded).flops for encoded in clips.encoded}

    def load(batch) -> float:
        return sum(cost[sample.id] for sample in batch.samples)

    dealt, balanced = [], []
    for place, pair in enumerate(zip(first, second, strict=True)):
        planned = [whole[(2 * place + rank) % len(whole)] for rank in range(2)]
        assert sorted(s.id for b in pair for s in b.samples) == sorted(s.id for b in planned for s in b.samples)
        dealt.append(max(map(load, planned)))
        balanced.append(max(map(load, pair)))
        assert all(batch.tokens.numel() == 200 or len(batch.samples) == 1 for batch in pair)
    assert all(after <= before for before, after in zip(dealt, balanced, strict=True))
    assert sum(after < before for before, after in zip(dealt, balanced, strict=True)) >= 3


def test_media_are_decoded_ahead_where_the_cache_has_dropped_them(clips, monkeypatch) -> None:
    whole = [batch.vision for batch in PackLoader(clips, BUDGET, seed=5, alone=True)]
    cache = clips.encoder.cache
    for encoded in clips.encoded:
        for key in encoded.keys:
            drop_pixels(cache.folder / f"{key}.frames")
    monkeypatch.setattr(MediaCache, "_decode_and_store", None)  # in this process nothing is decoded
    seen = [batch.vision for batch in PackLoader(clips, BUDGET, seed=5, alone=True, decode_workers=1)]
    for before, after in zip(whole, seen, strict=True):
        assert (before is None) == (after is None)
        assert before is None or torch.equal(before.patches, after.patches)


def test_a_position_in_other_data_is_refused(dataset) -> None:
    state = PackLoader(dataset, budget=64).state_dict()
    with pytest.raises(ValueError, match="its position means nothing"):
        PackLoader(dataset, budget=128).load_state_dict(state)
