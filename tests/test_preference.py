"""Contract under test: preferences as TRL writes them, scored against the model before tuning by DPO's own margin."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import random_model
from rendering import check_columns, render
from tiny_tokenizers import bpe, ids
from zoreward.members import update_
from zoreward.records import InputError, Term, UnknownNameError, Update, ZorewardError
from zoreward.registry import get_objective
from zoreward.scoring import candidate_logprobs, engine_of, evaluate
from zoreward.trainer import ZOConfig, ZOTrainer

pytestmark = pytest.mark.usefixtures("trials_are_kept")

CHAT = (
    "{% for message in messages %}{{ '<' + message.role + '> ' + message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
GOOD, BAD = "good great lovely bright".split(), "bad awful dull terrible".split()
PAIRS = [
    {"prompt": f"{the} film was", "chosen": f" {good}{end}", "rejected": f" {bad} and {bad}{end}"}
    for the in ("this", "the")
    for good, bad in zip(GOOD, BAD, strict=True)
    for end in ("", " film")
]


def rendered(rows, tokenizer, **options):
    return render(rows, tokenizer, needs="choices", template=None, **options)


def outputs(sums, base, references=None, counts=2.0):
    sums, base = np.array(sums), np.array(base)
    return {
        "logprob_sums": sums,
        "base_logprob_sums": base,
        "logprobs": sums / counts,
        "references": [0] * len(sums) if references is None else references,
    }


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# The two rows: the margin is (−2 + 5) − (−3 + 4) = 2, and (−4 + 1) − (−2 + 1) = −2; then −1.
SUMS = [[-2.0, -5.0], [-4.0, -1.0], [-3.0, -3.0]]
BASE = [[-3.0, -4.0], [-2.0, -1.0], [-3.0, -4.0]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [sigmoid(1.0), sigmoid(-1.0), sigmoid(-0.5)]),
        ({"beta": 0.1}, [sigmoid(0.2), sigmoid(-0.2), sigmoid(-0.1)]),
        ({"form": "log-sigmoid"}, [math.log(sigmoid(x)) for x in (1.0, -1.0, -0.5)]),
        ({"form": "share"}, [1.0, 0.0, 0.0]),
    ],
)
def test_the_formula(options, expected):
    found = get_objective("preference", **options)
    logged = {}
    score = found.score(3, **outputs(SUMS, BASE), log_metric=logged.__setitem__)
    assert score == pytest.approx(sum(expected) / 3, abs=1e-12)
    assert logged == pytest.approx({"share": 1 / 3, "margin": -1 / 3, "chosen_logprob": -1.5}, abs=1e-12)


# Log-probabilities per token, as SUMS and BASE would have them with 2 and 4 tokens an answer.
COUNTS = np.array([2.0, 4.0])


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_ipo_and_simpo_are_minus_the_losses_of_trl(beta, tmp_path):
    import torch

    cpo = pytest.importorskip("trl.experimental.cpo")
    sums, base, references = np.array(SUMS), np.array(BASE), [0, 1, 0]
    given = outputs(sums, base, references, COUNTS) | {"base_logprobs": base / COUNTS}
    scores = {form: get_objective("preference", form=form, beta=beta).score(3, **given) for form in ("ipo", "simpo")}
    stub = SimpleNamespace(
        loss_type="simpo", beta=beta, simpo_gamma=0.5, label_smoothing=0.0, alpha=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip

    def parted(values):
        means = torch.tensor(values / COUNTS)
        return means[range(3), references], means[range(3), [1 - place for place in references]]

    losses = cpo.CPOTrainer.cpo_loss(stub, *parted(sums))[0]
    assert scores["simpo"] == pytest.approx(-float(losses.mean()), abs=1e-5)
    # Its IPO knows no reference; DPOTrainer's is that of ratios.
    losses = cpo.CPOTrainer.cpo_loss(SimpleNamespace(**vars(stub) | {"loss_type": "ipo"}), *parted(sums - base))[0]
    assert scores["ipo"] == pytest.approx(-float(losses.mean()), abs=1e-5)


@pytest.mark.parametrize("form", ["ipo", "simpo"])
def test_forms_of_pairs_take_no_single_answers(form):
    given = outputs([[-1.0]], [[-1.0]]) | {"base_logprobs": np.array([[-1.0]])}
    with pytest.raises(ZorewardError, match=f"{form} is of pairs"):
        get_objective("preference", form=form).score(1, **given)


def test_the_chosen_answer_is_the_reference_wherever_it_stands():
    share = get_objective("preference", form="share")
    assert share.score(3, **outputs(SUMS, BASE, [1, 1, 1])) == pytest.approx(2 / 3)


def test_ties_count_half():
    share = get_objective("preference", form="share")
    assert share.score(2, **outputs([[-1.0, -2.0], [-1.0, -2.0]], [[-1.0, -2.0], [-2.0, -2.0]])) == 0.75


def test_single_answers_gain_by_their_label():
    found = get_objective("preference", form="share")
    sums, base = [[-1.0], [-1.0], [-3.0], [-3.0]], [[-2.0]] * 4
    logged = {}
    assert found.score(4, **outputs(sums, base, [0, -1, 0, -1]), log_metric=logged.__setitem__) == 0.5
    assert logged["margin"] == 0 and logged["chosen_logprob"] == pytest.approx((-0.5 - 1.5) / 2)
    smooth = get_objective("preference").score(1, **outputs([[-3.0]], [[-2.0]], [-1]))
    assert smooth == pytest.approx(sigmoid(0.5))


@pytest.mark.parametrize(("beta", "answers"), [(0.0, 2), (0.5, 3)])
def test_what_cannot_be_scored(beta, answers):
    with pytest.raises(ZorewardError, match=r"beta must be positive|between two answers"):
        get_objective("preference", beta=beta).score(1, **outputs([[-1.0] * answers], [[-1.0] * answers]))


def test_log_sigmoid_of_far_margins_stays_finite():
    found = get_objective("preference", form="log-sigmoid")
    assert found.score(1, **outputs([[-9000.0, -1.0]], [[-1.0, -1.0]])) == pytest.approx(-4499.5)


def test_the_base_has_exactly_one_half(tiny_model_dir):
    result = evaluate(str(tiny_model_dir), "preference", PAIRS, base=str(tiny_model_dir))
    assert result.score == 0.5 and result.metrics["metric/share"] == 0.5 and result.metrics["metric/margin"] == 0.0


def test_without_a_base_there_is_nothing_to_compare_with(tiny_model_dir):
    with pytest.raises(InputError, match="compares a model with its base") as raised:
        evaluate(str(tiny_model_dir), "preference", PAIRS)
    assert "--base-model" in raised.value.hint


def test_sums_are_over_tokens_and_the_base_is_the_other_model(tokenizer):
    model, base = random_model("llama"), random_model("llama")
    update_(model, Update(0.0, (Term(3, 0.05),), 0))
    examples = rendered(PAIRS, tokenizer)
    h = []
    for one in examples:
        ratios = []
        for tokens in one.candidate_tokens:
            per_token = [
                float(candidate_logprobs(engine_of(net, 0), [_alone(one, tokens)])[0, 0, 0]) for net in (model, base)
            ]
            ratios.append(len(tokens) * (per_token[0] - per_token[1]))
        h.append(ratios[0] - ratios[1])
    result = evaluate(model, "preference", PAIRS, tokenizer=tokenizer, base=base)
    # float32 log-probabilities in other batches: 1e-5 apart, times at most 5 tokens.
    assert result.metrics["metric/margin"] == pytest.approx(sum(h) / len(h), abs=1e-4)
    assert result.score == pytest.approx(sum(sigmoid(0.5 * x) for x in h) / len(h), abs=1e-4)
    assert result.metrics["metric/share"] == sum(x > 0 for x in h) / len(h) and 0 < result.metrics["metric/share"] < 1


def _alone(example, tokens):
    from dataclasses import replace

    return replace(example, candidates=("",), candidate_tokens=(tokens,))


def test_tuning_raises_the_share_of_held_out_pairs(tmp_path, tokenizer):
    run = ZOTrainer(
        random_model("llama"),
        objective="preference",
        args=ZOConfig(
            str(tmp_path / "run"), use_cpu=True, disable_tqdm=True, max_steps=20, per_device_train_batch_size=8,
            noise="low-rank", num_directions=4, eps=1e-2, learning_rate=1e-2, normalize="rms", logging_steps=5,
        ),
        train_dataset=PAIRS[:8],
        eval_dataset=PAIRS[8:],
        processing_class=tokenizer,
    )  # fmt: skip
    before = run.evaluate()
    assert before["eval_score"] == before["eval_metric/share"] == 0.5 and before["eval_metric/margin"] == 0.0
    run.train()
    after = run.evaluate()
    assert after["eval_metric/share"] >= 0.75 and after["eval_score"] > 0.55 and after["eval_metric/margin"] > 0
    logged = [log for log in run.state.log_history if "metric/share" in log]
    assert logged and all(0 <= log["metric/share"] <= 1 and log["metric/chosen_logprob"] < 0 for log in logged)
    with pytest.raises(InputError, match="the model has moved"):
        run.evaluate(PAIRS[:4])


def test_pairs_serve_objectives_that_need_no_base(tiny_model_dir):
    result = evaluate(str(tiny_model_dir), "accuracy", PAIRS)
    assert result.rows == len(PAIRS) and 0 < result.score < 1


def test_a_pair_is_a_prompt_and_two_candidates(tokenizer):
    [one, *_] = rendered(PAIRS, tokenizer)
    assert (one.prompt, one.candidates, one.reference) == ("this film was", (" good", " bad and bad"), 0)
    [other] = rendered([{"q": "a plot", "chosen": " great", "rejected": " bad"}], tokenizer, prompt="q")
    [filled] = render(
        [{"q": "plot", "chosen": " great", "rejected": " bad"}], tokenizer, needs="choices", template="a {q}"
    )
    assert other.prompt == filled.prompt == "a plot"
    assert other.prompt_tokens == filled.prompt_tokens and other.candidate_tokens == filled.candidate_tokens


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("the film was good", "the film was bad", "the film was"),
        ("the film was good and bright", "the film was good", "the film was"),
        ("a great plot", "a greatest plot", "a"),
        ("I was unhappy with it.", "I was unlucky with it.", "I was"),
        ("Cats are friendly.", "Cats are frightful.", "Cats are"),
        ("Q: why?\nAll is well", "Q: why?\nAlways", "Q: why?\n"),
        ("3.5 kg", "3.7 kg", "3."),  # no white space to step back to
        ("yes", "no", ""),
    ],
)
def test_an_implicit_prompt_is_what_both_begin_with_in_whole_words(chosen, rejected, prompt):
    tokenizer = bpe(front="<s>", bos_token="<s>")
    [example] = rendered([{"chosen": chosen, "rejected": rejected}], tokenizer)
    assert (example.prompt, *(prompt + answer for answer in example.candidates)) == (prompt, chosen, rejected)
    for text, tokens in zip((chosen, rejected), example.candidate_tokens, strict=True):
        assert example.prompt_tokens + tokens == (0, *ids(tokenizer, text))
    assert example.candidate_tokens[0] != example.candidate_tokens[1]


PAIR_OF_TEXTS = {"chosen": "the film was good", "rejected": "the film was bad"}


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_a_missing_prompt_is_found_as_where_there_is_no_column(nothing, tokenizer):
    rows = [{"prompt": "a film", **PAIR_OF_TEXTS}, {"prompt": nothing, **PAIR_OF_TEXTS}]
    assert [one.prompt for one in rendered(rows, tokenizer)] == ["a film", "the film was"]


def test_an_implicit_prompt_begins_that_of_trl():
    trl = pytest.importorskip("trl")
    for pair in ({"chosen": "the film was good", "rejected": "the film was bad"}, {"chosen": "a b", "rejected": "a c"}):
        [example] = rendered([pair], bpe(bos_token="<s>"))
        assert example.prompt == trl.extract_prompt(pair)["prompt"]


def conversation(*texts):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=False)]


@pytest.mark.parametrize("explicit", [True, False])
def test_a_conversation_is_its_text_through_the_chat_template(explicit):
    tokenizer = bpe()
    tokenizer.chat_template = CHAT
    prompt, chosen, rejected = conversation("Yes or No?"), "It was great", "It was terrible"
    answers = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    row = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
    if not explicit:
        row = {"chosen": prompt + answers[0], "rejected": prompt + answers[1]}
    [found] = rendered([row], tokenizer)
    text = {"prompt": "<user> Yes or No?\n<assistant> ", "chosen": f"{chosen}\n", "rejected": f"{rejected}\n"}
    [plain] = rendered([text], tokenizer)
    assert (found.prompt, found.candidates) == (plain.prompt, plain.candidates)
    assert (found.prompt_tokens, found.candidate_tokens) == (plain.prompt_tokens, plain.candidate_tokens)


def test_a_chat_template_writes_bos_itself():
    tokenizer = bpe(front="<s>", bos_token="<s>")
    tokenizer.chat_template = CHAT
    row = {"prompt": conversation("Yes"), "completion": conversation("", "No")[1:], "label": True}
    [chat] = rendered([row], tokenizer)
    [plain] = rendered([{"prompt": chat.prompt, "completion": chat.candidates[0], "label": True}], tokenizer)
    assert chat.candidates == ("No\n",) and plain.prompt_tokens == (0, *chat.prompt_tokens)


def test_a_prompt_beside_whole_conversations_is_a_copy_of_their_beginning():
    tokenizer = bpe()
    tokenizer.chat_template = CHAT
    whole = {"chosen": conversation("Yes or No?", "Yes"), "rejected": conversation("Yes or No?", "No")}
    [alone], [beside] = rendered([whole], tokenizer), rendered([{"prompt": "Yes or No?", **whole}], tokenizer)
    assert beside.prompt_tokens == alone.prompt_tokens and beside.candidates == ("Yes\n", "No\n")


def test_an_answer_that_is_a_text_has_its_end_once(tokenizer):
    [one] = rendered([{"prompt": "the film was", "chosen": " good", "rejected": " bad<end>"}], tokenizer)
    assert one.candidate_tokens == tuple((tokenizer.vocab[word], tokenizer.eos_token_id) for word in ("good", "bad"))


def test_labels_of_single_answers(tokenizer):
    rows = [{"prompt": "the film was", "completion": f" {word}", "label": word == "good"} for word in ("good", "bad")]
    assert [one.reference for one in rendered(rows, tokenizer)] == [0, -1]
    numbers = [{**row, "thumb": int(row.pop("label"))} for row in rows]
    assert [one.reference for one in rendered(numbers, tokenizer, label="thumb")] == [0, -1]


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("rows", "options", "error"),
    [
        ([{"prompt": "a", "chosen": "b"}], {}, "no row has the column 'rejected'"),
        ([PAIR, {"prompt": "a", "chosen": "b"}], {}, "row 2 has no answer in column 'rejected'"),
        ([{**PAIR, "chosen": ["b"]}], {}, "row 1: \\['b'\\] in the column 'chosen' is no conversation"),
        ([{**PAIR, "rejected": 3}], {}, "row 1: 3 in the column 'rejected' is no text"),
        ([{**PAIR, "prompt": conversation("a")}], {}, "the prompt .* is no text, and the answers are"),
        (
            [{"prompt": p, "completion": "b", "label": True} for p in ("a", None)],
            {},
            "row 2 has no prompt in column 'prompt'",
        ),
        ([PAIR], {"prompt": "question"}, "no row has the prompt column 'question'"),
        ([PAIR], {"shots": 1}, "preferences take no demonstrations"),
        ([{"prompt": "a", "completion": "b"}], {}, "no row has the label column 'label'"),
        ([{"completion": "b", "label": True}], {}, "no row has the prompt column 'prompt'"),
        ([{"prompt": "a", "completion": "b", "label": "good"}], {}, "label 'good' is neither true nor false"),
    ],
)
def test_rows_that_are_no_preferences(rows, options, error):
    with pytest.raises((InputError, UnknownNameError), match=error) as raised:
        check_columns(rows, needs="choices", template=None, **options)
    assert raised.value.hint


def test_conversations_need_a_chat_template(tokenizer):
    row = {"prompt": conversation("a"), "chosen": conversation("", "b")[1:], "rejected": conversation("", "c")[1:]}
    with pytest.raises(InputError, match="no chat template"):
        rendered([row], tokenizer)
