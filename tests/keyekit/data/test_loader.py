"""Loaders: deterministic, sized, and exact when resumed by a real trainer."""

import lightning
import pytest
import torch

from keyekit.data.cache import MediaCache, MediaReader
from keyekit.data.dataset import ConversationDataset
from keyekit.data.encode import SampleEncoder
from keyekit.data.errors import ErrorPolicy
from keyekit.data.loader import PackLoader, StatefulLoader
from keyekit.data.sample import parse_sample
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
        monkeypatch.setattr("keyekit.data.loader.rank_and_world", lambda rank=rank: (rank, 3))
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
    monkeypatch.setattr("keyekit.data.loader.rank_and_world", lambda: (rank, world))


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


def test_a_position_in_other_data_is_refused(dataset) -> None:
    state = PackLoader(dataset, budget=64).state_dict()
    with pytest.raises(ValueError, match="its position means nothing"):
        PackLoader(dataset, budget=128).load_state_dict(state)
