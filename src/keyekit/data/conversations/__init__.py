"""Conversation formats: how an entry of a file becomes a sample."""

from keyekit.data.conversations.base import ConversationFormat
from keyekit.data.conversations.grounding import Grounding
from keyekit.data.conversations.interleaved import Interleaved
from keyekit.data.conversations.llava import Llava
from keyekit.data.conversations.messages import Messages
from keyekit.data.conversations.ordered import Ordered
from keyekit.data.conversations.sharegpt import ShareGPT

__all__ = ["ConversationFormat", "Grounding", "Interleaved", "Llava", "Messages", "Ordered", "ShareGPT"]
