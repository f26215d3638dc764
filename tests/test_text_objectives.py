"""Objectives that score text: values worked out by hand, and what they say about what does not fit."""

from __future__ import annotations

import json
import math
import time
from itertools import combinations
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from zoreward.records import InputError, ObjectiveError
from zoreward.registry import get_objective

CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


def score(name: str, completions: list, options: dict | None = None, **columns) -> float:
    columns.setdefault("prompts", ["p"] * len(completions))
    return get_objective(name, **(options or {})).score(len(completions), completions=completions, **columns)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


# --- what all of them promise -------------------------------------------------------------------------------------

COMPARING = {"exact-match": 1.0, "token-f1": 1.0, "rouge": 1.0, "bleu": 100.0, "pass-at-k": 1.0}


@pytest.mark.parametrize("name", COMPARING)
def test_the_right_text_reaches_the_top_and_no_other(name: str) -> None:
    found, top = get_objective(name), COMPARING[name]
    assert found.needs == "completions" and found.range == (0, top)
    right = ["the quick brown fox jumps", "größe der stadt münchen heute"]
    # BLEU sums logarithms of exact ratios of 1
    assert score(name, right, answer=right) == pytest.approx(top, rel=1e-12)
    assert score(name, [said(text) for text in right], answer=right) == pytest.approx(top, rel=1e-12)
    assert score(name, ["nothing like it", "nor this"], answer=right) < top / 2


@pytest.mark.parametrize("name", COMPARING)
def test_empty_and_foreign_text_does_no_harm(name: str) -> None:
    texts = ["", " ", "日本語", "\U0001f600\u0000", "...", "größe"]
    for answers in (texts, ["a"] * 6, [""] * 6):
        assert 0 <= score(name, texts, answer=answers) <= COMPARING[name] * (1 + 1e-12)


@pytest.mark.parametrize("name", COMPARING)
def test_the_best_of_several_right_answers_counts(name: str) -> None:
    answer = [["no such thing here at all", "a red brick house stands here"]]
    assert score(name, ["a red brick house stands here"], answer=answer) == pytest.approx(COMPARING[name])


@pytest.mark.parametrize("name", COMPARING)
def test_a_missing_column_of_answers_is_named(name: str) -> None:
    with pytest.raises(ObjectiveError, match="no row has the column 'answer' of right answers; there are reply"):
        score(name, ["x"], reply=["x"])
    option = {"answer_column": "reply"}
    assert score(name, ["a b c d e"], option, reply=["a b c d e"]) == pytest.approx(COMPARING[name])
    with pytest.raises(ObjectiveError, match="row 1 has no answer"):
        score(name, ["x", "y"], answer=["x", None])


# --- their values -------------------------------------------------------------------------------------------------


def test_exact_match_compares_as_squad_or_as_written() -> None:
    completions = [" The Eiffel-Tower! ", "eiffel tower", "Paris"]
    answer = ["eiffeltower", "Eiffel Tower.", {"text": ["London", "Paris"], "answer_start": [0, 1]}]
    assert score("exact-match", completions, answer=answer) == 1.0
    assert score("exact-match", completions, {"strict": True}, answer=answer) == pytest.approx(1 / 3)
    assert score("exact-match", ["42", "", "x"], answer=[42, [], []]) == pytest.approx(2 / 3)


def test_token_f1_by_hand() -> None:
    # "a" is an article: 2 words, 3 words, 2 shared; then 3 words, of which "to" is shared twice
    found = score("token-f1", ["a red house", "to be to"], answer=["the big red house", "to or not to"])
    assert found == pytest.approx((2 * 2 / (2 + 3) + 2 * 2 / (3 + 4)) / 2)
    assert score("token-f1", ["the", "x"], answer=["", ""]) == 0.5  # no words against no words is right


