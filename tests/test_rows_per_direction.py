"""Contract under test: `rows_per_direction` divides the rows of a step among its directions.

- A step is θ + lr · mean_k g_k z_k, g_k the slope on the rows of direction k alone: by a formula in float64 that knows
  nothing of members and passes. What has no rows or no score has no part in the mean.
- Members with rows of their own share passes, and answer as each does alone; an objective of rows is called twice.
- A run goes on after a kill and is replayed, also over short batches; a step costs two forward passes.
- What it does not go with is refused before a model is read.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

import reference
from conftest import FAMILIES, random_model
from terms import term_of
from test_replay import bits
from test_resume import ROWS, killed, lines, same, trainer, weights
from test_scoring import LONG, SHORT, SINGLE, slow_logprobs
from zoreward import replay
from zoreward.members import members_at
from zoreward.methods import SPSA, SPSAState, make_method
from zoreward.records import InputError, to_float32
from zoreward.registry import get_objective
from zoreward.scoring import Generation, Scorer, engine_of
from zoreward.scoring.requests import requests_of
from zoreward.trainer import ZOConfig, ZOTrainer

EPS, LR, SEED, OWN = 1e-2, 0.02, 3, 2
DIVIDED = {
    "rows_per_direction": OWN, "num_directions": None, "per_device_train_batch_size": 6, "max_steps": 3, "eps": EPS,
    "learning_rate": LR, "weight_decay": 0.0, "eval_strategy": "no", "seed": SEED, "rows": ROWS[::2],
}  # fmt: skip


class Rows(TrainerCallback):
    """Keeps the rows of each step."""

    def __init__(self) -> None:
        self.seen: list = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(self.trainer.last_rows)


def slow_run(model, batches, normalize):
    """The weights after some steps, in float64: copies of the model, each candidate by itself, sums as they stand."""
    names = reference.streams(dict(model.named_parameters()))
    squares = total = 0.0

    def score(rows) -> float:
        table = slow_logprobs(model, rows)
        right = [table[n, one.reference] - np.logaddexp.reduce(table[n]) for n, one in enumerate(rows)]
        return sum(right) / len(rows)

    for step, rows in enumerate(batches):
        count = max(1, len(rows) // OWN)
        cut = [len(rows) * k // count for k in range(count + 1)]
        slopes, directions = [], []
        for k in range(count):
            seed = reference.derive_seed(SEED, step, k)
            z = {}
            for name, weight in model.named_parameters():
                if weight.ndim == 2:
                    a, b = (
                        reference.entries(seed, names[name], range(size), purpose, "normal").astype(np.float64)
                        for size, purpose in zip(weight.shape, (reference.FACTOR_A, reference.FACTOR_B), strict=True)
                    )
                    z[name] = torch.from_numpy(np.outer(a, b))
            sides = []
            for far in (to_float32(EPS), -2 * to_float32(EPS), to_float32(EPS)):
                for name, change in z.items():
                    model.get_parameter(name).data += far * change
                sides.append(score(rows[cut[k] : cut[k + 1]]))
            slopes.append((sides[0] - sides[1]) / (2 * to_float32(EPS)))
            directions.append(z)
        if normalize == "running":
            squares, total = 0.9 * squares + sum(g * g for g in slopes) / count, 0.9 * total + 1
            slopes = [g / math.sqrt(squares / total) for g in slopes]
        for g, z in zip(slopes, directions, strict=True):
            for name, change in z.items():
                model.get_parameter(name).data += LR * g / count * change
    return dict(model.named_parameters())


@pytest.mark.parametrize("normalize", ["none", "running"])
def test_steps_are_those_of_the_slow_formula(normalize, tmp_path, tokenizer):
    rows = Rows()
    run = rows.trainer = trainer(tmp_path / "run", tokenizer, callbacks=[rows], normalize=normalize, **DIVIDED)
    base = {name: weight.double().clone() for name, weight in run.model.named_parameters()}
    run.train()
    assert [len(one) for one in rows.seen] == [6, 6, 4]  # 16 rows: two directions in the last step, three before
    assert [sum(map(math.isnan, line["scores"])) for line in steps_in(tmp_path / "run")] == [0, 0, 2]
    expected = slow_run(random_model("llama").double().requires_grad_(False), rows.seen, normalize)
    for name, weight in run.model.named_parameters():
        moved, right = weight.double() - base[name], expected[name] - base[name]
        # Float32 scores are good to 4e-5 (see test_scoring), slopes over 2ε = 0.02 to 2e-3 of some 0.1 to 1.
        assert float((moved - right).norm()) <= 0.02 * float(right.norm()), name
    assert all(
        torch.equal(weight.double(), base[name]) for name, weight in run.model.named_parameters() if weight.ndim < 2
    )


def steps_in(folder):
    found = [line for line in lines(folder) if line["kind"] == "step"]
    return [{**line, "scores": [math.nan if one is None else one for one in line["scores"]]} for line in found]


def test_a_direction_without_a_score_has_no_part_in_the_mean():
    spsa = SPSA(eps=0.5, lr=0.3, num_directions=3, rank=1, rows_per_direction=2)
    query, nan = spsa.ask(spsa.init()), math.nan
    update, state = spsa.tell(spsa.init(), query, [0.5, 0.25, nan, 1.0, 2.0, 1.0])
    seeds = [reference.derive_seed(0, 0, k) for k in (0, 2)]
    assert [term.seed for term in update.terms] == seeds
    assert [term.coefficient for term in update.terms] == pytest.approx([0.3 * 0.25 / 2, 0.3 * 1.0 / 2], rel=1e-6)
    assert state == SPSAState(1)
    update, state = spsa.tell(spsa.init(), query, [nan, 0.25, nan, 1.0, 2.0, nan])
    assert update.terms == () and state == SPSAState(1, silent=1, unscored=1)
    signed = replace(spsa, normalize="sign")
    update, _ = signed.tell(signed.init(), query, [0.25, 0.5, nan, 1.0, 1.0, 1.0])
    assert [term.coefficient for term in update.terms] == pytest.approx([-0.3 / 2], rel=1e-6)
    running = replace(spsa, normalize="running")
    update, state = running.tell(running.init(), query, [3.0, 0.0, nan, nan, 4.0, 0.0])  # slopes 3 and 4: rms √12.5
    assert [term.coefficient for term in update.terms] == pytest.approx(
        [0.3 * slope / math.sqrt(12.5) / 2 for slope in (3, 4)], rel=1e-6
    )
    assert state.squares == pytest.approx((12.5, 1.0))


@pytest.mark.parametrize(
    ("rows", "own", "expected"),
    [(7, 2, [2, 2, 3]), (8, 2, [2, 2, 2, 2]), (3, 2, [3]), (1, 2, [1]), (9, 1, [2, 2, 2, 3])],
)
def test_all_rows_are_divided_evenly_among_as_many_pairs_as_there_are_rows_for(rows, own, expected):
    query = SPSA(num_directions=4, rank=1, rows_per_direction=own).ask(SPSAState())
    shares = query.divided(rows)
    assert [len(range(rows)[share]) for share in shares] == expected
    assert [row for share in shares for row in range(rows)[share]] == list(range(rows))
    assert query.reads == 2 and {len(part) for part in query.parts} == {2}


def members_of(count: int):
    return tuple((term_of(seed, sign * 0.05, 1),) for seed in range(1, count + 1) for sign in (1, -1))


@pytest.mark.parametrize("examples", [SHORT, LONG, SINGLE], ids=["one-token", "many-tokens", "one-candidate"])
@pytest.mark.parametrize("tokens", [16, 4096])
@pytest.mark.parametrize("family", FAMILIES)
def test_members_with_rows_of_their_own_answer_as_each_does_alone(family, tokens, examples):
    model = random_model(family)
    engine = engine_of(model, 0, tokens=tokens)
    same_prompt = replace(examples[0], candidate_tokens=((13,), (14, 15)))  # its requests join the first row's
    shares = [[one] for one in examples] + [[examples[0], examples[0], examples[2]], [examples[1], examples[2]]]
    shares += [[examples[0], examples[1], same_prompt], [examples[1], examples[0]]]
    members = members_of(len(shares))
    asked = [[request for own in requests_of(share) for request in own] for share in shares]
    found = engine.logprobs([(member, asked[m // 2]) for m, member in enumerate(members)])
    for m, (member, got) in enumerate(zip(members, found, strict=True)):
        with members_at(model, (member,)):
            expected = slow_logprobs(model, shares[m // 2])
        counts = [len(request.target) for request in asked[m // 2]]
        np.testing.assert_allclose(got / counts, expected[np.isfinite(expected)], rtol=0, atol=1e-4)
    assert abs(found[0] - found[1]).max() > 0.01


def test_rows_of_their_own_share_passes():
    model, rows = random_model("llama"), []
    model.register_forward_pre_hook(lambda _, args, given: rows.append(given["input_ids"].shape[0]), with_kwargs=True)
    scorer = Scorer(engine_of(model, 0), get_objective("accuracy"), Generation())
    rows.clear()
    scorer.score_divided(SHORT[:3], members_of(3), [slice(n, n + 1) for n in range(3)])
    assert rows == [6]


def test_an_objective_of_rows_is_called_twice_and_one_of_the_set_for_each_pair_too():
    calls = []

    def each(logprobs, references):
        calls.append(len(references))
        return [float(one[0] - one[1]) for one in logprobs]

    def whole(logprobs, references):
        calls.append(len(references))
        return float((logprobs[:, 0] - logprobs[:, 1]).mean())

    examples = [SHORT[n % 3] for n in (0, 1, 2, 1, 0)]
    shares, members, engine = [slice(0, 2), slice(2, 5)], members_of(3), engine_of(random_model("llama"), 0)
    found = {}
    for function, expected in ((each, [5, 5]), (whole, [5, 5, 2, 2, 3, 3])):
        calls.clear()
        objective = get_objective(function)
        sides, scores = Scorer(engine, objective, Generation()).score_divided(examples, members, shares)
        assert calls == expected
        found[function] = scores
        assert [math.isnan(score) for score in scores] == [False] * 4 + [True] * 2  # no rows for the third pair
        for side in (0, 1):
            assert sides[side].score == pytest.approx((2 * scores[side] + 3 * scores[2 + side]) / 5)
        for m in range(4):
            [alone] = Scorer(engine, objective, Generation()).score(examples[shares[m // 2]], (members[m],))
            assert scores[m] == pytest.approx(alone.score, abs=1e-5)
    assert found[each][:4] == pytest.approx(found[whole][:4])


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "window": 3}, {"noise": "dense"}, {"blocks": 2}])
def test_a_run_goes_on_after_a_kill_and_is_replayed(options, tmp_path, tokenizer):
    options = {**DIVIDED, "max_steps": 4, "weight_decay": 0.1, "dtype": torch.bfloat16, **options}

    def half():
        return random_model("llama").to(torch.bfloat16)

    run = trainer(tmp_path / "whole", tokenizer, model=half(), **options)
    run.train()
    assert run.method.num_directions == 3 and run.method.rows_per_direction == 2
    killed(tmp_path / "killed", tokenizer, 3, model=half(), **options)  # after a short batch
    again = trainer(tmp_path / "killed", tokenizer, model=half(), **options)
    again.train(resume_from_checkpoint=True)
    assert same(weights(run), weights(again)) and lines(tmp_path / "whole") == lines(tmp_path / "killed")
    assert bits(run.model) != bits(half())
    for path in (tmp_path / "whole", tmp_path / "whole" / "trajectory.safetensors"):
        assert bits(replay(path, half())) == bits(run.model)
    with pytest.raises(InputError, match="made with num_directions=3, not 6"):
        trainer(tmp_path / "killed", tokenizer, model=half(), **{**options, "rows_per_direction": 1}).resume()


def test_a_step_costs_two_forward_passes_and_the_rate_is_found(tmp_path, tokenizer):
    options = {**DIVIDED, "learning_rate": None, "eps": None, "max_forwards": 80, "max_steps": -1}
    run = trainer(tmp_path / "run", tokenizer, **options)
    run.train()
    assert run.found is not None and run.method.normalize == "running" and run.method.rank == 1
    assert run.keeper.budget.in_steps == 2 * run.state.global_step > 0


def test_members_with_rows_of_their_own_count_for_memory_together(tmp_path, tokenizer):
    own = {**DIVIDED, "rows": ROWS, "per_device_train_batch_size": 32, "rows_per_direction": 1}
    shared = {**own, "rows_per_direction": None, "noise": "low-rank"}
    options = own, {**shared, "num_directions": 1}, {**shared, "num_directions": 32}
    needed = [trainer(tmp_path / str(n), tokenizer, **some).memory for n, some in enumerate(options)]
    if any(memory is None for memory in needed):
        pytest.skip("this machine does not say what memory is free")
    divided, one, many = needed
    assert divided.activations == one.activations < many.activations
    assert divided.scratch == many.scratch > one.scratch


def of_two_classes(predictions, references):
    return math.nan if len(set(references)) == 1 else 1.0


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        ("f1", "A direction's share of 1 rows holds 0.5 of the rarest answer, ' not', on average; the mean of f1"),
        ("f1", "Take --rows-per-direction 4 or more"),
        (get_objective(of_two_classes), "in about 100 % of the shares of 1 rows: these directions move nothing"),
    ],
)
def test_scores_of_the_set_on_too_few_rows_are_told(objective, told, tmp_path, tokenizer, caplog):
    trainer(tmp_path / "run", tokenizer, objective=objective, **{**DIVIDED, "rows_per_direction": 1})
    assert told in caplog.text


def test_headers_say_nothing_of_it_where_rows_are_not_divided():
    assert "rows_per_direction" not in SPSA().for_header("spsa")
    assert SPSA(rows_per_direction=2, rank=1).for_header("spsa")["rows_per_direction"] == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rows_per_direction": 0}, "none of 1 to 8"),
        ({"rows_per_direction": 9}, "none of 1 to 8"),
        ({"rows_per_direction": 3, "num_directions": 3}, "more than the 8 rows"),
        ({"rows_per_direction": 1, "normalize": "zscore"}, "not compared"),
        ({"rows_per_direction": 1, "method": "eggroll"}, "not compared"),
        ({"rows_per_direction": 1, "method": "es"}, "no use with method es"),
        ({"rows_per_direction": 1, "method": "svrg"}, "no use with method svrg"),
        ({"rows_per_direction": 1, "kl": 0.1}, "penalty"),
        ({"rows_per_direction": 1, "objective": lambda completions: [0.0], "prompt": "text"}, "answers are given"),
    ],
)
def test_what_it_does_not_go_with_is_refused_before_weights_are_read(options, told, tiny_model_dir, tmp_path):
    options = dict(options)
    objective = options.pop("objective", "accuracy")
    shutil.copytree(tiny_model_dir, tmp_path / "no-weights", ignore=shutil.ignore_patterns("*.safetensors"))
    args = ZOConfig(str(tmp_path / "run"), use_cpu=True, per_device_train_batch_size=8, **options)
    with pytest.raises(InputError, match=told):
        ZOTrainer(
            str(tmp_path / "no-weights"), objective=objective, args=args, train_dataset=[{"text": "a film", "label": 0}]
        )


def test_a_method_refuses_what_compares_directions():
    for normalize in ("rms", "zscore", "rank"):
        with pytest.raises(InputError, match="not compared"):
            make_method("spsa", rows_per_direction=1, rank=1, normalize=normalize)
