"""Contract under test: a reward written for TRL's GRPOTrainer gets what it gets there, and counts as it does there."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import re
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import random_model
from zoreward.records import Completion, Example, InputError, ObjectiveError, ZorewardError
from zoreward.registry import get_objective, weighted_sum
from zoreward.scoring import score_writings
from zoreward.trainer import ZOConfig
from zoreward.trainer.inputs import one_objective

# --- the reward functions of TRL's GRPO documentation, as they stand there ----------------------------------------


def reward_len(completion_ids, **kwargs):
    """Reward function that assigns higher scores to longer completions (in terms of token count)."""
    return [float(len(ids)) for ids in completion_ids]


def reward_num_unique_letters(completions, **kwargs):
    """Reward function that rewards completions with more unique letters."""
    completion_contents = [completion[0]["content"] for completion in completions]
    return [float(len(set(content))) for content in completion_contents]


def format_reward_func(completions, **kwargs):
    """Reward function that checks if the completion has a specific format."""
    pattern = r"^<think>.*?</think><answer>.*?</answer>$"
    completion_contents = [completion[0]["content"] for completion in completions]
    matches = [re.match(pattern, content) for content in completion_contents]
    return [1.0 if match else 0.0 for match in matches]


def reward_func(completions, ground_truth, **kwargs):
    # Regular expression to capture content inside \boxed{}
    matches = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    contents = [match.group(1) if match else "" for match in matches]
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth, strict=True)]


def math_reward_func(prompts, completions, task, **kwargs):
    rewards = []
    for prompt, completion, t in zip(prompts, completions, task, strict=True):
        rewards.append(1.0 if str(eval(prompt)) == completion else -1.0) if t == "math" else rewards.append(None)
    return rewards


def coding_reward_func(prompts, completions, task, **kwargs):
    rewards = []
    for prompt, completion, t in zip(prompts, completions, task, strict=True):
        rewards.append(0.5 * (prompt in completion)) if t == "coding" else rewards.append(None)
    return rewards


async def async_reward_func(prompts, completions, **kwargs):
    async def one(prompt: str, completion: str) -> float:
        await asyncio.sleep(0.001)
        return float(len(completion) - len(prompt))

    return await asyncio.gather(*(one(p, c) for p, c in zip(prompts, completions, strict=True)))


def grpo_rewards(
    functions: list, weights: list[float], inputs: list[dict], completions: list, ids: list
) -> list[float]:
    """TRL 1.16, `GRPOTrainer._calculate_rewards` and the sum behind it, for one process."""
    prompts = [one["prompt"] for one in inputs]
    keys = [key for key in inputs[0] if key not in ["prompt", "completion", "completion_ids"]]
    kwargs: dict[str, Any] = {key: [example[key] for example in inputs] for key in keys}
    kwargs |= {"trainer_state": SimpleNamespace(), "log_extra": lambda *_: None, "log_metric": lambda *_: None}
    table = torch.zeros(len(prompts), len(functions))
    for i, function in enumerate(functions):
        output = function(prompts=prompts, completions=completions, completion_ids=ids, **kwargs)
        if asyncio.iscoroutine(output):
            output = asyncio.run(output)
        table[:, i] = torch.tensor([reward if reward is not None else torch.nan for reward in output])
    rewards = (table * torch.tensor(weights).unsqueeze(0)).nansum(dim=1)
    rewards[torch.isnan(table).all(dim=1)] = torch.nan
    return rewards.tolist()


# --- rows and what was written ------------------------------------------------------------------------------------


def examples_of(rows: list[dict], chat: bool = False) -> list[Example]:
    return [
        Example(row, "" if chat else row["prompt"], (), 0, (1,), (), messages=tuple(row["prompt"]) if chat else None)
        for row in rows
    ]


def written(*texts: str) -> list[Completion]:
    return [Completion(text, tuple(range(len(text) + 1)), True) for text in texts]


ROWS = [
    {"prompt": "1+1", "task": "math", "ground_truth": "2"},
    {"prompt": "def f", "task": "coding", "ground_truth": "f"},
    {"prompt": "2*3", "task": "math", "ground_truth": "6"},
    {"prompt": "poem", "task": "poetry", "ground_truth": ""},
]
TEXTS = ("2", "def f(): \\boxed{f}", "größe 日本", "")
ASKED = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
SAID = ("<think>so</think><answer>2</answer>", "<answer>no</answer>", "", "日本語")


def as_messages(texts) -> list:
    return [[{"role": "assistant", "content": text}] for text in texts]


@pytest.mark.parametrize(
    ("functions", "weights", "chat"),
    [
        ([reward_len], [1.0], False),
        ([reward_len], [1.0], True),
        ([reward_num_unique_letters], [1.0], True),
        ([format_reward_func], [1.0], True),
        ([reward_func], [1.0], False),
        ([math_reward_func, coding_reward_func], [1.0, 1.0], False),
        ([async_reward_func], [1.0], False),
        ([async_reward_func, math_reward_func, reward_len, coding_reward_func], [0.1, 2.0, -1.0, 0.5], False),
        ([format_reward_func, reward_len, reward_num_unique_letters], [1.0, 0.01, 0.25], True),
    ],
    ids=lambda value: "+".join(f.__name__ for f in value) if isinstance(value, list) and callable(value[0]) else None,
)
def test_rewards_of_the_documentation_give_what_they_give_there(functions, weights, chat) -> None:
    rows, texts = (ASKED, SAID) if chat else (ROWS, TEXTS)
    completions = written(*texts)
    plain = as_messages(texts) if chat else list(texts)
    expected = grpo_rewards(functions, weights, rows, plain, [list(one.tokens) for one in completions])
    objective = weighted_sum([get_objective(function) for function in functions], weights)
    [writing] = score_writings(objective, examples_of(rows, chat), [completions])
    scored = [reward for reward in expected if not math.isnan(reward)]
    # float32 in TRL: a few roundings of numbers below 100
    assert writing.score == pytest.approx(sum(scored) / len(scored), rel=1e-5)
    assert list(writing.rewards) == [function.__name__ for function in functions]
    for n, total in enumerate(expected):
        own = [w * writing.rewards[f.__name__][n] for f, w in zip(functions, weights, strict=True)
               if writing.rewards[f.__name__][n] is not None]  # fmt: skip
        assert math.isnan(total) if not own else sum(own) == pytest.approx(total, rel=1e-5)


# --- what they are given ------------------------------------------------------------------------------------------


def test_a_reward_gets_all_that_trl_gives_and_nothing_that_it_keeps_back() -> None:
    seen: list[dict] = []

    def spy(**kwargs):
        seen.append(kwargs)
        kwargs["log_extra"]("upper", [text.upper() for text in kwargs["completions"]])
        kwargs["log_metric"]("length", 1.0)
        kwargs["log_metric"]("length", 2.0)
        return [0.5] * 2

    spy.__name__ = "spy"
    from zoreward import objective

    rows = [{"prompt": "a", "completion": "x", "task": 1}, {"prompt": "b", "completion": "y", "task": 2}]
    spied = get_objective(objective("spy", needs="completions")(spy))
    first, second = score_writings(spied, examples_of(rows), [written("c", "d"), written("e", "f")])
    assert [given["completions"] for given in seen] == [["c", "d"], ["e", "f"]]
    given = seen[0]
    assert set(given) == {
        "prompts",
        "completions",
        "completion_ids",
        "task",
        "trainer_state",
        "log_extra",
        "log_metric",
    }
    assert (given["prompts"], given["task"], given["completion_ids"]) == (["a", "b"], [1, 2], [[0, 1], [0, 1]])
    assert given["trainer_state"].global_step == 0
    assert (first.extra, second.extra) == ({"upper": ["C", "D"]}, {"upper": ["E", "F"]})
    assert first.metrics == {"metric/length": 1.5}  # a run has a length of its own


def test_the_trainer_s_state_is_handed_on() -> None:
    def late(completions, trainer_state):
        return [float(trainer_state.global_step)] * len(completions)

    [writing] = score_writings(
        get_objective(late), examples_of(ROWS), [written(*TEXTS)], trainer_state=SimpleNamespace(global_step=7)
    )
    assert writing.score == 7.0


# --- what GRPOTrainer takes as reward_funcs -----------------------------------------------------------------------


def reward_of(tmp_path, reward_funcs, processing_classes=None, **changes):
    return one_objective(None, reward_funcs, processing_classes, ZOConfig(str(tmp_path), use_cpu=True, **changes))


def everything(**kwargs) -> list[float]:
    return [float(len(text)) for text in kwargs["completions"]]


def of_prompts(prompts, **kwargs) -> list[float]:
    return [10.0 * len(prompt) + len(text) for prompt, text in zip(prompts, kwargs["completions"], strict=True)]


class Scaled:
    def __init__(self, scale: float):
        self.scale = scale

    def __call__(self, completions, **kwargs):
        return [self.scale * len(text) for text in completions]


def scaled(completions, scale, **kwargs):
    return Scaled(scale)(completions)


@pytest.mark.parametrize(
    ("functions", "names", "score"),
    [
        (everything, ["everything"], 2.0),
        ([of_prompts], ["of_prompts"], 32.0),
        ([functools.partial(scaled, scale=2.0), functools.partial(scaled, scale=3.0)], ["scaled", "scaled_2"], 10.0),
        ([lambda completions, **k: [1.0], lambda **k: [2.0], lambda prompts, **k: [4.0]],
         ["<lambda>", "<lambda>_2", "<lambda>_3"], 7.0),
        ([Scaled(5.0), Scaled(0.5), everything, everything],
         ["Scaled", "Scaled_2", "everything", "everything_2"], 15.0),
        (["exact-match", everything], ["exact-match", "everything"], 2.0),
    ],
    ids=["any keyword", "prompts", "partials", "lambdas", "objects", "names"],
)  # fmt: skip
def test_functions_are_taken_as_trl_takes_them(tmp_path, functions, names, score) -> None:
    chosen = reward_of(tmp_path, functions)
    [writing] = score_writings(chosen, examples_of([{"prompt": "abc", "answer": "zz"}]), [written("xy")])
    assert (list(writing.part_scores), writing.score) == (names, score)


def test_functions_that_say_what_they_need_are_what_they_are(tmp_path) -> None:
    assert reward_of(tmp_path, lambda predictions, **columns: 1.0).needs == "choices"
    with pytest.raises(InputError, match="cannot be seen from its parameters"):
        reward_of(tmp_path, lambda texts: 1.0)
    with pytest.raises(InputError, match="cannot be seen from its parameters"):  # elsewhere nothing is assumed
        get_objective(everything)


@pytest.fixture
def reward_model(tokenizer, tmp_path):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, initializer_range=0.5, **sizes)
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    return model


def test_a_reward_model_gives_what_it_gives_in_trl(tmp_path, tokenizer, reward_model) -> None:
    texts = ["the film was good", "a plot", "it was very dull and not bright"] * 20
    rows = [{"prompt": f"{text} "} for text in reversed(texts)]
    expected = []
    for row, text in zip(rows, texts, strict=True):  # one by one, so that nothing is padded
        inputs = tokenizer(row["prompt"] + text, return_tensors="pt", add_special_tokens=False)
        reward_model.config.pad_token_id = tokenizer.pad_token_id
        with torch.no_grad():
            expected.append(float(reward_model(input_ids=inputs["input_ids"]).logits[0, 0]))
    path = str(tmp_path / "judge")
    for source, own_tokenizer in ((path, None), (reward_model, tokenizer), (reward_model, [tokenizer])):
        chosen = reward_of(tmp_path, source, own_tokenizer)
        [writing, again] = score_writings(chosen, examples_of(rows), [written(*texts)] * 2)
        [rewards] = writing.rewards.values()
        assert rewards == pytest.approx(expected, abs=1e-5)  # padding and batches: some float32 roundings
        assert again.rewards[chosen.name] == pytest.approx(rewards, abs=1e-5)
        assert json.dumps(dict(chosen.values))  # they stand in the journal's header
    chosen = reward_of(tmp_path, [path, everything, path], [None, None, tokenizer])
    assert [part.name for _, part in chosen.parts] == ["judge", "everything", "judge_2"]


def test_reward_models_that_cannot_be_used_are_refused(tmp_path, tokenizer, reward_model) -> None:
    causal = tmp_path / "causal"
    random_model("llama").save_pretrained(causal)
    tokenizer.save_pretrained(causal)
    wrong = [
        (str(causal), None, "never trained to score"),
        ("nobody/none", None, "no reward model can be loaded from 'nobody/none'"),
        ("exact-mtch", None, "unknown objective"),
        (reward_model, None, "where its tokenizer is"),
        ([everything, reward_model], tokenizer, "1 reward_processing_classes and 2 reward_funcs"),
        ([everything], [None, tokenizer], "2 reward_processing_classes and 1 reward_funcs"),
    ]
    for source, own_tokenizer, message in wrong:
        with pytest.raises(ZorewardError, match=message):
            reward_of(tmp_path, source, own_tokenizer)
    with pytest.raises(InputError, match="there are none"):
        one_objective(everything, None, tokenizer, ZOConfig(str(tmp_path), use_cpu=True))


# --- async --------------------------------------------------------------------------------------------------------


def test_async_rewards_of_all_members_run_together_on_one_loop() -> None:
    arrived, loops = [], set()

    def meeting(name: str):
        async def reward(completions):
            arrived.append(name)
            loops.add(id(asyncio.get_running_loop()))
            for _ in range(1000):  # none goes on before all have come
                if len(arrived) == 6:
                    return [1.0] * len(completions)
                await asyncio.sleep(0.001)
            raise TimeoutError("the others did not come")

        reward.__name__ = name
        return get_objective(reward)

    both = weighted_sum([meeting("one"), meeting("two")])
    found = score_writings(both, examples_of(ROWS), [written(*TEXTS)] * 3)
    assert [writing.score for writing in found] == [2.0] * 3
    arrived[:] = ["x"] * 5  # a second batch runs on the same loop: clients that rewards keep belong to it
    score_writings(meeting("again"), examples_of(ROWS), [written(*TEXTS)])
    assert len(loops) == 1


def test_async_rewards_where_a_loop_is_running_and_functions_stay_in_their_thread() -> None:
    threads = {}

    async def waits(completions):
        threads["async"] = threading.current_thread()
        return [1.0] * len(completions)

    def plain(completions):
        threads["plain"] = threading.current_thread()
        return [1.0] * len(completions)

    both = weighted_sum([get_objective(waits), get_objective(plain)])

    async def notebook() -> float:
        return score_writings(both, examples_of(ROWS), [written(*TEXTS)])[0].score

    assert asyncio.run(notebook()) == 2.0
    assert threads["plain"] is threading.main_thread() is not threads["async"]


def test_an_async_class_is_awaited_and_what_it_raises_is_told() -> None:
    class Judge:
        def __init__(self, *, limit: int = 3):
            self.limit = limit

        async def __call__(self, completions, **columns):
            await asyncio.sleep(0)
            if any(len(text) > self.limit for text in completions):
                raise ValueError("too long")
            return [1.0] * len(completions)

    judge = get_objective(Judge)
    assert (judge.needs, judge.score(1, completions=["abc"])) == ("completions", 1.0)
    with pytest.raises(ObjectiveError, match=r"(?m)^objective 'Judge' raised ValueError: too long$") as caught:
        judge.score(1, completions=["abcd"])
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.filterwarnings("error")  # a coroutine that nobody awaits or closes warns
def test_a_reward_that_raises_leaves_no_coroutine_behind() -> None:
    async def waits(completions):
        return [1.0]

    def fails(completions):
        raise ValueError("no")

    with pytest.raises(ObjectiveError, match="'fails' raised ValueError: no"):
        weighted_sum([get_objective(waits), get_objective(fails)]).score(1, completions=["a"])


# --- how they add up ----------------------------------------------------------------------------------------------


def test_a_reward_that_leaves_out_all_rows_counts_where_another_has_scored_them() -> None:
    rows = [row for row in ROWS if row["task"] == "math"]
    both = weighted_sum([get_objective(math_reward_func), get_objective(coding_reward_func)], [0.5, 1.0])
    [writing] = score_writings(both, examples_of(rows), [written("2", "7")])
    assert (writing.score, writing.part_scores["math_reward_func"]) == (0.0, 0.0)
    assert math.isnan(writing.part_scores["coding_reward_func"])
    [poem] = [row for row in ROWS if row["task"] == "poetry"]
    for objective in (both, get_objective(math_reward_func)):
        [writing] = score_writings(objective, examples_of([poem]), [written("x")])
        assert math.isnan(writing.score) and math.isnan(writing.part_scores["math_reward_func"])
        assert writing.rewards["math_reward_func"] == (None,)


def test_a_score_of_the_whole_batch_that_is_not_defined_counts_nothing_beside_one_that_is() -> None:
    def corpus(completions):
        return float("nan") if len(completions) < 3 else 2.0

    def some(completions):
        return [None, 1.0, 0.5][: len(completions)]

    both = weighted_sum([get_objective(corpus), get_objective(some)], [0.1, 2.0])
    rows = [{"prompt": "p"}] * 3
    scores = [score_writings(both, examples_of(rows[:n]), [written(*"abc"[:n])])[0].score for n in (3, 2, 1)]
    assert scores[:2] == pytest.approx([0.1 * 2.0 + 2.0 * 0.75, 2.0]) and math.isnan(scores[2])


def test_a_score_of_the_whole_batch_adds_to_rewards_of_each_text() -> None:
    def corpus(completions):
        return len(set("".join(completions)))

    def some(completions):
        return [None, 1.0, 0.5]

    both = weighted_sum([get_objective(corpus), get_objective(some)], [0.1, 2.0])
    rows = [{"prompt": "p"}] * 3
    [writing] = score_writings(both, examples_of(rows), [written("ab", "bc", "")])
    assert writing.score == pytest.approx(0.1 * 3 + 2.0 * 0.75)
    assert writing.part_scores == {"corpus": 3.0, "some": 0.75}
    assert writing.rewards == {"some": (None, 1.0, 0.5)}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "wrong number of scores: got 1 for 4 rows"),
        ([1.0, float("inf"), 1.0, 1.0], "returned inf for row 1"),
        ([1.0, 1.0, "good", 1.0], "returned no number for row 2: 'good'"),
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
def test_what_is_no_reward(returned, message, is_async) -> None:
    def reward(completions):
        return returned

    async def later(completions):
        return returned

    with pytest.raises(ObjectiveError, match=message):
        score_writings(get_objective(later if is_async else reward), examples_of(ROWS), [written(*TEXTS)])