@pytest.mark.parametrize(("variant", "expected"), [("rouge1", 12 / 17), ("rouge2", 4 / 15), ("rougeL", 10 / 17)])
def test_rouge_of_the_example_of_rouge_score(variant: str, expected: float) -> None:
    # 9 and 8 words share 6; 8 and 7 pairs share "the quick", "quick brown"; the, quick, brown, jumps, the in order.
    # The readme of rouge_score gives 0.7058… for rouge1 and 0.5882… for rougeL.
    right = "The quick brown fox jumps over the lazy dog"
    found = score("rouge", ["The quick brown dog jumps on the log."], {"variant": variant}, answer=[right])
    assert found == pytest.approx(expected)


def test_rouge_l_finds_the_longest_common_subsequence() -> None:
    def slow(one: list[str], other: list[str]) -> int:
        for size in range(len(one), 0, -1):
            wanted = set(combinations(one, size))
            if any(some in wanted for some in combinations(other, size)):
                return size
        return 0

    one, other = list("abcbdabxy"), list("bdcabaxby")
    expected = 2 * slow(one, other) / 18
    assert score("rouge", [" ".join(one)], answer=[" ".join(other)]) == pytest.approx(expected)


def test_bleu_is_of_the_corpus() -> None:
    completions = ["the cat sat on the mat", "a dog"]
    answer = ["the cat sat on a mat", "a dog barked loudly"]
    # matches of 1 to 4 words: 5 + 2 of 8, 3 + 1 of 6, 2 of 4, 1 of 3; 8 words against 10
    precisions = [7 / 8, 4 / 6, 2 / 4, 1 / 3]
    expected = 100 * math.exp(1 - 10 / 8) * math.prod(precisions) ** 0.25
    assert score("bleu", completions, answer=answer) == pytest.approx(expected)
    each = [score("bleu", [one], answer=[right]) for one, right in zip(completions, answer, strict=True)]
    assert score("bleu", completions, answer=answer) != pytest.approx(sum(each) / 2, rel=0.05)
    several = [["the cat sat on a mat", "the cat sat on the mat"], "a dog barked loudly"]
    assert score("bleu", completions, answer=several) > expected


@pytest.mark.parametrize("k", [1, 2, 3])
def test_pass_at_k_is_the_share_of_tries_with_a_right_one(k: int) -> None:
    completions, prompts = ["4", "5", "4", "6", "9", "9", "9"], ["2+2="] * 4 + ["3*3="] * 3
    answer = ["4"] * 4 + ["8"] * 3
    right = [True, False, True, False]
    some = list(combinations(right, k))
    expected = (sum(map(any, some)) / len(some) + 0) / 2
    assert score("pass-at-k", completions, {"k": k}, prompts=prompts, answer=answer) == pytest.approx(expected)


def test_pass_at_k_with_a_check_and_a_group(tmp_path: Path) -> None:
    path = tmp_path / "checks.py"
    path.write_text("def even(completions, **columns):\n    return [int(c) % 2 == 0 for c in completions]\n")
    options = {"k": 2, "check": f"{path}:even", "group": "task"}
    assert score("pass-at-k", ["1", "2", "3", "5"], options, task=["x", "x", "y", "y"]) == 0.5
    chats = [[{"role": "user", "content": text}] for text in "aabb"]
    assert score("pass-at-k", ["1", "2", "3", "5"], {**options, "group": None}, prompts=chats) == 0.5
    with pytest.raises(ObjectiveError, match="a prompt has 2 completions, and k is 3"):
        score("pass-at-k", ["1", "2"], {**options, "k": 3}, task=["x", "x"])
    with pytest.raises(ObjectiveError, match="no row has the column 'task'"):
        score("pass-at-k", ["1", "2"], options)
    with pytest.raises(ObjectiveError, match="k is at least 1"):
        get_objective("pass-at-k", k=0)


# --- evaluate and trl ---------------------------------------------------------------------------------------------


