"""Contract under test: what lies above an engine asks through its methods alone, and a pass is cut as its unit says."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import random_model
from zoreward import ZOConfig, ZOTrainer
from zoreward.journal import load_run
from zoreward.members import tuned_weights
from zoreward.records import Completion, Example, Request, Term, Update
from zoreward.registry import get_objective
from zoreward.scoring import Generation, Scorer, candidate_logprobs, engine_of

MEMBERS = tuple((Term(seed, sign * 0.05),) for seed in (1, 2) for sign in (1, -1))
EXAMPLES = [
    Example({}, "", ("a", "b"), n % 2, tuple(range(3, 5 + n)), ((3,), (7,)))
    for n in range(6)
]  # fmt: skip


class Table:
    """An engine without a model: a member's answers are those that follow from its first term's seed."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def logprobs(self, work, *, rows=None):
        self.asked += [len(requests) for _, requests in work]
        return [
            np.array([-float(len(request.prompt) + request.target[0] * (member[0].seed % 2)) for request in requests])
            for member, requests in work
        ]

    def generate(self, work, how):
        for member, requests in work:
            text = "x" * (member[0].seed if member else 0)
            yield [[Completion(text, (5,), True) for _ in requests]]


def test_any_engine_can_stand_behind_a_scorer():
    engine = Table()
    scorer = Scorer(engine, get_objective("accuracy"), Generation())
    first, *_, last = scorer.score(EXAMPLES, MEMBERS)
    assert engine.asked == [12] * 4
    assert (first.score, last.score) == (0.5, 0.5) and scorer.problem is None

    def long(completions):
        return [float(len(text)) for text in completions]

    scored = Scorer(engine, get_objective(long), Generation()).score(EXAMPLES, MEMBERS)
    assert [one.score for one in scored] == [1.0, 1.0, 2.0, 2.0]


def test_members_may_be_asked_requests_of_their_own():
    engine = engine_of(random_model("llama"), 0)
    requests = [[Request((5, 6), (7,))], [Request((5, 6), (8,)), Request((9,), (7, 8))]]
    work = list(zip(MEMBERS, [requests[0], requests[0], requests[1], requests[0]], strict=True))
    found = engine.logprobs(work)
    for (member, own), values in zip(work, found, strict=True):
        [expected] = engine.logprobs([(member, own)])
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5)


def test_an_engine_writes_its_weights():
    model = random_model("llama")
    engine = engine_of(model, 0)
    before = {name: weight.clone() for name, weight in engine.weights().weights.items()}
    engine.apply(Update(0.0, (Term(1, 0.5),), 0))
    assert engine.weights().weights.keys() == tuned_weights(model).weights.keys()
    assert all((weight != before[name]).any() for name, weight in engine.weights().weights.items())


def rows_of_passes(model, ask) -> list[int]:
    """How many rows a member has in each pass that `ask` makes, the widest first."""
    seen = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    try:
        ask()
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_rows_of_a_pass_do_not_depend_on_how_many_members_are_asked(count):
    model = random_model("llama")
    engine = engine_of(model, 0, tokens=64).cut_as({"members": 4})
    rows = rows_of_passes(model, lambda: candidate_logprobs(engine, EXAMPLES, MEMBERS[:count]))
    assert [n // count for n in rows] == [2, 3, 1]  # at most 64 / 4 tokens: of 7 and 6, of 5, 4 and 3, of 2
    alone = rows_of_passes(model, lambda: candidate_logprobs(engine, EXAMPLES))
    assert alone == [6]  # the model itself: as many as there are


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_rows_that_are_written_for_do_not_depend_on_how_many_members_are_asked(count, tokenizer):
    model = random_model("llama")
    engine = engine_of(model, 0, tokenizer).cut_as({"members": 2, "written": 48})
    work = [(member, [Request(example.prompt_tokens, ()) for example in EXAMPLES]) for member in MEMBERS[:count]]
    first = []

    def ask():
        for texts in engine.generate(work, Generation(max_new_tokens=1)):
            first.append(len(texts))

    rows = rows_of_passes(model, ask)
    assert set(first) == {1}  # all rows of two members do not fit, so members come one at a time
    assert rows == [6] * count


def test_a_unit_of_another_device_is_not_taken_up():
    engine = engine_of(random_model("llama"), 0)
    assert engine.cut_as(engine.unit).unit == engine.unit
    assert engine.cut_as({"device": "cuda", "members": 3, "read": 7, "written": 9}).unit == engine.unit
    assert engine.cut_as({"members": 3, "read": 7}).unit == {**engine.unit, "members": 3, "read": 7}


def test_a_run_that_goes_on_cuts_its_work_as_it_did(tiny_model_dir, tmp_path, monkeypatch):
    rows = [{"text": "a good film", "label": 1}, {"text": "it was bad", "label": 0}]
    given = {"template": "{text} it was", "choices": [" bad", " good"], "use_cpu": True, "disable_tqdm": True}

    def trainer(steps):
        args = ZOConfig(str(tmp_path), max_steps=steps, num_directions=2, **given)
        return ZOTrainer(str(tiny_model_dir), objective="accuracy", train_dataset=rows, args=args)

    first = trainer(1)
    first.train()
    unit = first.scorer.engine.unit
    assert unit == load_run(tmp_path).header["unit"] and unit["members"] == 4
    monkeypatch.setattr("zoreward.scoring.forward.CPU_TOKENS", 77)  # another machine
    again = trainer(2)
    assert again.scorer.engine.unit["read"] == 77
    again.train(resume_from_checkpoint=True)
    assert again.scorer.engine.unit == unit
