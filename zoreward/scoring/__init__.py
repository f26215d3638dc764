"""Scores: an objective's value for members of a model on rows."""

from zoreward.scoring.evaluation import evaluate, length_limit, member_parts, member_scores
from zoreward.scoring.loading import check_model_name, checked_device, load_model, load_tokenizer, prepare_tokenizer
from zoreward.scoring.logprobs import candidate_logprobs, checked_reader
from zoreward.scoring.reader import Reader, reader_of

__all__ = [
    "Reader",
    "candidate_logprobs",
    "check_model_name",
    "checked_device",
    "checked_reader",
    "evaluate",
    "length_limit",
    "load_model",
    "load_tokenizer",
    "member_parts",
    "member_scores",
    "prepare_tokenizer",
    "reader_of",
]
