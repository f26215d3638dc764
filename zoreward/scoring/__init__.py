"""Scores: an objective's value for members of a model on rows.

    rows ─ data.render ─▶ Example ─ .requests ─▶ Request(prompt, target, position)
    requests ─ logprobs ─▶ groups behind one prompt ─▶ batches ─ reader.forward ─▶ logits ─▶ a log-probability each
    log-probabilities ─ answers ─▶ means (M, N, C) ─▶ columns of `choices` or `likelihood` ─▶ objective ─▶ Scored
    prompts ─ generation ─▶ completions ─ rewards ─▶ columns of `completions` ─▶ objective ─▶ Writing

A request is all that a model is asked about given answers, whatever its kind and the objective. `reader.padded` is the
only place that pads, `logprobs.in_halves` the only one that halves a batch that does not fit the memory.
"""

from zoreward.scoring.answers import (
    calibrated_logprobs,
    last_hidden_states,
    linear_probe,
    member_scores,
    probe_scores,
    scores_of,
    with_base,
)
from zoreward.scoring.checkpoints import adapter_base, check_model_name
from zoreward.scoring.completions import (
    completion_scores,
    distinct_2,
    mean_length,
    share_that_differs,
    statistics_of,
)
from zoreward.scoring.decoding import Generation, generation_of
from zoreward.scoring.devices import (
    check_device_map,
    check_loaded,
    check_one_gpu,
    checked_device,
    free_bytes,
    is_spread,
    peak_bytes,
)
from zoreward.scoring.drift import Base, base_of, kl_to_base, weights_moved
from zoreward.scoring.evaluation import evaluate, evaluated, length_limit
from zoreward.scoring.generation import Generator, HFGenerator, checked_generator
from zoreward.scoring.heads import Head, check_needs, config_of_model, head_of, kind_of
from zoreward.scoring.loading import (
    blank_model,
    load_model,
    load_tokenizer,
    load_with_head,
    model_kind,
    prepare_tokenizer,
)
from zoreward.scoring.logprobs import candidate_logprobs, checked_reader, request_logprobs
from zoreward.scoring.memory import Memory, check_memory, needed_memory, size
from zoreward.scoring.packing import Packer
from zoreward.scoring.reader import Reader, reader_of
from zoreward.scoring.rewards import score_writings
from zoreward.scoring.scorer import Scorer, checked_scorer, examples_of, scorer_of
from zoreward.scoring.stepping import Stepper

__all__ = [
    "Base",
    "Generation",
    "Generator",
    "HFGenerator",
    "Head",
    "Memory",
    "Packer",
    "Reader",
    "Scorer",
    "Stepper",
    "adapter_base",
    "base_of",
    "blank_model",
    "calibrated_logprobs",
    "candidate_logprobs",
    "check_device_map",
    "check_loaded",
    "check_memory",
    "check_model_name",
    "check_needs",
    "check_one_gpu",
    "checked_device",
    "checked_generator",
    "checked_reader",
    "checked_scorer",
    "completion_scores",
    "config_of_model",
    "distinct_2",
    "evaluate",
    "evaluated",
    "examples_of",
    "free_bytes",
    "generation_of",
    "head_of",
    "is_spread",
    "kind_of",
    "kl_to_base",
    "last_hidden_states",
    "length_limit",
    "linear_probe",
    "load_model",
    "load_tokenizer",
    "load_with_head",
    "mean_length",
    "member_scores",
    "model_kind",
    "needed_memory",
    "peak_bytes",
    "prepare_tokenizer",
    "probe_scores",
    "reader_of",
    "request_logprobs",
    "score_writings",
    "scorer_of",
    "scores_of",
    "share_that_differs",
    "size",
    "statistics_of",
    "weights_moved",
    "with_base",
]
