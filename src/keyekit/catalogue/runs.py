"""Built-in parts of a run: strategies, callbacks and benchmarks."""

from __future__ import annotations

from keyekit.catalogue.entries import VL8B, Part

__all__ = ["PARTS"]

PARTS: tuple[Part, ...] = (
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
        "callback",
        "ResponseReport",
        "keyekit.callbacks.responses:ResponseReport",
        VL8B,
        "shares of well-formed and of thinking answers",
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
        f"{VL8B}, arXiv:2507.01949",
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
"""In the order in which ``keyekit list`` shows them."""
