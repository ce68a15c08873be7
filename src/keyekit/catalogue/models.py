"""Built-in parts that models are made of, and the tasks that train them."""

from __future__ import annotations

from keyekit.catalogue.entries import VL2, VL8B, Part

__all__ = ["PARTS"]

PARTS: tuple[Part, ...] = (
    Part(
        "task",
        "LanguageModeling",
        "keyekit.tasks.language_modeling:LanguageModeling",
        f"{VL8B}, stages 1 to 3",
        "next-token training on packs; evaluation by generated answers",
    ),
    Part(
        "task",
        "ContrastivePretraining",
        "keyekit.tasks.contrastive:ContrastivePretraining",
        f"{VL8B}, stage 0",
        "image-text matching for the vision tower",
    ),
    Part(
        "task",
        "PreferenceOptimization",
        "keyekit.tasks.preference:PreferenceOptimization",
        f"{VL8B}, steps I.2 and II.3",
        "pairs of a chosen and a rejected answer, beside a frozen reference",
    ),
    Part(
        "task",
        "PolicyOptimization",
        "keyekit.tasks.policy:PolicyOptimization",
        f"{VL8B}, step II.2; {VL2}",
        "reinforcement learning on the policy's own rollouts",
    ),
    Part(
        "task",
        "OnPolicyDistillation",
        "keyekit.tasks.distillation:OnPolicyDistillation",
        VL2,
        "a student learns on its own answers from several teachers",
    ),
    Part(
        "task",
        "Distillation",
        "keyekit.tasks.offline_distillation:Distillation",
        "",
        "a student follows a teacher on given answers",
    ),
    Part(
        "network",
        "VisionLanguageModel",
        "keyekit.models.vision_language:VisionLanguageModel",
        f"{VL8B}; {VL2}",
        "vision encoder, projector and decoder",
    ),
    Part(
        "network",
        "ContrastiveModel",
        "keyekit.models.contrastive:ContrastiveModel",
        "SigLIP, arXiv:2303.15343",
        "vision tower beside a small text tower",
    ),
    Part(
        "vision",
        "KeyeViT",
        "keyekit.nn.vision.keye_vit:KeyeViT",
        f"{VL8B}; {VL2}",
        "native-resolution ViT with learned and rotary positions",
    ),
    Part(
        "vision",
        "TimmViT",
        "keyekit.nn.vision.timm_vit:TimmViT",
        "timm; NaFlexViT, arXiv:2307.06304",
        "any vision transformer of timm, by name",
    ),
    Part(
        "vision",
        "SiglipViT",
        "keyekit.nn.vision.siglip_vit:SiglipViT",
        "SigLIP 2, arXiv:2502.14786",
        "transformers' native-resolution SigLIP tower",
    ),
    Part(
        "text",
        "TextTower",
        "keyekit.nn.text.tower:TextTower",
        "SigLIP, arXiv:2303.15343",
        "SigLIP's text transformer, packed or padded",
    ),
    Part(
        "text",
        "SiglipText",
        "keyekit.nn.text.siglip_text:SiglipText",
        "SigLIP, arXiv:2303.15343",
        "transformers' SigLIP text tower, padded as it was trained",
    ),
    Part(
        "projector",
        "MergeProjector",
        "keyekit.nn.projector:MergeProjector",
        f"{VL8B}; {VL2}",
        "2x2 merge and two linear layers",
    ),
    Part(
        "attention", "Dense", "keyekit.nn.attention.dense:Dense", "Qwen3, arXiv:2505.09388", "causal attention to all"
    ),
    Part(
        "attention",
        "DSA",
        "keyekit.nn.attention.dsa:DSA",
        f"DeepSeek-V3.2, arXiv:2512.02556; {VL2}",
        "attention to the keys that a learned indexer selects",
    ),
    Part(
        "attention",
        "SlidingWindow",
        "keyekit.nn.attention.sliding_window:SlidingWindow",
        "Longformer, arXiv:2004.05150; StreamingLLM, arXiv:2309.17453",
        "attention to the last tokens and the first few",
    ),
    Part(
        "attention",
        "BlockTopK",
        "keyekit.nn.attention.block_topk:BlockTopK",
        "MoBA, arXiv:2502.13189",
        "attention to the blocks of keys whose mean fits best",
    ),
    Part(
        "attention",
        "NSA",
        "keyekit.nn.attention.nsa:NSA",
        "NSA, arXiv:2502.11089",
        "summaries of all blocks, the best blocks and the last tokens, mixed by gates",
    ),
    Part("feed_forward", "SwiGLU", "keyekit.nn.moe.dense:SwiGLU", "arXiv:2002.05202", "gated dense perceptron"),
    Part(
        "feed_forward",
        "MixtureOfExperts",
        "keyekit.nn.moe.mixture:MixtureOfExperts",
        f"Qwen3, arXiv:2505.09388; {VL2}",
        "few of many experts per token, none dropped",
    ),
    Part(
        "router",
        "SoftmaxTopK",
        "keyekit.nn.moe.routers:SoftmaxTopK",
        "Qwen3, arXiv:2505.09388",
        "softmax over all experts, the best few renormalised",
    ),
    Part(
        "router",
        "SigmoidBias",
        "keyekit.nn.moe.routers:SigmoidBias",
        "DeepSeek-V3, arXiv:2412.19437",
        "sigmoid scores, balanced by a bias instead of a loss",
    ),
    Part(
        "router",
        "GroupLimited",
        "keyekit.nn.moe.group_limited:GroupLimited",
        "DeepSeek-V2, arXiv:2405.04434; DeepSeek-V3, arXiv:2412.19437",
        "the best experts of the best few groups",
    ),
    Part(
        "router",
        "ExpertChoice",
        "keyekit.nn.moe.expert_choice:ExpertChoice",
        "Expert choice, arXiv:2202.09368",
        "experts take their best tokens; even, but not causal",
    ),
    Part(
        "router",
        "Hash",
        "keyekit.nn.moe.hashing:Hash",
        "Hash layers, arXiv:2106.04426",
        "the token id decides; nothing is learnt",
    ),
)
"""In the order in which ``keyekit list`` shows them."""
