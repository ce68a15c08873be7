"""Preference, policy and distillation losses against TRL's own code on the same log-probabilities.

TRL keeps its losses inside trainers. They are called as plain functions with a stand-in for the trainer that holds just the
settings which the loss reads, and a model that returns given log-probabilities.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from keyekit.batch import Segments
from keyekit.objectives.distillation.base import Head
from keyekit.objectives.distillation.matching import ForwardKL, JensenShannon, ReverseKL
from keyekit.objectives.policy.base import Rollouts
from keyekit.objectives.policy.cispo import CISPO
from keyekit.objectives.policy.grpo import DAPO, GRPO, DrGRPO
from keyekit.objectives.policy.gspo import GSPO
from keyekit.objectives.policy.reinforce import RLOO
from keyekit.objectives.preference.base import Preferences
from keyekit.objectives.preference.bco import BCO
from keyekit.objectives.preference.dpo import DPO
from keyekit.objectives.preference.ipo import IPO
from keyekit.objectives.preference.kto import KTO
from keyekit.objectives.preference.mpo import MPO
from keyekit.objectives.preference.simpo import SimPO
from keyekit.objectives.preference.supervised import SFT

PROMPT, LONGEST = 2, 5
CHOSEN, REJECTED = (4, 4, 4), (2, 5, 1)
"""TRL's SFT term is a mean over all tokens, ours over those of each response: equal lengths make them one."""


class Sides(SimpleNamespace):
    """What stands in for an accelerator on one process."""

    device = torch.device("cpu")
    num_processes = 1

    @staticmethod
    def gather(value: Tensor) -> Tensor:
        return value

    gather_for_metrics = gather

    @staticmethod
    def reduce(value: Tensor, reduction: str) -> Tensor:
        return value


def trainer(**settings) -> SimpleNamespace:
    metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    common = {"model": SimpleNamespace(training=True), "accelerator": Sides(), "aux_loss_enabled": False}
    return SimpleNamespace(_metrics=metrics, _total_train_tokens=0, _tp_size=1, **common | settings)


