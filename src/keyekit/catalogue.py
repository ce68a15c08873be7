"""The built-in parts: a static table, so that listing them imports neither torch nor any part."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAMILIES", "PARTS", "Family", "Part"]


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of part that can be swapped for another of its kind.

    Args:
        name: Name in the catalogue.
        base: ``module:Class`` that every part of the family derives from.
        summary: One line.
    """

    name: str
    base: str
    summary: str


@dataclass(frozen=True, slots=True)
class Part:
    """One entry of the catalogue.

    Args:
        family: Name of its family.
        name: Short name, equal to the class name.
        target: ``module:Class``.
        paper: What it implements; empty if nothing published.
        summary: One line.
        origin: Distribution that brings it; ``keyekit`` for the built-in parts.
    """

    family: str
    name: str
    target: str
    paper: str = ""
    summary: str = ""
    origin: str = "keyekit"

    @property
    def module(self) -> str:
        """Module that defines the class."""
        return self.target.partition(":")[0]

    @property
    def class_path(self) -> str:
        """Import path as recipes spell it: ``module.Class``."""
        return self.target.replace(":", ".")


FAMILIES: tuple[Family, ...] = (
    Family("task", "keyekit.tasks.base:Task", "what is learnt: a network, an objective and logging"),
    Family("network", "torch.nn:Module", "whole models that a task trains"),
    Family("vision", "keyekit.nn.vision.base:VisionEncoder", "patches in, one feature per patch out"),
    Family("text", "keyekit.nn.text.base:TextEncoder", "captions in, one vector per caption out"),
    Family("projector", "keyekit.nn.projector:Projector", "vision features to decoder embeddings"),
    Family("attention", "keyekit.nn.attention.base:Attention", "how the tokens of a sequence look at each other"),
    Family("feed_forward", "keyekit.nn.moe.base:FeedForward", "what happens to each token by itself"),
    Family("router", "keyekit.nn.moe.base:Router", "which experts a token visits"),
    Family("objective", "torch.nn:Module", "what training minimises"),
    Family(
        "preference",
        "keyekit.objectives.preference.base:PreferenceObjective",
        "how good responses become likelier than bad ones",
    ),
    Family("policy", "keyekit.objectives.policy.base:PolicyObjective", "how sampled answers learn from their rewards"),
    Family(
        "distillation",
        "keyekit.objectives.distillation.base:DistillationObjective",
        "how a student follows a teacher, word by word",
    ),
    Family("reward", "keyekit.rewards.base:Reward", "what an answer is worth"),
    Family("chat_model", "keyekit.rewards.endpoints:ChatModel", "models that judge or report, behind a server"),
    Family("optimizer", "keyekit.optim.optimizers:Optimizer", "how gradients become steps"),
    Family("schedule", "keyekit.optim.schedules:Schedule", "learning rate over the steps"),
    Family("data", "lightning:LightningDataModule", "batches for training and evaluation"),
    Family("world", "keyekit.data.world.world:World", "generators of media files and conversations about them"),
    Family("source", "keyekit.data.sources.base:Source", "where samples come from, read at random"),
    Family(
        "conversation_format",
        "keyekit.data.conversations.base:ConversationFormat",
        "how an entry of a file becomes a conversation",
    ),
    Family("frame_sampler", "keyekit.data.sampling:FrameSampler", "which frames of a video are read"),
    Family("video_reader", "keyekit.data.video.base:VideoReader", "what decodes videos"),
    Family("video_layout", "keyekit.data.template:VideoLayout", "how frames and times appear among the tokens"),
    Family("strategy", "lightning.pytorch.strategies:Strategy", "how a run is spread over devices"),
    Family("callback", "lightning:Callback", "reports and side jobs of a run"),
    Family(
        "benchmark", "keyekit.evaluation.benchmark:Benchmark", "questions in files of others and how answers are scored"
    ),
)
"""Every family, in the order in which ``keyekit list`` shows them."""

