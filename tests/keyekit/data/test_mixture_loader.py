"""The loader of a mixture: every sample once, whoever makes the packs and on however many ranks a run goes on."""

import json
import pickle
from collections import Counter
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch

from keyekit.data.cache import MediaCache
from keyekit.data.cost import SampleCost, SampleSize
from keyekit.data.draws import Draws
from keyekit.data.encode import SampleEncoder
from keyekit.data.errors import BadData, ErrorPolicy
from keyekit.data.frames_file import drop_pixels
from keyekit.data.measure import Measures
from keyekit.data.mixture import Mixture
from keyekit.data.mixture_loader import MixtureLoader, PackMaker
from keyekit.data.pack_stream import PackStream
from keyekit.data.packer import PackBudget
from keyekit.data.reader import MediaReader
from keyekit.data.sampling import UniformFps
from keyekit.data.sources.jsonl import JsonLines
from keyekit.data.template import ChatTemplate
from keyekit.testing.distributed import run_distributed
from keyekit.testing.tiny import tiny_record as record

BUDGET = PackBudget(tokens=64)
SAMPLES = {"few": 23, "many": 120}
ONCE = Counter({f"{name}{number}": 1 for name, count in SAMPLES.items() for number in range(count)})


class Cubic(SampleCost):
    """A cost by which samples differ much."""

    def size(self, tokens, grids=(), targets=None) -> SampleSize:
        return SampleSize(tokens=tokens, flops=float(tokens - 10) ** 3)


class Make:
    """Loaders over two files of short texts, as often as one is wanted."""

    def __init__(self, folder: Path, tokenizer, cost: SampleCost | None = None, budget: PackBudget = BUDGET) -> None:
        self.sources, self.cost, self.budget = {}, cost or SampleCost(), budget
        for name, count in SAMPLES.items():
            lines = [json.dumps(record(f"{name}{number}", "x " * (1 + number % 9), "1")) for number in range(count)]
            (folder / f"{name}.jsonl").write_text("\n".join(lines))
            self.sources[name] = JsonLines(str(folder / f"{name}.jsonl"))
        self.encoder = SampleEncoder(tokenizer, ChatTemplate(), MediaCache(folder / "cache", MediaReader()))
        measures = Measures(folder / "measures", self.encoder, self.cost, budget)
        self.sizes = {name: measures.of(source, strict=True).sizes for name, source in self.sources.items()}
        self.tokens = {name: sizes[:, 0] for name, sizes in self.sizes.items()}

    def __call__(
        self, policy: str = "raise", epoch_packs: int = 9, settings: dict | None = None, **rest
    ) -> MixtureLoader:
        mixture = Mixture(sources=list(SAMPLES), **({"max_epochs": 1} if settings is None else settings))
        stream = PackStream(Draws(mixture, self.tokens, seed=7), self.sizes, self.budget, buffer=16)
        maker = PackMaker(self.sources, self.encoder, self.cost, self.budget, self.tokens)
        return MixtureLoader(stream, maker, epoch_packs, ErrorPolicy(policy), **rest)


@pytest.fixture(scope="module")
def make(tmp_path_factory, tokenizer) -> Make:
    return Make(tmp_path_factory.mktemp("mixture"), tokenizer)


@pytest.fixture(scope="module")
def costly(tmp_path_factory, tokenizer) -> Make:
    """Loaders that know what samples cost, with packs of eight or so."""
    return Make(tmp_path_factory.mktemp("costly"), tokenizer, Cubic(), PackBudget(tokens=200))


def batches(loader: MixtureLoader):
    """Packs of all epochs."""
    while not loader.stream.used_up or loader._state["rounds"] == 0:
        yield from loader
        loader.stream.load_state_dict(loader.state_dict()["stream"])


def names(batch) -> tuple[str, ...]:
    return tuple(sample.id for sample in batch.samples)


def on_rank(monkeypatch, rank: int, world: int) -> None:
    monkeypatch.setattr("keyekit.data.mixture_loader.rank_and_world", lambda sharing=1: (rank, world))