def padded(lengths: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A leaf, log-probabilities of policy (the leaf where masked) and reference ``[B, S]``, and the mask of responses."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), PROMPT + LONGEST - 1)
    leaf, reference = (-3 * torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.zeros(shape, dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, PROMPT - 1 : PROMPT - 1 + length] = 1
    return leaf.requires_grad_(), leaf * mask, reference * mask, mask


def given_model(log_probs: Tensor):
    zeros = torch.zeros_like(log_probs).detach()
    outputs = SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    return lambda **_: outputs


def batch_of(mask: Tensor) -> dict[str, Tensor]:
    whole = torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1)
    return {"completion_mask": whole, "input_ids": torch.zeros_like(whole), "attention_mask": torch.ones_like(whole)}


def same(ours: Tensor, theirs: Tensor, leaf: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    mine, other = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
    assert mine.any()


def preferences(policy: Tensor, reference: Tensor, mask: Tensor) -> Preferences:
    """Ours, read from a pack in which a chosen response is followed by its rejected one."""
    order = torch.arange(6).view(2, 3).T.flatten()
    segments = Segments.of([mask.shape[1]] * 6)
    packed = (policy[order].flatten(), mask[order].flatten().bool(), segments, 3, reference[order].flatten())
    return Preferences.of_pack(*packed)


@pytest.mark.parametrize(
    ("names", "weights", "objective"),
    [
        (["sigmoid"], [1.0], DPO(0.3)),
        (["ipo"], [1.0], IPO(0.3)),
        (["bco_pair"], [1.0], BCO(0.3)),
        (["sft"], [1.0], SFT()),
        (["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0], MPO(0.3)),
    ],
    ids=["dpo", "ipo", "bco", "sft", "mpo"],
)
def test_preferences(names, weights, objective) -> None:
    from trl.trainer.dpo_trainer import DPOTrainer

    leaf, policy, reference, mask = padded(CHOSEN + REJECTED, 0)
    settings = trainer(
        loss_types=names,
        loss_weights=weights,
        beta=0.3,
        label_smoothing=0.0,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        use_weighting=False,
    )
    references = dict(zip(("ref_chosen_logps", "ref_rejected_logps"), reference.sum(1).chunk(2), strict=True))
    theirs = DPOTrainer._compute_loss(settings, given_model(policy), batch_of(mask) | references, False)
    output = objective(preferences(policy, reference, mask))
    same(output.loss, theirs, leaf)
    if objective.needs_reference and not isinstance(
        objective, IPO
    ):  # TRL reports IPO's without the division by lengths
        logged = settings._metrics["train"]
        for ours, name in (("accuracy", "accuracies"), ("margin", "margins"), ("chosen_reward", "chosen")):
            assert output.meters[ours].item() == pytest.approx(logged[f"rewards/{name}"][0])


def test_smoothed_labels() -> None:
    """TRL has them in its losses without a reference; a reference of zero makes ours the same."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    leaf, policy, _, mask = padded(CHOSEN + REJECTED, 1)
    settings = trainer(loss_type="sigmoid", beta=0.3, alpha=0.0, label_smoothing=0.1)
    theirs = CPOTrainer.cpo_loss(settings, *policy.sum(1).chunk(2))[0].mean()
    ours = DPO(0.3, label_smoothing=0.1)(preferences(policy, torch.zeros_like(policy), mask)).loss
    same(ours, theirs, leaf)


def test_simpo() -> None:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    leaf, policy, reference, mask = padded(CHOSEN + REJECTED, 2)
    settings = trainer(loss_type="simpo", beta=2.0, alpha=0.0, simpo_gamma=0.7, label_smoothing=0.0)
    means = policy.sum(1) / mask.sum(1)
    theirs = CPOTrainer.cpo_loss(settings, *means.chunk(2))[0].mean()
    same(SimPO(2.0, 0.7)(preferences(policy, reference, mask)).loss, theirs, leaf)


def test_kto() -> None:
    from trl.trainer.kto_trainer import KTOTrainer

    leaf, policy, reference, mask = padded(CHOSEN + REJECTED, 3)
    mismatched = torch.rand(6, dtype=torch.float64)
    settings = trainer(
        loss_type="kto",
        beta=0.3,
        desirable_weight=1.3,
        undesirable_weight=0.8,
        calculate_KL=True,
        precompute_ref_logps=True,
    )
    settings._compute_kl_logps = lambda model, batch: mismatched
    batch = batch_of(mask) | {
        "label": torch.tensor([True] * 3 + [False] * 3),
        "ref_logps": reference.sum(1),
        "ref_KL_logps": torch.zeros(6, dtype=torch.float64),
    }
    theirs = KTOTrainer._compute_loss(settings, given_model(policy), batch, False)
    pairs = preferences(policy, reference, mask)
    pairs.mismatched = mismatched
    same(KTO(0.3, 1.3, 0.8, "mismatched")(pairs).loss, theirs, leaf)


LENGTHS = (4, 1, 5, 3)
ADVANTAGES = torch.tensor([1.2, -0.4, 0.3, -1.1], dtype=torch.float64)


def rollouts(policy: Tensor, old: Tensor, reference: Tensor, mask: Tensor) -> Rollouts:
    return Rollouts(
        log_probs=policy.flatten(),
        old_log_probs=old.flatten(),
        advantages=ADVANTAGES,
        mask=mask.flatten().bool(),
        segments=Segments.of([mask.shape[1]] * 4),
        reference_log_probs=reference.flatten(),
    )


@pytest.mark.parametrize(
    ("settings", "objective"),
    [
        ({"loss_type": "grpo"}, GRPO(0.2, 0.3, kl_weight=0.05)),
        ({"loss_type": "grpo", "beta": 0.0}, GRPO(0.2, 0.3)),
        ({"loss_type": "bnpo"}, GRPO(0.2, 0.3, normalisation="token", kl_weight=0.05)),
        ({"loss_type": "dapo", "beta": 0.0}, DAPO(0.2, 0.3)),
        ({"loss_type": "dr_grpo", "beta": 0.0}, DrGRPO(9, 0.2, 0.3)),
        ({"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.0}, GSPO(0.2, 0.3)),
        ({"loss_type": "cispo", "epsilon_high": 1.3, "beta": 0.0}, CISPO(1.0, 0.3)),
    ],
    ids=["grpo-kl", "grpo", "grpo-token", "dapo", "dr-grpo", "gspo", "cispo"],
)
def test_policies(settings, objective) -> None:
    from trl.trainer.grpo_trainer import GRPOTrainer

    leaf, policy, reference, mask = padded(LENGTHS, 4)
    old = (
        policy.detach()
        + 0.4 * torch.randn(policy.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ) * mask
    defaults = {"beta": 0.05, "epsilon_low": 0.2, "epsilon_high": 0.3, "importance_sampling_level": "token"}
    stand_in = trainer(
        **defaults | settings,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        max_completion_length=9,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, torch.zeros_like(policy), None),
    )
    batch = {
        "prompt_ids": torch.zeros(4, 1),
        "prompt_mask": torch.ones(4, 1),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": ADVANTAGES,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    theirs = GRPOTrainer._compute_loss(stand_in, None, batch)
    output = objective(rollouts(policy, old, reference, mask))
    same(output.loss, theirs, leaf)
    logged = stand_in._metrics["train"]
    if "cispo" not in settings["loss_type"] and "importance_sampling_level" not in settings:
        assert output.meters["clip_fraction"].item() == pytest.approx(logged["clip_ratio/region_mean"][0])
        assert output.meters["clip_fraction"].item() > 0
    if stand_in.beta:
        assert output.meters["kl"].item() == pytest.approx(logged["kl"][0])


def test_rloo() -> None:
    from trl.trainer.rloo_trainer import RLOOTrainer

    leaf, policy, reference, mask = padded(LENGTHS, 6)
    old = (
        policy.detach()
        + 0.1 * torch.randn(policy.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    ) * mask
    stand_in = trainer(
        epsilon_low=0.2,
        epsilon_high=0.3,
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, torch.zeros_like(policy), None),
    )
    batch = {
        "prompt_ids": torch.zeros(4, 1),
        "prompt_mask": torch.ones(4, 1),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": ADVANTAGES,
        "old_logps": old.sum(1),
    }
    theirs = RLOOTrainer._compute_loss(stand_in, None, batch)
    same(RLOO(0.2, 0.3)(rollouts(policy, old, reference, mask)).loss, theirs, leaf)


@pytest.mark.parametrize(
    ("beta", "objective"),
    [(0.0, ForwardKL), (1.0, ReverseKL), (0.3, lambda **temperatures: JensenShannon(0.3, **temperatures))],
    ids=["forward", "reverse", "jensen-shannon"],
)
def test_distillation(beta, objective) -> None:
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    generator = torch.Generator().manual_seed(8)
    student, teacher = (
        Head(
            hidden=torch.randn(6, width, generator=generator, dtype=torch.float64).requires_grad_(),
            weight=torch.randn(13, width, generator=generator, dtype=torch.float64),
        )
        for width in (4, 5)
    )
    labels = torch.tensor([1, -100, 3, 4, -100, 6])
    own, other = (model.hidden @ model.weight.T for model in (student, teacher))
    theirs = GKDTrainer.generalized_jsd_loss(own[None], other[None].detach(), labels[None], beta=beta, temperature=0.7)
    ours = objective(student_temperature=0.7, teacher_temperature=0.7)(student, teacher, labels, 4).loss
    same(ours, theirs, student.hidden)
