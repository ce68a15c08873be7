"""Language modelling through a real trainer: learning, routing, exact resume."""

from functools import partial
from types import SimpleNamespace

import lightning
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from keyekit.data.loader import StatefulLoader
from keyekit.data.tokenizer import load_tokenizer, train_tokenizer
from keyekit.models.weights import CheckpointError, save_weights
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.moe.hashing import Hash
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.nn.moe.routers import SigmoidBias, SoftmaxTopK
from keyekit.optim.schedules import WarmupCosine
from keyekit.tasks.base import Task
from keyekit.tasks.language_modeling import LanguageModeling
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model

pytestmark = pytest.mark.filterwarnings("ignore")
SPARSE = partial(DSA, topk=6, num_indexer_heads=2, indexer_head_dim=16)
MIXTURE = partial(MixtureOfExperts, num_experts=4, active_experts=2, expert_dim=24)


class Batches(StatefulLoader):
    """Different packs, some without any image."""

    def __len__(self) -> int:
        return 5

    def batch(self, epoch: int, position: int):
        grids = ((2, 4), None) if position % 2 else (None, None)
        return tiny_batch(grids=grids, seed=10 * (epoch % 2) + position)


class Losses(lightning.Callback):
    """Keeps every loss to the bit."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.values.append(outputs["loss"].item())


def fit(folder, steps: int, resume: str | None = None, **parts) -> tuple[list[float], LanguageModeling]:
    torch.manual_seed(0)
    task = LanguageModeling(tiny_vision_language_model(**parts), learning_rate=3e-3, schedule=WarmupCosine(2))
    losses = Losses()
    # The schedule must know the full length, so a run is interrupted and not shortened.
    stop = [_StopAfter(steps, folder)] if steps < 12 and resume is None else []
    trainer = lightning.Trainer(
        max_steps=12,
        callbacks=[losses, *stop],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        gradient_clip_val=1.0,
        default_root_dir=folder,
    )
    trainer.fit(task, Batches(), ckpt_path=resume, weights_only=False)
    return losses.values, task


class _StopAfter(lightning.Callback):
    """Save and stop after a number of steps, as a killed and restarted run would."""

    def __init__(self, steps: int, folder) -> None:
        self.steps = steps
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(self.folder / "cut.ckpt")
            trainer.should_stop = True


PARTS = {
    "dense": {},
    "dsa": {"attention": SPARSE},
    "softmax": {"feed_forward": MIXTURE},
    "sigmoid": {"feed_forward": partial(MIXTURE, router=partial(SigmoidBias, bias_rate=0.01))},
}


@pytest.mark.parametrize("parts", PARTS)
def test_loss_falls_and_repeats_to_the_bit(tmp_path, parts: str) -> None:
    losses, task = fit(tmp_path, 12, **PARTS[parts])
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    again, _ = fit(tmp_path, 12, **PARTS[parts])
    assert losses == again
    if parts == "sigmoid":
        assert task.network.decoder.layers[0].mlp.gate.bias.abs().sum() > 0


@pytest.mark.parametrize("parts", ["dense", "sigmoid", "dsa"])
@pytest.mark.parametrize("cut", [1, 5, 7])
def test_an_interrupted_run_goes_on_to_the_bit(tmp_path, parts: str, cut: int) -> None:
    whole, _ = fit(tmp_path, 12, **PARTS[parts])
    first, _ = fit(tmp_path, cut, **PARTS[parts])
    second, _ = fit(tmp_path, 12, resume=str(tmp_path / "cut.ckpt"), **PARTS[parts])
    assert first + second == whole


def test_balance_and_indexer_losses_are_part_of_the_loss() -> None:
    logged: dict[str, torch.Tensor] = {}
    task = LanguageModeling(tiny_vision_language_model(SPARSE, MIXTURE), router_balance=0.5)
    task._trainer = type("T", (), {"world_size": 1})()
    task.log = lambda name, value, **_: logged.update({name: value})
    task.log_dict = lambda values, **_: logged.update(values)
    loss = task.training_step(tiny_batch(), 0)
    expected = logged["train/prediction_loss"] + logged["train/indexer_kl"] + 0.5 * logged["train/router_balance"]
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    gate = task.network.decoder.layers[0].mlp.gate.weight
    assert gate.grad.abs().sum() > 0


def test_a_router_that_balances_itself_gets_no_balance_loss() -> None:
    logged: dict[str, torch.Tensor] = {}
    mixture = partial(MIXTURE, router=SigmoidBias)
    task = LanguageModeling(tiny_vision_language_model(feed_forward=mixture), router_balance=0.5)
    task._trainer = type("T", (), {"world_size": 1})()
    task.log = lambda name, value, **_: logged.update({name: value})
    task.log_dict = lambda values, **_: logged.update(values)
    torch.testing.assert_close(task.training_step(tiny_batch(), 0).detach(), logged["train/prediction_loss"])


def standalone(task: LanguageModeling) -> dict[str, torch.Tensor]:
    """Let a task step without a trainer; returns what it logs."""
    logged: dict[str, torch.Tensor] = {}
    task._trainer = type("T", (), {"world_size": 1})()
    task.log = lambda name, value, **_: logged.update({name: value})
    task.log_dict = lambda values, **_: logged.update(values)
    return logged


@pytest.mark.parametrize("router", [SoftmaxTopK, SigmoidBias])
def test_z_and_sequence_losses_are_part_of_the_loss_where_asked_for(router) -> None:
    mixture = partial(MIXTURE, router=router)
    weights = {"router_balance": 0.0, "router_z": 0.3, "router_sequence_balance": 0.2}
    task = LanguageModeling(tiny_vision_language_model(feed_forward=mixture), **weights)
    logged = standalone(task)
    loss = task.training_step(tiny_batch(), 0)
    extra = 0.3 * logged["train/router_z"] + 0.2 * logged["train/router_sequence_balance"]
    torch.testing.assert_close(loss.detach(), logged["train/prediction_loss"] + extra)
    assert extra > 0.2


def test_checkpointing_doubles_no_count_and_the_bias_moves_after_the_step(monkeypatch) -> None:
    mixture = partial(MIXTURE, router=partial(SigmoidBias, bias_rate=0.25))
    task = LanguageModeling(tiny_vision_language_model(feed_forward=mixture))
    standalone(task)
    calls = []
    for layer in task.network.decoder.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        layer.mlp.gate.register_forward_hook(lambda *_: calls.append(1))
    for seed in range(2):  # two packs are accumulated
        task.training_step(tiny_batch(seed=seed), 0).backward()
    assert len(calls) == 2 * 2 * 2, "the backward pass routes again, or this test shows nothing"
    tokens = 2 * (9 + 14)  # without the tails
    assert [counts.sum().item() for counts in task._expert_load] == [2 * tokens, 2 * tokens]
    biases = [layer.mlp.gate.bias for layer in task.network.decoder.layers]
    assert all(bias.abs().sum() == 0 for bias in biases), "the bias moved before the optimizer step"
    load = [counts.clone() for counts in task._expert_load]
    monkeypatch.setattr(Task, "optimizer_step", lambda *_: None)
    task.optimizer_step(0, 0, torch.optim.SGD(task.parameters()), None)
    for bias, counts in zip(biases, load, strict=True):
        assert torch.equal(bias, 0.25 * torch.sign(counts.mean() - counts))
        assert bias.abs().sum() > 0
    assert task._expert_load == []


def test_hash_routing_gets_the_ids_of_the_pack() -> None:
    task = LanguageModeling(tiny_vision_language_model(feed_forward=partial(MIXTURE, router=Hash)))
    standalone(task)
    batch = tiny_batch()
    experts = task.network(batch).selections[0].experts
    assert torch.equal(experts, task.network.decoder.layers[0].mlp.gate.experts_of(batch.tokens))
    assert task.training_step(batch, 0).isfinite()


def test_shares_of_a_divided_pack_weigh_as_much_as_a_whole_one() -> None:
    """Gradients are averaged over ranks; tests/keyekit/distributed/test_sequence_parallel.py shows that shares add up."""
    task = LanguageModeling(tiny_vision_language_model(SPARSE, MIXTURE), router_balance=0.5)
    logged = standalone(task)
    alone = task.training_step(tiny_batch(), 0)
    others, load = alone.detach() - logged["train/prediction_loss"], task._expert_load
    task._expert_load = []
    task.network.decoder.exchange.ranks = 2
    shared = task.training_step(tiny_batch(), 0)
    torch.testing.assert_close(shared.detach() - logged["train/prediction_loss"], 2 * others)
    for own, whole in zip(task._expert_load, load, strict=True):
        torch.testing.assert_close(own, whole / 2)
    task._ahead = type("Ahead", (), {"targets": (6, 4)})()
    assert task.global_targets(3) == 10 / 2 / 2, "whole packs were read ahead: both ranks count all of their targets"


@pytest.mark.parametrize("training", [True, False])
def test_only_training_packs_are_divided(training: bool) -> None:
    task, part = LanguageModeling(tiny_vision_language_model()), tiny_batch(seed=1)
    task._trainer = type("T", (), {"training": training})()
    task.network.divide = lambda batch: part
    batch = tiny_batch()
    assert task.on_before_batch_transfer(batch, 0) is (part if training else batch)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused() -> None:
    task = LanguageModeling(tiny_vision_language_model())
    task._trainer = type("T", (), {"datamodule": type("D", (), {"tokenizer": range(1000)})()})()
    with pytest.raises(ValueError, match="1000 tokens, the decoder 64"):
        task.setup("fit")


_ROWS = 410


def _words(rows: int) -> torch.nn.Module:
    network = tiny_vision_language_model()
    network.decoder.vocab_size = rows
    network.decoder.embed_tokens = torch.nn.Embedding(rows, 32)
    network.decoder.lm_head = torch.nn.Linear(32, rows, bias=False)
    return network


def _start(start, own, stage: str = "fit") -> None:
    task = LanguageModeling(_words(_ROWS), init_from=str(start))
    task._trainer = SimpleNamespace(datamodule=SimpleNamespace(tokenizer=own))
    task.setup(stage)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Two whose merges differ."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return [train_tokenizer([text] * 9, folder / text[:3], 400) for text in ("red circle", "how many squares")]


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_weights_whose_tokenizer_means_something_else_are_refused(tokenizers, tmp_path, stage: str) -> None:
    own, theirs = tokenizers
    save_weights(_words(_ROWS), tmp_path)
    theirs.save_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError, match="ids mean something else, such as") as caught:
        _start(tmp_path, own, stage)
    told = str(caught.value)
    assert own.name_or_path in told
    assert told.endswith(f"Take the one of the weights: --data.tokenizer={tmp_path}")
    number = next(n for n in range(len(own)) if own.convert_ids_to_tokens(n) != theirs.convert_ids_to_tokens(n))
    assert (
        f"{number} ({own.convert_ids_to_tokens(number)!r} here, {theirs.convert_ids_to_tokens(number)!r} there)" in told
    )


def test_weights_of_the_same_tokenizer_of_a_larger_one_or_of_a_tower_alone_are_taken(tokenizers, tmp_path) -> None:
    own, theirs = tokenizers
    save_weights(_words(_ROWS), tmp_path / "whole")
    _start(tmp_path / "whole", own)  # no tokenizer beside them
    own.save_pretrained(str(tmp_path / "whole"))
    _start(tmp_path / "whole", own)
    larger = load_tokenizer(tmp_path / "whole")
    larger.add_tokens(["<|new|>"], special_tokens=True)
    _start(tmp_path / "whole", larger)
    save_weights(torch.nn.ModuleDict({"vision": tiny_vision_language_model().vision}), tmp_path / "tower")
    theirs.save_pretrained(str(tmp_path / "tower"))
    _start(tmp_path / "tower", own)