def run_ranks(make: Make, monkeypatch, world: int, state: dict | None, rounds: int | None = None) -> tuple[list, dict]:
    """Packs that all ranks take from a state on, and the state afterwards, which has to be the same on all of them."""
    taken, states = [], []
    for rank in range(world):
        on_rank(monkeypatch, rank, world)
        loader = make()
        if state is not None:
            loader.load_state_dict(state)
        own = []
        for batch in batches(loader):
            own.append(names(batch))
            if len(own) == rounds:
                break
        taken.append(own)
        states.append(json.loads(json.dumps(loader.state_dict())))
    assert all(state == states[0] for state in states)
    assert len({len(own) for own in taken}) == 1
    return [pack for round_ in zip(*taken, strict=True) for pack in round_], states[0]


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_resumed_at_fifty_points_nothing_is_lost_or_repeated_with_any_number_of_workers(make, workers: int) -> None:
    loader, whole, states = make(epoch_packs=1000, workers=workers), [], []
    for batch in loader:
        whole.append(names(batch))
        states.append(json.dumps(loader.state_dict()))
    assert Counter(name for pack in whole for name in pack) == ONCE
    assert whole == [names(batch) for batch in make(epoch_packs=1000)]
    for cut in np.random.default_rng(workers).integers(0, len(whole) - 1, 50).tolist():
        again = make(epoch_packs=1000, workers=workers if cut % 8 == 0 else 0)
        again.load_state_dict(json.loads(states[cut]))
        assert [names(batch) for batch in again] == whole[cut + 1 :]


