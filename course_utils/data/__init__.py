"""Rows in, conversations out: read, convert, clean, split. Knows no tokenizer and no model."""

from .cleaning import CleaningReport, clean, leaks, split
from .conversation import Conversation, Message, content_hash, normalize
from .hub import load_hub
from .problems import DataError, DataWarning, Problem, ReadReport
from .reading import convert, read, read_report, save

__all__ = [
    "CleaningReport",
    "Conversation",
    "DataError",
    "DataWarning",
    "Message",
    "Problem",
    "ReadReport",
    "clean",
    "content_hash",
    "convert",
    "leaks",
    "load_hub",
    "normalize",
    "read",
    "read_report",
    "save",
    "split",
]