_VL8B = "Keye-VL 8B"
_VL2 = "Keye-VL-2.0"

PARTS: tuple[Part, ...] = (
    Part(
        "task",
        "LanguageModeling",
        "keyekit.tasks.language_modeling:LanguageModeling",
        f"{_VL8B}, stages 1 to 3",
        "next-token training on packs; evaluation by generated answers",
    ),
    Part(
        "task",
        "ContrastivePretraining",
        "keyekit.tasks.contrastive:ContrastivePretraining",
        f"{_VL8B}, stage 0",
        "image-text matching for the vision tower",
    ),
    Part(
        "task",
        "PreferenceOptimization",
        "keyekit.tasks.preference:PreferenceOptimization",
        f"{_VL8B}, steps I.2 and II.3",
        "pairs of a chosen and a rejected answer, beside a frozen reference",
    ),
    Part(
        "task",
        "PolicyOptimization",
        "keyekit.tasks.policy:PolicyOptimization",
        f"{_VL8B}, step II.2; {_VL2}",
        "reinforcement learning on the policy's own rollouts",
    ),
    Part(
        "network",
        "VisionLanguageModel",
        "keyekit.models.vision_language:VisionLanguageModel",
        f"{_VL8B}; {_VL2}",
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
        f"{_VL8B}; {_VL2}",
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
        f"{_VL8B}; {_VL2}",
        "2x2 merge and two linear layers",
    ),
    Part(
        "attention", "Dense", "keyekit.nn.attention.dense:Dense", "Qwen3, arXiv:2505.09388", "causal attention to all"
    ),
    Part(
        "attention",
        "DSA",
        "keyekit.nn.attention.dsa:DSA",
        f"DeepSeek-V3.2, arXiv:2512.02556; {_VL2}",
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
        f"Qwen3, arXiv:2505.09388; {_VL2}",
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
    Part(
        "objective",
        "CrossEntropy",
        "keyekit.objectives.cross_entropy:CrossEntropy",
        "",
        "next-token cross-entropy in chunks",
    ),
    Part(
        "objective",
        "SigLIP",
        "keyekit.objectives.siglip:SigLIP",
        "SigLIP, arXiv:2303.15343",
        "sigmoid loss over image-caption pairs",
    ),
    Part(
        "objective",
        "HiddenStateMatching",
        "keyekit.objectives.distillation.hidden_states:HiddenStateMatching",
        "TinyBERT, arXiv:1909.10351; DistilBERT, arXiv:1910.01108",
        "hidden states of a student follow those of a teacher",
    ),
    Part(
        "objective",
        "AttentionMatching",
        "keyekit.objectives.distillation.attention_maps:AttentionMatching",
        "MiniLM, arXiv:2002.10957",
        "attention of a student follows that of a teacher",
    ),
    Part(
        "preference",
        "DPO",
        "keyekit.objectives.preference.dpo:DPO",
        "arXiv:2305.18290",
        "the margin of a pair grows, held to a reference",
    ),
    Part(
        "preference",
        "IPO",
        "keyekit.objectives.preference.ipo:IPO",
        "arXiv:2310.12036",
        "the margin of a pair grows to a bound",
    ),
    Part(
        "preference",
        "SimPO",
        "keyekit.objectives.preference.simpo:SimPO",
        "arXiv:2405.14734",
        "mean log-probabilities with a margin, without a reference",
    ),
    Part(
        "preference",
        "BCO",
        "keyekit.objectives.preference.bco:BCO",
        "arXiv:2404.04656",
        "each response against a running threshold",
    ),
    Part(
        "preference",
        "KTO",
        "keyekit.objectives.preference.kto:KTO",
        "arXiv:2402.01306",
        "gains and losses of single responses, in pairs or not",
    ),
    Part(
        "preference",
        "SFT",
        "keyekit.objectives.preference.supervised:SFT",
        "",
        "chosen responses alone, the mean over their tokens",
    ),
    Part(
        "preference",
        "MPO",
        "keyekit.objectives.preference.mpo:MPO",
        f"{_VL8B}; arXiv:2411.10442",
        "DPO, BCO and SFT in one sum",
    ),
    Part(
        "policy",
        "GRPO",
        "keyekit.objectives.policy.grpo:GRPO",
        f"{_VL8B}; arXiv:2402.03300",
        "clipped ratios of tokens, advantages within a group",
    ),
    Part(
        "policy",
        "GSPO",
        "keyekit.objectives.policy.gspo:GSPO",
        f"Keye-VL-1.5; {_VL2}; arXiv:2507.18071",
        "one clipped ratio for a whole answer",
    ),
    Part(
        "policy",
        "DAPO",
        "keyekit.objectives.policy.grpo:DAPO",
        "arXiv:2503.14476",
        "GRPO with a higher upper bound, the mean over all tokens",
    ),
    Part(
        "policy",
        "DrGRPO",
        "keyekit.objectives.policy.grpo:DrGRPO",
        "arXiv:2503.20783",
        "GRPO without the biases of length and difficulty",
    ),
    Part(
        "policy",
        "CISPO",
        "keyekit.objectives.policy.cispo:CISPO",
        "MiniMax-M1, arXiv:2506.13585",
        "clipped weights that cut no gradient off",
    ),
    Part(
        "policy",
        "RLOO",
        "keyekit.objectives.policy.reinforce:RLOO",
        "arXiv:2402.14740",
        "whole answers as actions, the others as baseline",
    ),
    Part(
        "policy",
        "ReinforcePlusPlus",
        "keyekit.objectives.policy.reinforce:ReinforcePlusPlus",
        "arXiv:2501.03262",
        "advantages normalised over the whole batch",
    ),
    Part(
        "distillation",
        "ForwardKL",
        "keyekit.objectives.distillation.matching:ForwardKL",
        "arXiv:1503.02531",
        "the student covers what the teacher might say",
    ),
    Part(
        "distillation",
        "ReverseKL",
        "keyekit.objectives.distillation.matching:ReverseKL",
        "arXiv:2306.08543",
        "the student says nothing that the teacher would not",
    ),
    Part(
        "distillation",
        "JensenShannon",
        "keyekit.objectives.distillation.matching:JensenShannon",
        "arXiv:2306.13649",
        "between forward and reverse, bounded",
    ),
    Part(
        "distillation",
        "MOPD",
        "keyekit.objectives.distillation.mopd:MOPD",
        _VL2,
        "own answers, rewarded word by word by the teacher of their kind",
    ),
    Part("reward", "WeightedSum", "keyekit.rewards.compose:WeightedSum", "", "several rewards, each with its weight"),
    Part("reward", "Gate", "keyekit.rewards.compose:Gate", "", "one reward times another"),
    Part(
        "reward", "Fallback", "keyekit.rewards.compose:Fallback", _VL2, "a second opinion where the first gives nothing"
    ),
    Part(
        "reward",
        "ResponseFormat",
        "keyekit.rewards.formats:ResponseFormat",
        f"{_VL8B}; {_VL2}",
        "the shape of the response mode: thinking, not thinking, or judging which",
    ),
    Part("reward", "ExactMatch", "keyekit.rewards.matching:ExactMatch", "", "the expected text"),
    Part("reward", "ChoiceMatch", "keyekit.rewards.matching:ChoiceMatch", "", "the letter of the right option"),
    Part(
        "reward", "WordMatch", "keyekit.rewards.matching:WordMatch", _VL2, "the right one of a few words: before, after"
    ),
    Part(
        "reward",
        "SymbolicMath",
        "keyekit.rewards.mathematics:SymbolicMath",
        _VL2,
        "equal in value, whatever the form",
    ),
    Part("reward", "Counting", "keyekit.rewards.counting:Counting", _VL2, "exactly the right integer"),
    Part(
        "reward",
        "Transcription",
        "keyekit.rewards.transcription:Transcription",
        _VL2,
        "text that was read: a match, or by edit distance",
    ),
    Part(
        "reward",
        "BoxMatching",
        "keyekit.rewards.boxes:BoxMatching",
        _VL2,
        "overlap of matched boxes, duplicates penalised",
    ),
    Part(
        "reward",
        "ChangedRegions",
        "keyekit.rewards.boxes:ChangedRegions",
        _VL2,
        "F-score and overlap of regions that changed",
    ),
    Part("reward", "TemporalOverlap", "keyekit.rewards.spans:TemporalOverlap", _VL2, "overlap of spans of time"),
    Part("reward", "OrderMatch", "keyekit.rewards.order:OrderMatch", f"{_VL8B}; {_VL2}", "things in their right order"),
    Part(
        "reward",
        "RepetitionPenalty",
        "keyekit.rewards.penalties:RepetitionPenalty",
        f"{_VL8B}; Thyme, arXiv:2508.11630",
        "minus for a text that repeats itself",
    ),
    Part(
        "reward",
        "LengthPenalty",
        "keyekit.rewards.penalties:LengthPenalty",
        "DAPO, arXiv:2503.14476",
        "minus for a text that is too long",
    ),
    Part(
        "reward",
        "PassedTests",
        "keyekit.rewards.programs:PassedTests",
        _VL2,
        "the share of tests that code passes in the sandbox",
    ),
    Part(
        "reward", "Judged", "keyekit.rewards.judging:Judged", f"{_VL8B}; {_VL2}", "the score that another model gives"
    ),
    Part(
        "reward",
        "ContextJudged",
        "keyekit.rewards.context_rl:ContextJudged",
        "ContextRL, arXiv:2602.22623",
        "a judge that knows the whole solution; reports for second attempts",
    ),
    Part(
        "reward",
        "SelfCorrection",
        "keyekit.rewards.correction:SelfCorrection",
        _VL8B,
        "a bonus for what a second answer gains over the first",
    ),
    Part(
        "chat_model",
        "ChatEndpoint",
        "keyekit.rewards.endpoints:ChatEndpoint",
        "",
        "any server that speaks OpenAI's chat protocol",
    ),
    Part("optimizer", "AdamW", "keyekit.optim.optimizers:AdamW", "arXiv:1711.05101", "Adam with decoupled decay"),
    Part(
        "optimizer",
        "Muon",
        "keyekit.optim.optimizers:Muon",
        "arXiv:2502.16982",
        "orthogonal steps for hidden matrices, AdamW for the rest",
    ),
    Part("schedule", "WarmupCosine", "keyekit.optim.schedules:WarmupCosine", "", "linear warm-up, half a cosine"),
    Part(
        "schedule",
        "WarmupStableDecay",
        "keyekit.optim.schedules:WarmupStableDecay",
        "MiniCPM, arXiv:2404.06395",
        "linear warm-up, plateau, linear decay",
    ),
    Part(
        "data",
        "ConversationDataModule",
        "keyekit.data.module:ConversationDataModule",
        "",
        "packs of conversations about images and videos",
    ),
    Part(
        "data",
        "ContrastiveDataModule",
        "keyekit.data.contrastive:ContrastiveDataModule",
        "",
        "batches of images and captions",
    ),
    Part(
        "world", "World", "keyekit.data.world.world:World", "", "coloured moving shapes as real video and image files"
    ),
    Part("source", "JsonLines", "keyekit.data.sources.jsonl:JsonLines", "", "JSON, one conversation a line"),
    Part(
        "source", "JsonArray", "keyekit.data.sources.json_array:JsonArray", "", "one JSON array of conversations a file"
    ),
    Part("source", "Parquet", "keyekit.data.sources.parquet:Parquet", "", "Parquet, one conversation a row"),
    Part(
        "source", "WebDataset", "keyekit.data.sources.webdataset:WebDataset", "", "tar shards in the WebDataset layout"
    ),
    Part(
        "conversation_format",
        "Messages",
        "keyekit.data.conversations.messages:Messages",
        "",
        "the messages convention of Qwen-VL and keye-vl-utils",
    ),
    Part(
        "conversation_format",
        "Llava",
        "keyekit.data.conversations.llava:Llava",
        "LLaVA, arXiv:2304.08485",
        "turns of human and gpt with image markers",
    ),
    Part(
        "conversation_format",
        "ShareGPT",
        "keyekit.data.conversations.sharegpt:ShareGPT",
        "",
        "turns with lists of images and videos beside them",
    ),
    Part(
        "conversation_format",
        "Interleaved",
        "keyekit.data.conversations.interleaved:Interleaved",
        _VL8B,
        "documents of texts, pictures and clips",
    ),
    Part(
        "conversation_format",
        "Ordered",
        "keyekit.data.conversations.ordered:Ordered",
        "Keye-VL-1.5",
        "caption, question and answer in a chosen order",
    ),
    Part(
        "conversation_format",
        "Grounding",
        "keyekit.data.conversations.grounding:Grounding",
        _VL8B,
        "points, boxes, polygons, events and clue intervals as answers",
    ),
    Part(
        "frame_sampler",
        "UniformFps",
        "keyekit.data.sampling:UniformFps",
        _VL8B,
        "evenly spaced frames at a given rate",
    ),
    Part(
        "frame_sampler",
        "SlowFast",
        "keyekit.data.slow_fast:SlowFast",
        "Keye-VL-1.5",
        "new frames in full, frames that repeat them small",
    ),
    Part(
        "frame_sampler",
        "BudgetSearch",
        "keyekit.data.budget_search:BudgetSearch",
        _VL2,
        "evenly spaced frames, as large as a budget of tokens allows",
    ),
    Part("video_reader", "PyAV", "keyekit.data.video.pyav:PyAV", "", "FFmpeg through PyAV, always there"),
    Part(
        "video_reader",
        "TorchCodec",
        "keyekit.data.video.torchcodec:TorchCodec",
        "",
        "torchcodec, where it is installed",
    ),
    Part(
        "video_layout",
        "TimestampedFrames",
        "keyekit.data.template:TimestampedFrames",
        f"Keye-VL-1.5; {_VL2}",
        "each frame after its time in seconds",
    ),
    Part(
        "video_layout",
        "TimeAxis",
        "keyekit.data.template:TimeAxis",
        "Keye-VL-Preview",
        "all frames in one block, time on a rotary axis",
    ),
    Part(
        "strategy",
        "Sharded",
        "keyekit.distributed.strategy:Sharded",
        "FSDP2, arXiv:2304.11277; ZeRO, arXiv:1910.02054",
        "parameters sharded by parts; experts, sequences and vision work divided among ranks",
    ),
    Part(
        "callback", "TrainingProgress", "keyekit.callbacks.progress:TrainingProgress", "", "loss, tokens/s, time left"
    ),
    Part("callback", "Throughput", "keyekit.callbacks.throughput:Throughput", "", "tokens/s, data wait"),
    Part(
        "callback", "AnswerReport", "keyekit.callbacks.answers:AnswerReport", "", "score per task, against blind runs"
    ),
    Part(
        "callback", "SamplePreviews", "keyekit.callbacks.previews:SamplePreviews", "", "frames and answers as pictures"
    ),
    Part(
        "callback",
        "Export",
        "keyekit.callbacks.export:Export",
        "",
        "weights, tokenizer and settings for the next stage",
    ),
    Part(
        "callback",
        "SourceLoss",
        "keyekit.callbacks.source_loss:SourceLoss",
        "",
        "loss of each source of a mixture",
    ),
    Part(
        "callback",
        "GradientNorms",
        "keyekit.callbacks.gradient_norms:GradientNorms",
        "",
        "gradient norm of each part",
    ),
    Part("callback", "ExpertLoad", "keyekit.callbacks.experts:ExpertLoad", "", "heat-map and entropy of expert loads"),
    Part("callback", "MemoryUse", "keyekit.callbacks.memory:MemoryUse", "", "memory of process and device"),
    Part("callback", "DecodingSpeed", "keyekit.callbacks.decoding:DecodingSpeed", "", "time of generated tokens"),
    Part(
        "callback",
        "NonFiniteLoss",
        "keyekit.callbacks.alarms.non_finite:NonFiniteLoss",
        "",
        "alarm: a loss that is no number, with the samples that make it",
    ),
    Part(
        "callback",
        "ShiftedLabels",
        "keyekit.callbacks.alarms.shifted_labels:ShiftedLabels",
        "",
        "alarm: labels that are not the next token",
    ),
    Part(
        "callback",
        "FlatPositions",
        "keyekit.callbacks.alarms.flat_positions:FlatPositions",
        "",
        "alarm: positions that do not tell where in a picture",
    ),
    Part(
        "callback",
        "SilentVision",
        "keyekit.callbacks.alarms.silent_vision:SilentVision",
        "",
        "alarm: pictures, but no gradient in the vision tower",
    ),
    Part(
        "callback",
        "SilentRouter",
        "keyekit.callbacks.alarms.silent_router:SilentRouter",
        "",
        "alarm: a router without a gradient through its weights",
    ),
    Part(
        "callback",
        "IdleVision",
        "keyekit.callbacks.alarms.idle_vision:IdleVision",
        "",
        "alarm: a rank without pictures for many packs",
    ),
    Part(
        "callback",
        "RepeatedSamples",
        "keyekit.callbacks.alarms.repeated_samples:RepeatedSamples",
        "",
        "alarm: a resumed run that begins its data again",
    ),
    Part("callback", "RunSummary", "keyekit.callbacks.summary:RunSummary", "", "summary.json of the run"),
    Part(
        "callback",
        "RunCheckpoints",
        "keyekit.callbacks.checkpoints:RunCheckpoints",
        "",
        "checkpoints that are whole, to go on from to the bit",
    ),
    Part(
        "callback",
        "StopOnSignal",
        "keyekit.callbacks.signals:StopOnSignal",
        "",
        "saves and stops after the step when the process is told to end",
    ),
    Part(
        "callback",
        "HeldOutLoss",
        "keyekit.callbacks.heldout_loss:HeldOutLoss",
        "",
        "loss of held-out answers before and after a fit, and with blank pictures",
    ),
    Part(
        "callback",
        "SelectionRecall",
        "keyekit.callbacks.selection:SelectionRecall",
        "",
        "how much attention the indexers keep, against random and last keys",
    ),
    Part(
        "benchmark",
        "KCMMBench",
        "keyekit.evaluation.kc_mmbench:KCMMBench",
        f"{_VL8B}, arXiv:2507.01949",
        "six tasks about short videos and shopping, asked with still images",
    ),
    Part(
        "benchmark",
        "TimeLens",
        "keyekit.evaluation.time_lens:TimeLens",
        "TimeLens, arXiv:2512.14698",
        "when something happens, in seconds",
    ),
    Part(
        "benchmark",
        "VideoMMEv2",
        "keyekit.evaluation.video_mme_v2:VideoMMEv2",
        "Video-MME-v2, arXiv:2604.05015",
        "four questions of eight options about each video, scored together",
    ),
    Part(
        "benchmark",
        "LongVideoBench",
        "keyekit.evaluation.long_video_bench:LongVideoBench",
        "LongVideoBench, arXiv:2407.15754",
        "questions about videos of seconds to an hour, by length and category",
    ),
)
"""The built-in parts."""
