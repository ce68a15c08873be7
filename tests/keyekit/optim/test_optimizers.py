"""Optimizers against formulas in float64, over groups, checkpoints and shards."""

from copy import deepcopy
from functools import partial

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from keyekit.nn.attention.dsa import DSA
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.optim.groups import ParameterGroup, group_parameters
from keyekit.optim.optimizers import AdamW, Muon, MuonWithAdamW
from keyekit.optim.schedules import WarmupCosine
from keyekit.tasks.language_modeling import LanguageModeling
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model

MIXTURE = partial(MixtureOfExperts, num_experts=4, active_experts=2, expert_dim=16)
SPARSE = partial(DSA, topk=4, num_indexer_heads=2, indexer_head_dim=16)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Keller Jordan's post on Muon, and arXiv:2502.16982


def orthogonal(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Newton–Schulz in float64, on singular values: the polynomial acts on each of them alone."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.square().sum().sqrt()
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (8, 8)])
@pytest.mark.parametrize("scale", ["match_rms_adamw", "original"])
def test_muon_steps_are_those_of_the_formula(shape, scale) -> None:
    """Two steps with momentum, decay and a look ahead; torch iterates in bfloat16."""
    torch.manual_seed(0)
    network = nn.Linear(shape[1], shape[0], bias=False)
    rate, decay, momentum = 0.02, 0.1, 0.9
    groups = group_parameters(network, [], rate, decay)
    optimizer = Muon(momentum=momentum, scale=scale).build(network, groups)
    exact, average = network.weight.detach().double(), torch.zeros(shape, dtype=torch.float64)
    for _ in range(2):
        gradient = torch.randn(shape)
        network.weight.grad = gradient.clone()
        optimizer.step()
        average = momentum * average + (1 - momentum) * gradient.double()
        ahead = momentum * average + (1 - momentum) * gradient.double()
        factor = 0.2 * max(shape) ** 0.5 if scale == "match_rms_adamw" else max(1.0, shape[0] / shape[1]) ** 0.5
        before = exact
        exact = exact * (1 - rate * decay) - rate * factor * orthogonal(ahead)
        moved, expected = network.weight.detach().double() - before, exact - before
        assert (moved - expected).norm() < 0.08 * expected.norm()


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    network = tiny_vision_language_model(SPARSE, MIXTURE)
    taken = Muon().hidden_matrices(network)
    assert "vision.encoder.layers.0.mlp.fc1.weight" in taken
    assert "projector.linear_1.weight" in taken
    assert "decoder.layers.0.self_attn.sa_indexer.k_proj.weight" in taken
    others = dict(network.named_parameters()).keys() - taken.keys()
    matrices = {name for name in others if dict(network.named_parameters())[name].ndim == 2}
    assert matrices == {
        "decoder.embed_tokens.weight",
        "decoder.lm_head.weight",
        "vision.embeddings.position_embedding.weight",
        "decoder.layers.0.mlp.gate.weight",
        "decoder.layers.1.mlp.gate.weight",
    }
    assert "decoder.layers.0.mlp.experts.gate_up_proj" in others
    assert "vision.encoder.layers.0.mlp.fc1.weight" not in Muon(adamw=("vision",)).hidden_matrices(network)


def factor(schedule: WarmupCosine, step: int) -> float:
    return schedule.factor(step, 10)


def test_parts_keep_their_learning_rates_and_schedule() -> None:
    network = tiny_vision_language_model()
    parts = [
        ParameterGroup(pattern="vision", learning_rate_scale=0.1),
        ParameterGroup(pattern="projector", frozen=True),
    ]
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith("projector"))
    groups = group_parameters(network, parts, 1e-2, 0.1)
    for optimizer in (AdamW().build(network, groups), Muon().build(network, groups)):
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in network.named_parameters():
            assert rates.get(id(parameter)) == (
                None if name.startswith("projector") else pytest.approx(1e-3 if name.startswith("vision") else 1e-2)
            )
            assert decays.get(id(parameter), 0.0) == (0.1 if parameter.ndim > 1 and id(parameter) in decays else 0.0)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(factor, WarmupCosine(warmup_steps=2)))
        assert {group["lr"] for group in optimizer.param_groups} == {5e-4, 5e-3}
        network(tiny_batch()).hidden.sum().backward()
        optimizer.step()
        scheduler.step()
        assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 1e-2}
    names = {group["name"] for group in optimizer.param_groups}
    assert {"vision/decayed/muon", "vision/plain/adamw", "default/decayed/muon"} <= names


@pytest.mark.parametrize("recipe", [AdamW(), Muon()])
def test_a_resumed_optimizer_goes_on_as_if_nothing_had_happened(recipe, trained) -> None:
    def begun():
        torch.manual_seed(0)
        network = tiny_vision_language_model(feed_forward=MIXTURE)
        return network, recipe.build(network, group_parameters(network, [], 3e-3, 0.1))

    network, optimizer = begun()
    trained(network, optimizer, range(3))
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = deepcopy(optimizer.state_dict())
    losses = trained(network, optimizer, range(3, 6))
    assert losses[-1] < losses[0] or losses[-1] < 4.2
    network, optimizer = begun()
    network.load_state_dict(weights)
    optimizer.load_state_dict(state)
    assert trained(network, optimizer, range(3, 6)) == losses


def test_requests_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="momentum=1"):
        Muon(momentum=1.0)
    network = nn.LayerNorm(3)
    with pytest.raises(ValueError, match="finds no hidden matrix"):
        Muon().build(network, group_parameters(network, [], 1.0, 0.0))


@pytest.mark.filterwarnings("ignore")
def test_a_task_takes_the_optimizer_it_is_given() -> None:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    for given, kind in ((None, torch.optim.AdamW), (Muon(), MuonWithAdamW)):
        parts = [ParameterGroup(pattern="vision", learning_rate_scale=0.5)]
        task = LanguageModeling(
            tiny_vision_language_model(), learning_rate=1e-2, groups=parts, schedule=WarmupCosine(2), optimizer=given
        )
        before = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
        trainer = lightning.Trainer(accelerator="cpu", max_steps=2, gradient_clip_val=1.0, **quiet)
        packs = [tiny_batch(seed=seed) for seed in range(2)]
        trainer.fit(task, DataLoader(packs, batch_size=None, collate_fn=lambda pack: pack))
        optimizer = trainer.optimizers[0]
        assert isinstance(optimizer, kind)
        assert {round(group["initial_lr"], 6) for group in optimizer.param_groups} == {0.01, 0.005}
        assert all(not torch.equal(before[name], parameter) for name, parameter in task.named_parameters())


def test_a_matrix_that_is_spread_over_ranks_is_made_orthogonal_as_a_whole(two_ranks, trained) -> None:
    torch.manual_seed(0)
    network = tiny_vision_language_model()
    optimizer = Muon().build(network, group_parameters(network, [], 3e-3, 0.1))
    alone = trained(network, optimizer, range(4))
    for rank in two_ranks:
        assert rank.losses == pytest.approx(alone, rel=2e-3)  # bfloat16 sums in another order
        assert rank.resumed == rank.losses[2:]  # from a distributed checkpoint
