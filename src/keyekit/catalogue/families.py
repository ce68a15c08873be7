"""The families of parts."""

from __future__ import annotations

from keyekit.catalogue.entries import Family

__all__ = ["FAMILIES"]

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
    Family("engine", "keyekit.rollout.engine:RolloutEngine", "what draws responses with the weights under training"),
    Family("environment", "keyekit.rollout.environments:Environment", "what replies between the turns of a policy"),
    Family("teacher", "keyekit.rollout.teachers.base:Teacher", "who says what a student should have said"),
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
