"""Scores: an objective's value for members of a model on rows."""

from zoreward.scoring.answers import answer_scores, member_scores
from zoreward.scoring.completions import completion_scores
from zoreward.scoring.decoding import Generation
from zoreward.scoring.diversity import distinct_2, mean_length, share_that_differs
from zoreward.scoring.evaluation import evaluate, length_limit
from zoreward.scoring.generation import Generator, HFGenerator, checked_generator
from zoreward.scoring.loading import check_model_name, checked_device, load_model, load_tokenizer, prepare_tokenizer
from zoreward.scoring.logprobs import candidate_logprobs, checked_reader
from zoreward.scoring.reader import Reader, reader_of
from zoreward.scoring.rewards import score_writings
from zoreward.scoring.scorer import Scorer, checked_scorer, examples_of, limited_scorer, scorer_of, statistics_of

__all__ = [
    "Generation",
    "Generator",
    "HFGenerator",
    "Reader",
    "Scorer",
    "answer_scores",
    "candidate_logprobs",
    "check_model_name",
    "checked_device",
    "checked_generator",
    "checked_reader",
    "checked_scorer",
    "completion_scores",
    "distinct_2",
    "evaluate",
    "examples_of",
    "length_limit",
    "limited_scorer",
    "load_model",
    "load_tokenizer",
    "mean_length",
    "member_scores",
    "prepare_tokenizer",
    "reader_of",
    "score_writings",
    "scorer_of",
    "share_that_differs",
    "statistics_of",
]