def test_a_metric_of_evaluate_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    get_objective("exact-match")  # the first objective pays for what all import
    start = time.perf_counter()
    with pytest.raises(ObjectiveError, match="cannot be reached from here") as caught:
        get_objective("evaluate:rouge")
    assert caught.value.hint.startswith("load it once") and caught.value.hint.endswith("take the objective rouge")
    assert time.perf_counter() - start < 1
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ObjectiveError, match="cannot be reached from here"):
        get_objective("evaluate:neg_wer")
    with pytest.raises(ObjectiveError, match=r"there is no folder '\./none'"):
        get_objective("evaluate:./none")


METRIC = """
import datasets
import evaluate

class Same(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("KIND"), "references": datasets.Value("KIND")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references, scale=1.0):
        same = sum(p == r for p, r in zip(predictions, references)) / len(references)
        return {"share": scale * same, "errors": 1 - same, "note": "x"}
"""


def test_a_metric_of_evaluate_in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", tmp_path / "modules")
    for name, kind in (("same", "string"), ("same_index", "int64")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.py").write_text(METRIC.replace("KIND", kind))
    place = f"evaluate:{tmp_path}/same"
    answer = ["4", "5"]
    assert score(place, ["4", said("9")], {"key": "share"}, answer=answer) == 0.5
    assert score(place, ["4", "9"], {"key": "share", "option": ["scale=3"]}, answer=answer) == 1.5
    assert score(f"evaluate:neg_{tmp_path}/same", ["4", "9"], {"key": "errors"}, answer=answer) == -0.5
    with pytest.raises(ObjectiveError, match="returns share, errors, note: say which with the option key"):
        score(place, ["4", "9"], answer=answer)
    chosen = get_objective(f"{place}_index", of="choices", key="share")
    assert (chosen.name, chosen.needs) == ("same_index", "choices")
    assert chosen.score(4, predictions=[0, 1, 1, 1], references=[0, 1, 1, 0]) == 0.75


def test_rewards_of_trl_read_plain_texts_and_messages() -> None:
    texts = ["<think>so</think>4", "4"]
    assert score("trl:think_format_reward", texts) == 0.5
    assert score("trl:think_format_reward", [said(text) for text in texts]) == 0.5
    options = {"option": ["max_completion_len=100", "soft_punish_cache=20"]}
    found = score("trl:get_soft_overlong_punishment", ["x", "y"], options, completion_ids=[[1] * 90, [1] * 10])
    assert found == -0.25  # the example of its docstring, and one that is short


def test_rewards_that_trl_does_not_have_or_make_so() -> None:
    with pytest.raises(ObjectiveError, match="no reward 'think_formt_reward'") as caught:
        get_objective("trl:think_formt_reward")
    assert caught.value.hint.startswith("did you mean think_format_reward")
    with pytest.raises(ObjectiveError, match="no reward 'GRPOTrainer'") as caught:
        get_objective("trl:GRPOTrainer")
    assert caught.value.hint.startswith("It has accuracy_reward")
    with pytest.raises(ObjectiveError, match=r"the options do not fit .*missing a required argument"):
        get_objective("trl:get_soft_overlong_punishment")
    with pytest.raises(ObjectiveError, match="takes no options"):
        get_objective("trl:think_format_reward", option=["a=1"])


# --- reward models ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reward_dir(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    size = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        **size, intermediate_size=48, max_position_embeddings=16, pad_token_id=0, num_labels=1, initializer_range=0.3
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def slow_rewards(folder: Path, tokens: list[list[int]]) -> list[float]:
    """Each text alone, unpadded."""
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return [float(model(input_ids=torch.tensor([ids])).logits[0, 0]) for ids in tokens]


PROMPTS = ["a good", "the film was", "bad", "it"]
WRITTEN = [" film", " not very good and not very bright", "", " is great"]
# float32 logits of size ≤ 10: the sums behind them are good to some 1e-5 in another batch
CLOSE = 1e-4


def rewards(folder: Path, prompts: list, completions: list, **options) -> list[float]:
    found = get_objective("reward-model", reward_model=str(folder), **options)
    [returned] = found.returned_for([(len(prompts), {"prompts": prompts, "completions": completions})])
    return returned["reward-model"]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_reward_model_scores_prompt_and_completion(reward_dir, tokenizer, batch_size: int) -> None:
    tokens = [tokenizer(p + c, add_special_tokens=False)["input_ids"] for p, c in zip(PROMPTS, WRITTEN, strict=True)]
    expected = slow_rewards(reward_dir, tokens)
    assert max(expected) - min(expected) > 0.1
    assert rewards(reward_dir, PROMPTS, WRITTEN, reward_batch_size=batch_size) == pytest.approx(expected, abs=CLOSE)
    squashed = [1 / (1 + math.exp(-value)) for value in expected]
    assert rewards(reward_dir, PROMPTS, WRITTEN, activation="sigmoid") == pytest.approx(squashed, abs=CLOSE)


def test_a_reward_model_s_end_token_and_its_context(reward_dir, tokenizer) -> None:
    long, end = "good " * 5 + "bad " * 20, tokenizer.eos_token_id
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a film", long)]
    ended = slow_rewards(reward_dir, [[*ids, end][-16:] for ids in plain])
    assert rewards(reward_dir, ["a", long], [" film", ""], eos=True) == pytest.approx(ended, abs=CLOSE)
    cut = slow_rewards(reward_dir, [ids[-4:] for ids in plain])
    assert rewards(reward_dir, ["a", long], [" film", ""], reward_max_length=4) == pytest.approx(cut, abs=CLOSE)
    assert ended[0] != pytest.approx(cut[0], abs=0.01)


def test_a_reward_model_reads_conversations_through_its_own_template(reward_dir, tokenizer, tmp_path) -> None:
    prompts = [[{"role": "good", "content": "bad film"}], [{"role": "good", "content": "it was"}]]
    completions = [[{"role": "plot", "content": "lovely"}], [{"role": "plot", "content": ""}]]
    with pytest.raises(ObjectiveError, match="has no chat template"):
        rewards(reward_dir, prompts, completions)
    LlamaForSequenceClassification.from_pretrained(reward_dir).save_pretrained(tmp_path)
    chat = PreTrainedTokenizerFast.from_pretrained(reward_dir)
    chat.chat_template = CHAT
    chat.save_pretrained(tmp_path)
    texts = ["good bad film plot lovely ", "good it was plot "]
    expected = slow_rewards(tmp_path, [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts])
    assert rewards(tmp_path, prompts, completions) == pytest.approx(expected, abs=CLOSE)


def test_a_reward_model_survives_empty_and_foreign_text(reward_dir) -> None:
    found = rewards(reward_dir, ["", "", "x"], ["", "日本語 \U0001f600", "\u0000"])
    assert all(map(math.isfinite, found))


def test_what_is_no_reward_model(reward_dir, tiny_model_dir, tokenizer, tmp_path) -> None:
    two = LlamaForSequenceClassification.from_pretrained(reward_dir, num_labels=2, ignore_mismatched_sizes=True)
    two.save_pretrained(tmp_path / "two")
    tokenizer.save_pretrained(tmp_path / "two")
    with pytest.raises(ObjectiveError, match="has 2 logits, and a reward model has one"):
        get_objective("reward-model", reward_model=str(tmp_path / "two"))
    headless = tmp_path / "headless"
    headless.mkdir()
    for file in tiny_model_dir.iterdir():
        (headless / file.name).write_bytes(file.read_bytes())
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(
        json.dumps({**config, "id2label": {"0": "reward"}, "label2id": {"reward": 0}})
    )
    with pytest.raises(ObjectiveError, match=r"never trained to score: its weights lack score\.weight"):
        get_objective("reward-model", reward_model=str(headless))
    with pytest.raises(ObjectiveError, match="there is no reward model folder"):
        get_objective("reward-model", reward_model=str(tmp_path / "none"))
    with pytest.raises(InputError, match="needs its option 'reward_model'"):
        get_objective("reward-model")
