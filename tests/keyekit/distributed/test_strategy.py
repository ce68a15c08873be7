"""The strategy in two processes: precision, evaluation in step, export, weights onto meta; and what it refuses.

That training is the same on any number of ranks is shown by tests/distributed/test_equalities.py.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from keyekit.callbacks.alarms import (
    FlatPositions,
    IdleVision,
    NonFiniteLoss,
    RepeatedSamples,
    ShiftedLabels,
    SilentRouter,
    SilentVision,
)
from keyekit.callbacks.experts import ExpertLoad
from keyekit.callbacks.export import Export
from keyekit.callbacks.gradient_norms import GradientNorms
from keyekit.callbacks.memory import MemoryUse
from keyekit.callbacks.throughput import Throughput
from keyekit.cli.lightning import KeyeCLI, prepare
from keyekit.data.contrastive import PairLoader
from keyekit.distributed.gradients import clip_gradients, gradient_norm
from keyekit.distributed.part_plan import PartPlan
from keyekit.distributed.strategy import Sharded
from keyekit.models.contrastive import ContrastiveModel
from keyekit.models.generation import generate
from keyekit.models.weights import load_weights, save_weights
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.nn.text.tower import TextTower
from keyekit.nn.vision.keye_vit import KeyeViT
from keyekit.optim.groups import ParameterGroup
from keyekit.optim.schedules import WarmupCosine
from keyekit.tasks.contrastive import ContrastivePretraining
from keyekit.tasks.language_modeling import LanguageModeling
from keyekit.testing.distributed import run_distributed
from keyekit.testing.equalities import Packs, distance
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "use_distributed_sampler": False,
}
WATCHED: dict[str, dict[str, Any]] = {
    "sharded": {},
    "divided experts, shared vision work": {"expert_parallel": 2, "balance_vision": True},
    "divided packs": {"sequence_parallel": 2, "expert_parallel": 2},
}
MIXTURE = partial(MixtureOfExperts, num_experts=4, active_experts=2, expert_dim=24)


def fit(world_size: int, strategy: Sharded, task: LanguageModeling | None = None, **options: Any) -> LanguageModeling:
    torch.manual_seed(0)
    task = task or LanguageModeling(tiny_vision_language_model(), learning_rate=3e-3, schedule=WarmupCosine(2))
    trainer = lightning.Trainer(devices=world_size, strategy=strategy, max_steps=2, **(QUIET | options))
    trainer.fit(task, Packs())
    return task


def in_sixteen_bits(world_size: int) -> dict[str, str]:
    """What precision leaves behind, with clipping: types of shards, or that they are numbers."""
    found = {}
    for precision in ("bf16-mixed", "bf16-true"):
        task = fit(world_size, Sharded(), precision=precision, gradient_clip_val=0.1)
        weight = task.network.decoder.layers[0].self_attn.o_proj.weight
        found[precision] = str(weight.dtype) if weight.full_tensor().isfinite().all() else "not finite"
    plan = PartPlan(parameter_dtype="bfloat16")
    task = fit(world_size, Sharded(decoder=plan, vision=plan, projector=plan), gradient_clip_val=0.1)
    gathered = []
    layer = task.network.decoder.layers[0]
    layer.self_attn.o_proj.register_forward_hook(lambda module, *_: gathered.append(str(module.weight.dtype)))
    task.network(tiny_batch())
    found["gathered"] = f"{layer.self_attn.o_proj.weight.dtype} {gathered[0]}"
    return found


def norms_on_several_meshes(rank: int, world_size: int) -> tuple[float, float, float]:
    """The norm of sharded gradients, the same of whole ones by torch, and the norm after clipping to half."""
    plans = {"vision": PartPlan(sharding="replicate"), "expert_parallel": 2}
    task = LanguageModeling(tiny_vision_language_model(feed_forward=MIXTURE), learning_rate=0.0)
    fit(world_size, Sharded(**plans), task)
    torch.manual_seed(1)
    parameters = list(task.network.parameters())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter) * (1 + parameter.numel() % 7)
    meshes = {parameter.device_mesh for parameter in parameters if isinstance(parameter, DTensor)}
    assert len(meshes) >= 3
    whole = torch.cat([parameter.grad.full_tensor().flatten() for parameter in parameters]).double().norm().item()
    norm = gradient_norm(parameters, "cpu").item()
    clip_gradients(parameters, norm / 2, "cpu")
    return norm, whole, gradient_norm(parameters, "cpu").item() / norm


def answers_in_step(rank: int, world_size: int) -> list[tuple[int, ...]]:
    """Greedy answers of a sharded model, of other lengths on each rank, and with an image on one alone."""
    torch.manual_seed(0)
    task = LanguageModeling(tiny_vision_language_model(), learning_rate=0.0)
    network = fit(world_size, Sharded(), task).network.eval()
    lengths, grids = ((9, 14), ((2, 4), None)) if rank else ((7,), (None,))
    batch = tiny_batch(lengths=lengths, grids=grids, seed=rank)
    first = generate(network, batch, stop_tokens=(), max_new_tokens=6)
    stop = {first[0].tokens[1]} if rank == 0 else set()  # one rank is done early
    return [answer.tokens for answer in generate(network, batch, stop_tokens=stop, max_new_tokens=6)]


def alone(rank: int) -> list[tuple[int, ...]]:
    torch.manual_seed(0)
    network = tiny_vision_language_model().eval()
    lengths, grids = ((9, 14), ((2, 4), None)) if rank else ((7,), (None,))
    batch = tiny_batch(lengths=lengths, grids=grids, seed=rank)
    first = generate(network, batch, stop_tokens=(), max_new_tokens=6)
    stop = {first[0].tokens[1]} if rank == 0 else set()
    return [answer.tokens for answer in generate(network, batch, stop_tokens=stop, max_new_tokens=6)]


def exported(world_size: int, folder: Path) -> None:
    """A fit that moves nothing and ends with an export; vision tower and decoder are frozen, as in stage 1."""
    groups = [ParameterGroup("vision|decoder", frozen=True)]
    torch.manual_seed(0)
    task = LanguageModeling(tiny_vision_language_model(), learning_rate=0.0, groups=groups)
    fit(world_size, Sharded(), task, callbacks=[Export()], default_root_dir=folder)


def onto_meta(world_size: int, folder: Path, offload: bool) -> tuple[dict[str, torch.Tensor], set[str]]:
    """A network that was built on meta, with weights of a dense one: its indexers are new."""
    attention = partial(DSA, topk=6, num_indexer_heads=2, indexer_head_dim=16)
    with torch.device("meta"):
        network = tiny_vision_language_model(attention)
    task = LanguageModeling(network, learning_rate=0.0, init_from=str(folder))
    task = fit(world_size, Sharded(meta=True, decoder=PartPlan(offload=offload)), task)
    tensors = {name: tensor.full_tensor() for name, tensor in task.network.state_dict().items()}
    return tensors, {name for name, parameter in task.network.named_parameters() if not isinstance(parameter, DTensor)}


def contrastive() -> ContrastiveModel:
    torch.manual_seed(0)
    vision, text = KeyeViT(24, 1, 2, 32, image_size=28), TextTower(16, 24, 1, 2, 32, 4)
    return ContrastiveModel(vision, text, pooling_heads=2, pooling_hidden_dim=32).double()


def matched(world_size: int, strategy: Any, folder: Path | None = None) -> dict[str, torch.Tensor]:
    """A contrastive model after two steps, whose task reads parameters of the network itself; on meta if a folder has it."""
    with torch.device("cpu" if folder is None else "meta"):
        network = contrastive()
    source = None if folder is None else str(folder)
    task = ContrastivePretraining(network, learning_rate=3e-3, schedule=WarmupCosine(2), init_from=source)
    random = np.random.default_rng(0)
    pairs = [(random.integers(0, 255, (28, 28, 3)).astype(np.uint8), (1 + number % 5,)) for number in range(32)]
    trainer = lightning.Trainer(devices=world_size, strategy=strategy, max_steps=2, **QUIET)
    trainer.fit(task, PairLoader(pairs, 8))
    state = task.network.state_dict()
    return {name: t.full_tensor() if isinstance(t, DTensor) else t.clone() for name, t in state.items()}


def tied(world_size: int, strategy: Any) -> dict[str, torch.Tensor]:
    """A decoder that shares its embedding with the output layer, after two steps, and what it answers."""
    torch.manual_seed(0)
    network = tiny_vision_language_model().double()
    network.decoder.lm_head.weight = network.decoder.embed_tokens.weight
    task = LanguageModeling(network, learning_rate=3e-3, schedule=WarmupCosine(2))
    trainer = lightning.Trainer(devices=world_size, strategy=strategy, max_steps=2, **QUIET)
    trainer.fit(task, Packs())
    (answer,) = generate(task.network.eval(), tiny_batch((7,), (None,)), stop_tokens=(), max_new_tokens=3)
    state = {name: t.full_tensor() if isinstance(t, DTensor) else t.clone() for name, t in network.state_dict().items()}
    return state | {"answer": torch.tensor(answer.tokens)}


class Kept(Logger):
    """Keeps what callbacks log at the last step."""

    name, version = "kept", 0

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.values |= metrics

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        pass


ALARMS = (ShiftedLabels, FlatPositions, SilentVision, SilentRouter, IdleVision, RepeatedSamples)


def watched(world_size: int, strategy: Sharded | str) -> dict[str, float]:
    """What the callbacks of every recipe say of two steps of four packs; an alarm that sounds ends the fit."""
    torch.manual_seed(0)
    attention = partial(DSA, topk=6, num_indexer_heads=2, indexer_head_dim=16)
    task = LanguageModeling(tiny_vision_language_model(attention, feed_forward=MIXTURE), learning_rate=0.0)
    throughput, logger = Throughput(skip=0, peak_flops=1e9), Kept()
    callbacks = [
        throughput,
        ExpertLoad(),
        GradientNorms(),
        MemoryUse(),
        NonFiniteLoss(),
        *(alarm(action="stop") for alarm in ALARMS),
    ]
    shared = 1 if isinstance(strategy, str) else strategy.sequence_parallel
    options = {"accumulate_grad_batches": 4 * shared // world_size, "log_every_n_steps": 1, "logger": logger}
    trainer = lightning.Trainer(
        devices=world_size, strategy=strategy, max_steps=2, **(QUIET | options), callbacks=callbacks
    )
    trainer.fit(task, Packs(sharing=shared))
    seconds = throughput.totals.seconds
    rates = {name: value for name, value in logger.values.items() if name.startswith("throughput/")}
    per_token = rates["throughput/flops_per_second"] / rates["throughput/tokens_per_second"]
    assert rates["throughput/utilisation"] == pytest.approx(rates["throughput/flops_per_second"] / (1e9 * world_size))
    counted = {
        name: getattr(throughput.totals, name) for name in ("tokens", "targets", "vision_tokens", "patches", "samples")
    }
    others = {name: value for name, value in logger.values.items() if name.startswith(("experts/", "gradient/"))}
    assert seconds > 0
    return {**counted, **others, "operations per token": per_token}


def everything(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0")
    exported(world_size, folder / "run")
    tensors, unsharded = onto_meta(world_size, folder / "dense", offload=False)
    replicas = matched(world_size, "ddp")
    problems = {}
    with torch.device("meta"):
        valueless = LanguageModeling(tiny_vision_language_model())
    dense = LanguageModeling(tiny_vision_language_model())
    for name, strategy, task in (
        ("meta", Sharded(meta=True), valueless),
        ("experts", Sharded(expert_parallel=2), dense),
        ("world", Sharded(sequence_parallel=3), dense),
    ):
        try:
            fit(world_size, strategy, task)
        except ValueError as error:
            problems[name] = str(error)
    return {
        "precision": in_sixteen_bits(world_size),
        "norms": norms_on_several_meshes(rank, world_size),
        "answers": answers_in_step(rank, world_size),
        "tied": distance(tied(world_size, "ddp"), tied(world_size, Sharded())),
        "matched": distance(replicas, matched(world_size, Sharded())),
        "matched on meta": distance(replicas, matched(world_size, Sharded(meta=True), folder / "pairs")),
        "watched": {name: watched(world_size, Sharded(**degrees)) for name, degrees in WATCHED.items()},
        "meta": tensors,
        "unsharded": unsharded,
        "problems": problems,
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("sharded")
    torch.manual_seed(3)
    save_weights(tiny_vision_language_model(), folder / "dense")
    save_weights(contrastive(), folder / "pairs")
    return SimpleNamespace(folder=folder, results=run_distributed(everything, 2, folder))


def test_half_precision_trains_with_clipping_and_shards_keep_their_type(ranks) -> None:
    for result in ranks.results:
        assert result["precision"] == {
            "bf16-mixed": "torch.float32",
            "bf16-true": "torch.bfloat16",
            "gathered": "torch.float32 torch.bfloat16",
        }


def test_the_norm_over_several_meshes_is_that_of_the_whole_gradient(ranks) -> None:
    for result in ranks.results:
        norm, whole, clipped = result["norms"]
        assert norm == pytest.approx(whole, rel=1e-6)
        assert clipped == pytest.approx(0.5, rel=1e-5)


def test_ranks_answer_as_one_process_would_though_they_end_at_different_steps(ranks) -> None:
    for rank, result in enumerate(ranks.results):
        assert result["answers"] == alone(rank)
    assert [len(answer) for answer in ranks.results[0]["answers"]] == [2]
    assert [len(answer) for answer in ranks.results[1]["answers"]] == [6, 6]


def test_image_text_matching_is_that_of_replicas(ranks) -> None:
    assert all(result["matched"] < 1e-10 for result in ranks.results)
    assert all(result["matched on meta"] < 1e-10 for result in ranks.results)


@pytest.mark.parametrize("name", WATCHED)
def test_what_one_watches_is_that_of_one_process(ranks, name) -> None:
    """Counts, operations, expert load and gradient norms; no alarm sounds, though at some steps one rank has no image."""
    expected = watched(1, "auto")
    assert {"tokens", "samples", "experts/load_entropy", "experts/idle", "gradient/vision"} <= expected.keys()
    found = ranks.results[0]["watched"][name]
    assert found == pytest.approx(expected, rel=1e-4)


def test_tied_embeddings_train_and_answer_as_those_of_replicas(ranks) -> None:
    assert all(result["tied"] < 1e-10 for result in ranks.results)


def test_an_export_of_shards_is_that_of_the_network(ranks) -> None:
    torch.manual_seed(0)
    expected = tiny_vision_language_model()
    folder = ranks.folder / "run/export"
    network = tiny_vision_language_model()
    load_weights(network, folder, strict=True)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["KeyeVL1_5ForConditionalGeneration"]


def test_weights_come_onto_meta_and_new_indexers_are_the_same_on_every_rank(ranks) -> None:
    torch.manual_seed(3)
    dense = tiny_vision_language_model().state_dict()
    one, other = (result["meta"] for result in ranks.results)
    assert all(result["unsharded"] == set() for result in ranks.results)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
        if name in dense:
            assert torch.equal(tensor, dense[name]), name
    queries = [tensor for name, tensor in one.items() if name.endswith("sa_indexer.q_proj.weight")]
    assert len(queries) == 2
    for matrix in queries:
        assert matrix.std().item() == pytest.approx(0.02, rel=0.1)
        halves = matrix.chunk(2)
        assert not torch.equal(halves[0], halves[1]), "each rank drew the same for its shard"
    assert not torch.equal(queries[0], queries[1])


def test_bad_degrees_and_networks_without_values_are_refused_on_every_rank(ranks) -> None:
    for result in ranks.results:
        assert "nothing gives it values" in result["problems"]["meta"]
        assert "no mixture of experts" in result["problems"]["experts"]
        assert "sequence_parallel=3 does not divide the 2 ranks" in result["problems"]["world"]


def test_the_word_on_the_command_line_is_the_strategy() -> None:
    trainer = lightning.Trainer(accelerator="cpu", devices=1, strategy="Sharded", logger=False)
    assert isinstance(trainer.strategy, Sharded)
    assert not isinstance(tiny_vision_language_model(), FSDPModule)
    with pytest.raises(RuntimeError, match="ask later"):
        _ = trainer.strategy.grid


def test_every_part_has_its_plan() -> None:
    vision, decoder = PartPlan(sharding="replicate"), PartPlan(offload=True)
    strategy = Sharded(vision=vision, decoder=decoder)
    assert strategy.plan_of("vision") is vision
    assert strategy.plan_of("projector") == PartPlan()
    assert strategy.plan_of("text") is decoder


class Builder(KeyeCLI):
    """Builds everything that a recipe names, and runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


@pytest.mark.parametrize("meta", ["true", "false"])
def test_the_command_line_builds_networks_without_memory_if_the_strategy_says_so(tmp_path, meta) -> None:
    options = [
        str(Path(__file__).parents[3] / "recipes/tiny/arithmetic.yaml"),
        f"--run.folder={tmp_path}",
        "--trainer.accelerator=cpu",
        f'--trainer.strategy={{"class_path": "Sharded", "init_args": {{"meta": {meta}, "vision": {{"offload": true}}}}}}',
    ]
    cli = Builder("fit", prepare(options))
    assert isinstance(cli.trainer.strategy, Sharded)
    assert cli.trainer.strategy.vision == PartPlan(offload=True)
    assert {parameter.is_meta for parameter in cli.model.network.parameters()} == {meta == "true"}
