"""A trained run to a conversation: answers as a stream of text, and the terminal around them."""

from .conversation import Conversation
from .stream import make_stream

__all__ = ["Conversation", "make_stream"]
