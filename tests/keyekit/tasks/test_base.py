"""What all tasks share."""

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from keyekit.models.weights import save_weights
from keyekit.optim.groups import ParameterGroup
from keyekit.optim.schedules import WarmupCosine
from keyekit.tasks.language_modeling import LanguageModeling
from keyekit.testing.distributed import run_distributed
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
pytestmark = pytest.mark.filterwarnings("ignore")


def test_initial_weights_freezing_and_rates(tmp_path) -> None:
    source = tiny_vision_language_model()
    save_weights(source, tmp_path)
    torch.manual_seed(9)
    groups = [ParameterGroup("vision", frozen=True), ParameterGroup("decoder", learning_rate_scale=0.5)]
    task = LanguageModeling(
        tiny_vision_language_model(),
        groups=groups,
        schedule=WarmupCosine(0),
        learning_rate=0.01,
        init_from=str(tmp_path),
    )
    lightning.Trainer(max_steps=1, **QUIET).fit(task, DataLoader([tiny_batch()], batch_size=None))
    before, after = source.state_dict(), task.network.state_dict()
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert max(v for name, v in moved.items() if name.startswith("vision")) == 0
    # AdamW's first step moves a parameter by its learning rate
    assert moved["decoder.lm_head.weight"] == pytest.approx(0.005, rel=0.05)
    assert moved["projector.linear_2.weight"] == pytest.approx(0.01, rel=0.05)


def _gradient(rank: int, world_size: int) -> torch.Tensor:
    """Gradient of the output layer after one step on a rank's share of the batches."""
    torch.manual_seed(0)
    task = LanguageModeling(tiny_vision_language_model(), learning_rate=0.0, schedule=WarmupCosine(0))
    kept = []
    task.on_before_optimizer_step = lambda _: kept.append(task.network.decoder.lm_head.weight.grad.clone())
    batches = [tiny_batch(seed=1), tiny_batch(lengths=(30, 5), grids=(None, (2, 2)), seed=2)]
    strategy = "ddp" if world_size > 1 else "auto"
    trainer = lightning.Trainer(
        max_steps=1, devices=world_size, strategy=strategy, use_distributed_sampler=False, **QUIET
    )
    if world_size > 1:
        trainer.fit(task, DataLoader([batches[rank]], batch_size=None))
    else:
        output = [task.network(batch) for batch in batches]
        sums = [
            task.objective(o.hidden, task.network.decoder.lm_head.weight, b.labels, b.num_targets)
            for o, b in zip(output, batches, strict=True)
        ]
        (sum(sums) / sum(batch.num_targets for batch in batches)).backward()
        kept.append(task.network.decoder.lm_head.weight.grad)
    return kept[0]


def _ranked(rank: int, world_size: int) -> torch.Tensor:
    import os

    os.environ["LOCAL_RANK"] = str(rank)
    os.environ["NODE_RANK"] = "0"
    return _gradient(rank, world_size)


def test_the_loss_is_the_mean_over_the_targets_of_all_ranks() -> None:
    expected = _gradient(0, 1)
    for gradient in run_distributed(_ranked, 2):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_a_test_starts_from_the_initial_weights_and_a_second_stage_keeps_what_was_trained(tmp_path) -> None:
    source = tiny_vision_language_model()
    save_weights(source, tmp_path)
    torch.manual_seed(9)
    task = LanguageModeling(tiny_vision_language_model(), init_from=str(tmp_path))
    task._trainer = type("T", (), {"datamodule": None})()
    task.setup("test")
    weight = task.network.decoder.lm_head.weight
    assert torch.equal(weight, source.decoder.lm_head.weight)
    with torch.no_grad():
        weight += 1
    task.setup("fit")
    assert torch.equal(weight, source.decoder.lm_head.weight + 1)
