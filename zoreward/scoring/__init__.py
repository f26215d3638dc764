"""Scores: an objective's value for members of a model on rows.

    rows ─ data.render ─▶ Example ─ requests_of ─▶ Request(prompt, target, position)
    (member, requests) ─ Engine.logprobs ─▶ a log-probability each ─ means_of ─▶ (M, N, C)
                       ─ Engine.generate ─▶ completions
    these ─ requests ─▶ columns ─▶ objective ─▶ Scored

A request is all that a model is asked about given answers, whatever its kind and the objective. An engine (`protocol`)
answers; `LocalEngine` is the one at hand. In it `forward.padded` is the only place that pads, `logprobs.in_halves` the
only one that halves a batch that does not fit the memory.
"""

from zoreward.scoring.baselines import calibrated_logprobs, last_hidden_states, linear_probe, probe_scores
from zoreward.scoring.certainty import (
    examples_of_evaluation,
    majority_score,
    row_scores,
    rows_of_evaluation,
    set_difference,
    standard_error,
)
from zoreward.scoring.checkpoints import (
    Head,
    adapter_base,
    check_model_name,
    check_needs,
    config_of_model,
    head_of,
    length_limit,
    model_kind,
)
from zoreward.scoring.decoding import HFGenerator, end_tokens_of
from zoreward.scoring.devices import (
    check_device_map,
    check_loaded,
    checked_device,
    free_bytes,
    one_of_its_own,
    peak_bytes,
)
from zoreward.scoring.divided import Division, check_division, divided_memory, load_divided
from zoreward.scoring.drift import Base, base_of, kl_to_base, weights_moved
from zoreward.scoring.evaluation import evaluate, evaluated
from zoreward.scoring.forward import Reader
from zoreward.scoring.loading import (
    blank_model,
    load_model,
    load_tokenizer,
    load_with_head,
    prepare_tokenizer,
)
from zoreward.scoring.local import LocalEngine, checked_engine, checked_generator, engine_of, passes_sized_for
from zoreward.scoring.memory import Memory, check_memory, needed_memory, size
from zoreward.scoring.packing import Packer
from zoreward.scoring.protocol import Engine, Generation, Work, generation_of
from zoreward.scoring.ranks import Ranks
from zoreward.scoring.readout import readout_influence
from zoreward.scoring.requests import (
    candidate_logprobs,
    completion_scores,
    distinct_2,
    have_same_answers,
    mean_length,
    member_scores,
    prompts_of,
    repeated_4,
    score_writings,
    scores_of,
    share_that_differs,
    statistics_of,
    token_counts,
    with_base,
)
from zoreward.scoring.reward_head import RewardHead, answer_states, fit_head, preference_states
from zoreward.scoring.rollouts import Rollouts
from zoreward.scoring.scorer import Scorer, checked_scorer, examples_of, scorer_of, try_objective
from zoreward.scoring.sharded import ShardedEngine, ShardedScorer, members_of_a_pass, sharded
from zoreward.scoring.stepping import Stepper
from zoreward.scoring.wins import WinRate, win_rate

__all__ = [
    "Base",
    "Division",
    "Engine",
    "Generation",
    "HFGenerator",
    "Head",
    "LocalEngine",
    "Memory",
    "Packer",
    "Ranks",
    "Reader",
    "RewardHead",
    "Rollouts",
    "Scorer",
    "ShardedEngine",
    "ShardedScorer",
    "Stepper",
    "WinRate",
    "Work",
    "adapter_base",
    "answer_states",
    "base_of",
    "blank_model",
    "calibrated_logprobs",
    "candidate_logprobs",
    "check_device_map",
    "check_division",
    "check_loaded",
    "check_memory",
    "check_model_name",
    "check_needs",
    "checked_device",
    "checked_engine",
    "checked_generator",
    "checked_scorer",
    "completion_scores",
    "config_of_model",
    "distinct_2",
    "divided_memory",
    "end_tokens_of",
    "engine_of",
    "evaluate",
    "evaluated",
    "examples_of",
    "examples_of_evaluation",
    "fit_head",
    "free_bytes",
    "generation_of",
    "have_same_answers",
    "head_of",
    "kl_to_base",
    "last_hidden_states",
    "length_limit",
    "linear_probe",
    "load_divided",
    "load_model",
    "load_tokenizer",
    "load_with_head",
    "majority_score",
    "mean_length",
    "member_scores",
    "members_of_a_pass",
    "model_kind",
    "needed_memory",
    "one_of_its_own",
    "passes_sized_for",
    "peak_bytes",
    "preference_states",
    "prepare_tokenizer",
    "probe_scores",
    "prompts_of",
    "readout_influence",
    "repeated_4",
    "row_scores",
    "rows_of_evaluation",
    "score_writings",
    "scorer_of",
    "scores_of",
    "set_difference",
    "sharded",
    "share_that_differs",
    "size",
    "standard_error",
    "statistics_of",
    "token_counts",
    "try_objective",
    "weights_moved",
    "win_rate",
    "with_base",
]
