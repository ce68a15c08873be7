"""Built-in parts of the data path."""

from __future__ import annotations

from keyekit.catalogue.entries import VL2, VL8B, Part

__all__ = ["PARTS"]

PARTS: tuple[Part, ...] = (
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
        VL8B,
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
        VL8B,
        "points, boxes, polygons, events and clue intervals as answers",
    ),
    Part(
        "frame_sampler",
        "UniformFps",
        "keyekit.data.sampling:UniformFps",
        VL8B,
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
        VL2,
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
        f"Keye-VL-1.5; {VL2}",
        "each frame after its time in seconds",
    ),
    Part(
        "video_layout",
        "TimeAxis",
        "keyekit.data.template:TimeAxis",
        "Keye-VL-Preview",
        "all frames in one block, time on a rotary axis",
    ),
)
"""In the order in which ``keyekit list`` shows them."""