def test_resumed_on_one_two_and_one_ranks_at_fifty_points_every_sample_comes_once(make, monkeypatch) -> None:
    whole, _ = run_ranks(make, monkeypatch, 1, None)
    random = np.random.default_rng(0)
    for _ in range(50):
        first, second = random.integers(1, len(whole) // 3, 2).tolist()
        start, state = run_ranks(make, monkeypatch, 1, None, first)
        middle, state = run_ranks(make, monkeypatch, 2, state, second)
        end, _ = run_ranks(make, monkeypatch, 1, state)
        assert Counter(name for pack in (*start, *middle, *end) for name in pack) == ONCE
        assert start + middle + end == whole  # without weights by step not even the order of packs depends on ranks


def test_ranks_have_equally_much_to_do_and_every_sample_still_comes_once(costly, monkeypatch) -> None:
    whole, _ = run_ranks(costly, monkeypatch, 1, None)
    cost = {f"{name}{n}": size[2] for name, sizes in costly.sizes.items() for n, size in enumerate(sizes.tolist())}
    tokens = {f"{name}{n}": size[0] for name, sizes in costly.sizes.items() for n, size in enumerate(sizes.tolist())}
    for world in (2, 3):
        taken, _ = run_ranks(costly, monkeypatch, world, None)
        loads = {"dealt": [], "balanced": []}
        for start in range(0, len(taken), world):
            planned, found = whole[start : start + world], taken[start : start + world]
            assert sorted(name for pack in planned for name in pack) == sorted(name for pack in found for name in pack)
            assert all(sum(tokens[name] for name in pack) <= 200 for pack in found)
            loads["dealt"].append(max(sum(cost[name] for name in pack) for pack in planned))
            loads["balanced"].append(max(sum(cost[name] for name in pack) for pack in found))
        assert all(after <= before for before, after in zip(*loads.values(), strict=True))
        assert sum(loads["balanced"]) < 0.97 * sum(loads["dealt"])


def test_balanced_ranks_resume_at_fifty_points_and_every_sample_comes_once(costly, monkeypatch) -> None:
    whole, _ = run_ranks(costly, monkeypatch, 1, None)
    random = np.random.default_rng(0)
    for _ in range(50):
        first, second = random.integers(1, len(whole) // 3, 2).tolist()
        start, state = run_ranks(costly, monkeypatch, 1, None, first)
        middle, state = run_ranks(costly, monkeypatch, 2, state, second)
        end, _ = run_ranks(costly, monkeypatch, 1, state)
        assert Counter(name for pack in (*start, *middle, *end) for name in pack) == ONCE
        assert start + end == whole[:first] + whole[first + 2 * second :]


def take_on_rank(rank: int, world: int, make: Make, state: dict, rounds: int) -> tuple[list, dict]:
    loader, taken = make(epoch_packs=1000, workers=1), []
    loader.load_state_dict(state)
    for batch in loader:
        taken.append(names(batch))
        if len(taken) == rounds:
            break
    return taken, loader.state_dict()


@pytest.mark.timeout(120)
def test_two_real_processes_with_workers_take_over_from_one_and_give_back(costly) -> None:
    make = costly
    loader, start, end = make(epoch_packs=1000), [], []
    for batch in loader:
        start.append(names(batch))
        if len(start) == 4:
            break
    shares = run_distributed(take_on_rank, 2, make, loader.state_dict(), 3)
    (first, state), (second, other) = shares
    assert state == other
    middle = [pack for round_ in zip(first, second, strict=True) for pack in round_]
    loader = make(epoch_packs=1000)
    loader.load_state_dict(state)
    end = [names(batch) for batch in loader]
    assert len(middle) == 6
    assert Counter(name for pack in (*start, *middle, *end) for name in pack) == ONCE


def test_the_maker_can_be_sent_to_processes_that_start_anew(make) -> None:
    maker = make().maker
    pack = make().stream.next(0)
    assert pack is not None
    copy = pickle.loads(pickle.dumps(maker))
    assert torch.equal(copy[pack].batch.tokens, maker[pack].batch.tokens)


def test_ranks_that_get_nothing_in_the_last_round_have_an_empty_pack(make, monkeypatch) -> None:
    whole, _ = run_ranks(make, monkeypatch, 1, None)
    for world in (2, 3, 5):
        taken, _ = run_ranks(make, monkeypatch, world, None)
        assert taken[: len(whole)] == whole
        assert set(taken[len(whole) :]) <= {()}
    on_rank(monkeypatch, 1, 2)
    loader = make(epoch_packs=1000)
    assert len(whole) % 2 == 0 or list(loader)[-1].num_targets == 0


def test_an_empty_pack_is_all_tail(make) -> None:
    batch, problems = make().maker[[]]
    assert (batch.tokens.numel(), batch.num_targets, batch.samples, problems) == (64, 0, (), ())
    assert batch.segments.lengths == (64,)


def test_epochs_count_packs_and_the_stream_goes_on(make) -> None:
    loader = make(epoch_packs=5, settings={})
    assert len(loader) == 5
    epochs = [[names(batch) for batch in loader] for _ in range(3)]
    assert [len(epoch) for epoch in epochs] == [5, 5, 5]
    assert loader.state_dict()["epoch"] == 2
    assert [pack for epoch in epochs for pack in epoch] == [names(batch) for batch in make(epoch_packs=15, settings={})]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_was_left_early_goes_on(make, workers: int) -> None:
    loader = make(epoch_packs=8, settings={}, workers=workers)
    seen = [names(next(iter(loader))) for _ in range(5)]
    assert seen == [names(batch) for batch in make(epoch_packs=5, settings={})]


def test_the_end_is_announced_with_the_last_pack_and_comes_once(make) -> None:
    ended = []
    loader = make(epoch_packs=1000, at_end=lambda: ended.append(True))
    counts = [len(ended) for _ in loader]
    assert counts == [0] * (len(counts) - 1) + [1]
    with pytest.raises(ValueError, match="the mixture is used up"):
        next(iter(loader))


def test_weights_follow_the_steps_of_the_optimizer(make) -> None:
    curriculum = {"weights": {"few": {0: 0, 10: 0, 11: 1}, "many": {0: 1, 10: 1, 11: 0}}}
    for accumulate in (1, 3):
        loader = make(epoch_packs=60, settings=curriculum, accumulate=accumulate)
        sources = [{sample.meta["source"] for sample in batch.samples} for batch in loader]
        first = next(number for number, found in enumerate(sources) if "few" in found)
        assert 11 * accumulate <= first <= 11 * accumulate + 16
        assert sources[-1] == {"few"}


def test_a_state_of_other_data_is_refused(make) -> None:
    state = make().state_dict()
    with pytest.raises(ValueError, match="means nothing in other data"):
        make(settings={"max_samples": {"many": 9}}).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes_is_named_and_nothing_is_lost_when_it_comes_back(
    tmp_path, tokenizer, workers: int
) -> None:
    make = Make(tmp_path, tokenizer)
    whole = [names(batch) for batch in make(epoch_packs=1000)]
    loader, seen = make(epoch_packs=1000, workers=workers), []
    path, hidden = tmp_path / "many.jsonl", tmp_path / "hidden"

    def see_until_it_fails() -> None:
        for batch in loader:
            seen.append(names(batch))
            if len(seen) == 3:
                path.rename(hidden)

    with pytest.raises(BadData, match=r"many\.jsonl is gone.*put it back and resume"):
        see_until_it_fails()
    assert seen == whole[: len(seen)]
    state = json.loads(json.dumps(loader.state_dict()))
    hidden.rename(path)
    again = make(epoch_packs=1000, workers=workers)
    again.load_state_dict(state)
    assert seen + [names(batch) for batch in again] == whole


def test_or_left_out_and_counted(tmp_path, tokenizer) -> None:
    make = Make(tmp_path, tokenizer)
    loader, seen = make("skip", epoch_packs=1000, workers=1), Counter()
    for number, batch in enumerate(loader):
        seen.update(names(batch))
        if number == 2:
            (tmp_path / "many.jsonl").unlink()
    missing = loader.policy.counts["missing_shard"]
    assert sum(seen.values()) + missing == sum(SAMPLES.values())
    assert {name for name in ONCE if name.startswith("few")} <= set(seen)


def test_a_sample_that_became_longer_is_noticed_before_it_bursts_a_pack(tmp_path, tokenizer) -> None:
    make = Make(tmp_path, tokenizer)
    lines = (tmp_path / "few.jsonl").read_text().replace('"text": "x', '"text": "x x')
    (tmp_path / "few.jsonl").write_text(lines)
    make.sources["few"] = JsonLines(str(tmp_path / "few.jsonl"))
    with pytest.raises(BadData, match=r"few\d+ of few has \d+ tokens, but \d+ when the run began") as error:
        list(make(epoch_packs=1000))
    assert error.value.reason == "changed_sample"


def test_media_are_decoded_ahead_of_the_packs_and_nothing_changes_by_that(
    tmp_path, tokenizer, media, monkeypatch
) -> None:
    reader = MediaReader(frame_sampler=UniformFps(max_frames=4), min_frame_tokens=4, max_frame_tokens=4)
    cache = MediaCache(tmp_path / "cache", reader)
    encoder, cost, budget = SampleEncoder(tokenizer, ChatTemplate(), cache), SampleCost(), PackBudget(tokens=300)
    lines = [json.dumps(record(f"s{n}", "x", "1", [("video", f"clip{n % 3}.mp4")])) for n in range(12)]
    (media / "ahead.jsonl").write_text("\n".join(lines))
    sources = {"clips": JsonLines(str(media / "ahead.jsonl"))}
    sizes = {"clips": Measures(tmp_path / "measures", encoder, cost, budget).of(sources["clips"], strict=True).sizes}
    tokens = {"clips": sizes["clips"][:, 0]}

    def loader(**workers) -> MixtureLoader:
        draws = Draws(Mixture(sources=["clips"], max_epochs=1), tokens)
        maker = PackMaker(sources, encoder, cost, budget, tokens)
        return MixtureLoader(PackStream(draws, sizes, budget, 4), maker, 100, ErrorPolicy("raise"), **workers)

    whole, states = list(loader()), []
    monkeypatch.setattr(MediaCache, "_decode_and_store", None)  # in this process nothing is decoded
    for workers in (0, 1):
        for path in cache.folder.glob("*.frames"):
            drop_pixels(path)
        ahead = loader(decode_workers=1, workers=workers)
        for batch, expected in zip(ahead, whole, strict=True):
            assert torch.equal(batch.vision.patches, expected.vision.patches)
            states.append(ahead.state_dict()["taken"])
    assert states == [*range(1, len(whole) + 1)] * 2


class Recorder(lightning.LightningModule):
    """Remembers the samples of every training step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[str, ...]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(names(batch))
        return self.weight * batch.num_targets

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(loader, folder, steps: int, resume: str | None = None) -> list[tuple[str, ...]]:
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
    trainer.fit(module, loader, ckpt_path=resume, weights_only=False)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return module.seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cut", [1, 4, 9, 11])
def test_a_trainer_that_was_interrupted_sees_what_an_uninterrupted_one_sees(make, tmp_path, cut: int, workers) -> None:
    settings = {"settings": {"weights": {"few": {0: 1, 20: 0}, "many": 1}}, "workers": workers}
    whole = train(make(**settings), tmp_path, 23)
    assert len(whole) == 23
    first = train(make(**settings), tmp_path, cut)
    second = train(make(**settings), tmp_path, 23, resume=str(tmp_path / f"{cut}.ckpt"))
    assert first + second == whole
