"""Contract under test: preference rows are taken as their publishers wrote them, and scored as TRL scores them.

Files of 50 rows in each layout hold rows that are of no use (answers alike, empty answers) and answers that are too
long: the first are left out, the others cut, and one line says how many.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import warning_once

import families
from rendering import check_columns, render
from tiny_tokenizers import bpe
from whole_models import word_tokenizer
from zoreward import get_objective
from zoreward.cli import main
from zoreward.members import update_
from zoreward.records import InputError, Term, Update
from zoreward.scoring import Generation, evaluate, scorer_of
from zoreward.trainer import ZOConfig, ZOTrainer

pytestmark = pytest.mark.usefixtures("trials_are_kept")

CHAT = (
    "{% if tools %}<|tools|>{{ tools | tojson }}</s>\n{% endif %}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content or '' }}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if thinking %}<think>{% endif %}{% endif %}"
)
MOST, LONG = 256, " word" * 300
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str | None) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def transcript(question: str, answer: str) -> str:
    return f"\n\nHuman: {question}\n\nAssistant: Well?\n\nHuman: Go on.\n\nAssistant:{answer}"


# Of each 50: two pairs alike, two answers that are empty, three that are too long.
ANSWERS = [
    *((" Yes.", " Yes."), (" No.", " No."), (" Yes.", ""), (" ", " No.")),
    *((LONG, " No."), (" Yes.", LONG), (" A" + LONG, " B" + LONG)),
    *((f" Yes, {n}.", f" No, {n}.") for n in range(43)),
]
TOLD = (
    "Of 50 preferences zoreward leaves out 4: 2 with an empty answer, 2 with answers that are alike. "
    "It cuts answers of 3 on the right, to fit 256 tokens."
)


def hh() -> list[dict[str, Any]]:
    return [{"chosen": transcript(f"{n}?", a), "rejected": transcript(f"{n}?", b)} for n, (a, b) in enumerate(ANSWERS)]


def hh_conversations() -> list[dict[str, Any]]:
    begun = [user("Hello?"), said("Well?"), user("Go on.")]
    return [{"chosen": [*begun, said(a)], "rejected": [*begun, said(b)]} for a, b in ANSWERS]


def ultrafeedback() -> list[dict[str, Any]]:
    """A prompt as text beside whole conversations, and other columns."""
    return [
        {
            "prompt": f"Question {n}?",
            "prompt_id": f"{n:x}",
            "chosen": [user(f"Question {n}?"), said(a)],
            "rejected": [user(f"Question {n}?"), said(b)],
            "messages": [user(f"Question {n}?"), said(a)],
            "score_chosen": 8.5,
            "score_rejected": None,
        }
        for n, (a, b) in enumerate(ANSWERS)
    ]


def ultrafeedback_of_trl() -> list[dict[str, Any]]:
    scores = {"score_chosen": 7.0, "score_rejected": 4.0}
    return [{name: row[name] for name in ("chosen", "rejected")} | scores for row in ultrafeedback()]


def with_tools() -> list[dict[str, Any]]:
    """Prompts that are messages; tools as objects, as JSON, or none; an answer that calls one."""
    rows = []
    for n, (a, b) in enumerate(ANSWERS):
        row = {"prompt": [user(f"Weather {n}?")], "chosen": [said(a)], "rejected": [said(b)]}
        row |= {
            "tools": [TOOLS, json.dumps(TOOLS), None, []][n % 4],
            "chat_template_kwargs": [None, {"thinking": True}][n % 2],
        }
        if n == 40:
            row["chosen"] = [CALLED, {"role": "tool", "content": "warm"}, said("Warm.")]
        if n == 41:
            row["chosen"] = [CALLED]
        rows.append(row)
    return rows


def doubled_prompts() -> list[dict[str, Any]]:
    """The prompt's messages stand in their own column and in front of the answers."""
    return [{"prompt": row["chosen"][:-1], **row} for row in hh_conversations()]


PAIRED = [hh, hh_conversations, ultrafeedback, ultrafeedback_of_trl, with_tools, doubled_prompts]


def kto(chat: bool, label: Any = bool) -> list[dict[str, Any]]:
    """Answers one by one: 46 with text, of which three are too long."""
    answers = [(a, True) for a, _ in ANSWERS[3:28]] + [(b, False) for _, b in ANSWERS[2:27]]
    plain = [{"prompt": f"Question {n}?", "completion": a, "label": label(good)} for n, (a, good) in enumerate(answers)]
    if not chat:
        return plain
    return [{**row, "prompt": [user(row["prompt"])], "completion": [said(row["completion"])]} for row in plain]


def chat_tokenizer() -> Any:
    tokenizer = bpe(bos_token="<s>", eos_token="</s>", pad_token="<s>")
    tokenizer.chat_template = CHAT
    return tokenizer


def made_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    size = {**families.HEADS, "vocab_size": 320, "max_position_embeddings": MOST, "pad_token_id": None}
    return LlamaForCausalLM(LlamaConfig(**size, tie_word_embeddings=False)).eval()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat-model")
    made_model().save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def lines_are_told() -> None:
    warning_once.cache_clear()


def lines_about_rows(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "preferences" in record.getMessage()]


def written(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("layout", PAIRED)
def test_pairs_in_every_layout_are_taken_without_what_is_of_no_use(layout, caplog):
    rows = layout()
    with caplog.at_level(logging.WARNING):
        examples = render(rows, chat_tokenizer(), needs="choices", max_length=MOST)
    assert [one.row for one in examples] == rows[4:]
    assert lines_about_rows(caplog) == [TOLD]
    assert max(len(one.prompt_tokens) + len(tokens) for one in examples for tokens in one.candidate_tokens) == MOST
    assert not any(one.truncated for one in examples)
    for one in examples[:2]:  # the short answer keeps its end, the long one has lost it
        short, long = sorted(one.candidate_tokens, key=len)
        assert 1 in short and 1 not in long


@pytest.mark.parametrize("chat", [False, True])
def test_single_answers_are_taken_without_what_is_of_no_use(chat, caplog):
    rows = kto(chat)
    examples = render(rows, chat_tokenizer(), needs="choices", max_length=MOST)
    assert len(examples) == 48 and {one.reference for one in examples} == {0, -1}
    assert lines_about_rows(caplog) == [
        "Of 50 preferences zoreward leaves out 2: 2 with an empty answer. "
        "It cuts answers of 4 on the right, to fit 256 tokens."
    ]


@pytest.mark.parametrize(
    ("column", "rates"), [("scores", [3.5, 1, 9.0, None]), ("ratings", [2, 1, 5, None]), ("ranks", [2, 4, 1, None])]
)
@pytest.mark.parametrize("chat", [False, True])
def test_of_rated_answers_the_best_and_the_worst_are_a_pair(column, rates, chat, caplog):
    answers = [" So so.", " No.", " Yes.", " Who knows?"]
    prompt = [user("Q?")] if chat else "Q?"
    given = [[said(answer)] for answer in answers] if chat else answers
    good = {"prompt": prompt, "completions": given, column: rates}
    rows = [good, {**good, column: [1, 1, 1, 1]}, {**good, "completions": [], column: []}]
    [one] = render(rows, chat_tokenizer(), needs="choices")
    pair = {"prompt": prompt, "chosen": given[2], "rejected": given[1]}
    [other] = render([pair], chat_tokenizer(), needs="choices")
    assert one.row == good
    assert (one.prompt_tokens, one.candidate_tokens) == (other.prompt_tokens, other.candidate_tokens)
    left_out = "Of 3 preferences zoreward leaves out 2: 1 with an empty answer, 1 with answers that are alike."
    assert lines_about_rows(caplog)[0] == left_out


@pytest.mark.parametrize("completions", ["Yes.", ["Yes."]])
def test_lists_of_rated_answers_that_do_not_fit_are_refused(completions):
    rows = [{"prompt": "Q?", "completions": completions, "scores": [1, 2]}]
    with pytest.raises(InputError, match="row 1: 'completions' and 'scores' are no lists of the same length"):
        check_columns(rows, needs="choices")


@pytest.mark.parametrize("label", [str, int, lambda good: str(int(good)), lambda good: str(good).lower()])
def test_a_label_may_be_written_as_a_csv_has_it(label):
    made = [render(kto(False, spelled), chat_tokenizer(), needs="choices") for spelled in (bool, label)]
    assert [one.reference for one in made[0]] == [one.reference for one in made[1]]


def test_a_frame_of_messages_is_rows_of_messages(tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = [{**row, "tools": TOOLS, "chat_template_kwargs": None} for row in with_tools()]
    pandas.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    frame = pandas.read_parquet(tmp_path / "rows.parquet")  # lists are numpy's arrays here
    made, expected = (render(some, chat_tokenizer(), needs="choices") for some in (frame, rows))
    assert [one.candidate_tokens for one in made[:30]] == [one.candidate_tokens for one in expected[:30]]
    assert made[0].prompt == expected[0].prompt


def test_an_answer_that_has_room_beside_its_prompt_is_whole():
    tokenizer = chat_tokenizer()
    [whole] = render([{"prompt": "Q" * 50, "chosen": " Yes.", "rejected": " No."}], tokenizer, needs="choices")
    longest = max(map(len, whole.candidate_tokens))
    room = 20
    assert longest < room // 2
    [cut] = render([whole.row], tokenizer, needs="choices", max_length=room)
    assert cut.candidate_tokens == whole.candidate_tokens  # the prompt loses its left
    assert cut.prompt_tokens == whole.prompt_tokens[longest - room :]
    [both] = render([{**whole.row, "chosen": LONG}], tokenizer, needs="choices", max_length=room)
    assert len(both.prompt_tokens) == len(both.candidate_tokens[0]) == room // 2


def test_answers_that_differ_behind_the_cut_alone_are_alike(caplog):
    rows = [{"prompt": "Q", "chosen": LONG + " Yes.", "rejected": LONG + " No."}, *ultrafeedback_plain(3)]
    assert len(render(rows, chat_tokenizer(), needs="choices", max_length=64)) == 3
    assert lines_about_rows(caplog) == ["Of 4 preferences zoreward leaves out 1: 1 with answers that are alike."]


def ultrafeedback_plain(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{n}?", "chosen": a, "rejected": b} for n, (a, b) in enumerate(ANSWERS[7 : 7 + count])]


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "Q", "chosen": "Yes", "rejected": "Yes"}],
        [{"chosen": transcript("Q", " Yes"), "rejected": transcript("Q", "")}],
        [{"chosen": [user("a"), said("b")], "rejected": [user("a")]}],
        [{"chosen": [user("a"), said("b")], "rejected": []}],
        [{"chosen": [user("a"), said("b")], "rejected": [user("b"), said("b")]}],
        [{"prompt": "Q", "completion": " ", "label": False}],
    ],
)
def test_a_file_of_which_nothing_remains_is_refused_before_a_model_is_loaded(rows):
    with pytest.raises(InputError, match="none of the 2 preferences is of use: 2 ") as refused:
        check_columns(rows * 2, needs="choices")
    assert refused.value.hint


def test_a_text_beside_answers_alone_is_the_user_s_turn():
    row = {"prompt": "Why?", "chosen": [said("Yes.")], "rejected": [said("No.")]}
    [one] = render([row], chat_tokenizer(), needs="choices")
    [other] = render([{**row, "prompt": [user("Why?")]}], chat_tokenizer(), needs="choices")
    assert (one.prompt_tokens, one.candidate_tokens) == (other.prompt_tokens, other.candidate_tokens)


def test_a_ranker_and_an_encoder_decoder_leave_out_and_cut_too(caplog):
    rows = [{"prompt": "it was", "chosen": "good", "rejected": bad} for bad in ("bad", "good", "bad film" * 20, "")]
    [short, long] = render(rows, word_tokenizer(), needs="choices", kind="ranker", max_length=10)
    assert [len(request.prompt) for request in short.requests] == [6, 6]
    assert [len(request.prompt) for request in long.requests] == [6, 10]
    front, *_, end = long.requests[1].prompt
    assert (front, end) == (short.requests[1].prompt[0], short.requests[1].prompt[-1])  # what stands around texts stays
    warning_once.cache_clear()
    [short, long] = render(rows, chat_tokenizer(), needs="choices", kind="encoder-decoder", max_length=10)
    assert [len(tokens) for tokens in long.candidate_tokens] == [len(short.candidate_tokens[0]), 10]
    assert short.candidate_tokens[1][-1] == 1 and 1 not in long.candidate_tokens[1]
    left_out = "Of 4 preferences zoreward leaves out 2: 1 with an empty answer, 1 with answers that are alike."
    assert lines_about_rows(caplog) == [f"{left_out} It cuts answers of 1 on the right, to fit 10 tokens."] * 2


def test_messages_that_the_template_does_not_take_are_left_out(caplog):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = CHAT.replace("message.content or ''", "message.content + ''")  # it knows of no calls
    examples = render(with_tools(), tokenizer, needs="choices")
    assert [one.row for one in examples] == [row for row in with_tools()[4:] if CALLED not in row["chosen"]]
    assert "2 with messages that the chat template does not take" in lines_about_rows(caplog)[0]
    with pytest.raises(InputError, match="row 1 does not fit the chat template"):
        render([row for row in with_tools() if CALLED in row["chosen"]], tokenizer, needs="choices")


# --- as TRL --------------------------------------------------------------------------------------------------------


def trl_s(rows: list[dict[str, Any]], model: Any, base: Any, folder: Path) -> tuple[list[dict[str, Any]], list[float]]:
    """The tokens that DPOTrainer makes of rows, and each row's margin of log-ratios."""
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    args = trl.DPOConfig(str(folder), use_cpu=True, bf16=False, report_to=[], max_length=None, beta=1.0)
    data = datasets.Dataset.from_list(rows)
    trainer = trl.DPOTrainer(model, base, args, train_dataset=data, processing_class=chat_tokenizer())
    margins = []
    for row in trainer.train_dataset:
        with torch.no_grad():
            trainer.compute_loss(trainer.model.eval(), trainer.data_collator([row]))
        margins.append(trainer._metrics["eval"]["rewards/margins"][-1])
    return list(trainer.train_dataset), margins


def few(layout: Any) -> list[dict[str, Any]]:
    return layout()[7:11]


def of_trl_s_columns(row: dict[str, Any]) -> dict[str, Any]:
    """Without what stands for no value, which TRL takes for one."""
    return {name: value for name, value in row.items() if value}


@pytest.mark.parametrize(
    "rows",
    [
        [
            {**row, "chosen": " So, " + row["chosen"], "rejected": " So, " + row["rejected"] + "</s>"}
            for row in ultrafeedback_plain(3)
        ],
        few(hh),
        few(hh_conversations),
        few(ultrafeedback_of_trl),
        [{**of_trl_s_columns(row), "tools": json.dumps(TOOLS)} for row in few(with_tools)[::2]],
        [{**of_trl_s_columns(row), "tools": json.dumps(TOOLS)} for row in few(with_tools)[1::2]],
    ],
    ids=["plain", "hh", "hh-conversations", "ultrafeedback", "tools", "tools-and-kwargs"],
)
def test_log_ratios_are_those_of_trl_with_the_end_of_the_answers(rows, tmp_path):
    tokenizer, base, model = chat_tokenizer(), made_model(), made_model()
    update_(model, Update(0.0, (Term(3, 0.05),), 0))
    examples = render(rows, tokenizer, needs="choices")
    margins = []
    for row in rows:
        result = evaluate(model, "preference", [row], tokenizer=tokenizer, base=base)
        margins.append(result.metrics["metric/margin"])
    tokens, expected = trl_s(rows, model, base, tmp_path)
    for one, of_trl in zip(examples, tokens, strict=True):
        for answer, name in zip(one.candidate_tokens, ("chosen_ids", "rejected_ids"), strict=True):
            assert [*one.prompt_tokens, *answer] == of_trl["prompt_ids"] + of_trl[name]
            assert 1 in answer and answer.count(1) == of_trl[name].count(1)  # the end, once a turn
    # float32: sums over some ten tokens of log-probabilities that are 1e-6 apart.
    assert margins == pytest.approx(expected, abs=1e-4) and min(map(abs, expected)) > 1e-2


def test_ipo_is_minus_the_loss_of_dpo_trainer(tmp_path):
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    rows, base, model = few(hh_conversations), made_model(), made_model()
    update_(model, Update(0.0, (Term(3, 0.05),), 0))
    how = {"use_cpu": True, "bf16": False, "report_to": [], "max_length": None}
    args = trl.DPOConfig(str(tmp_path), **how, beta=0.5, loss_type=["ipo"])
    data = datasets.Dataset.from_list(rows)
    trainer = trl.DPOTrainer(model, base, args, train_dataset=data, processing_class=chat_tokenizer())
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(list(trainer.train_dataset)))
    options = {"tokenizer": chat_tokenizer(), "base": base, "options": {"form": "ipo"}}
    found = evaluate(model, "preference", rows, **options)
    assert found.score == pytest.approx(-float(loss), abs=1e-5)
    assert found.score != pytest.approx(-1.0, abs=1e-3)  # the base's


@pytest.mark.parametrize("likelier", [True, False])
def test_kto_is_minus_the_loss_of_kto_trainer_with_its_reference_point(likelier, tmp_path):
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    rows, base, model = kto(True)[5:9] + kto(True)[30:34], made_model(), made_model()
    update_(model, Update(0.0, (Term(3, 0.05),), 0))
    model, base = (base, model) if likelier else (model, base)  # to whom answers to other prompts are likelier
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.75}
    how = {"use_cpu": True, "bf16": False, "report_to": [], "max_length": None, "per_device_train_batch_size": 8}
    args = trl.KTOConfig(str(tmp_path), **how, beta=0.5, **weights)
    data = datasets.Dataset.from_list(rows)
    trainer = trl.KTOTrainer(model, base, args, train_dataset=data, processing_class=chat_tokenizer())
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(list(trainer.train_dataset)))
    point = trainer._metrics["eval"]["kl"][-1]
    options = {"form": "kto", "beta": 0.5, **weights}
    found = evaluate(model, "preference", rows, tokenizer=chat_tokenizer(), base=base, options=options)
    assert found.metrics["metric/reference_point"] == pytest.approx(point, abs=1e-4)
    assert found.score == pytest.approx(-float(loss), abs=1e-5)
    assert point > 0.1 if likelier else point == 0


def test_members_share_the_reference_point_of_the_weights_that_the_step_begins_with():
    rows, model, base = kto(True)[5:9] + kto(True)[30:34], made_model(), made_model()
    update_(base, Update(0.0, (Term(3, 0.05),), 0))
    objective, tokenizer = get_objective("preference", form="kto"), chat_tokenizer()
    before, now = (scorer_of(one, tokenizer, objective, Generation()) for one in (base, model))
    examples = before.with_base(render(rows, tokenizer, needs="choices"))
    [alone] = now.score(examples)
    members = now.score(examples, [(Term(5, 0.05),), (Term(5, -0.05),)])
    points = [one.metrics["metric/reference_point"] for one in (alone, *members)]
    assert points[0] > 0.1 and points == pytest.approx([points[0]] * 3, abs=1e-6)
    assert abs(members[0].score - members[1].score) > 1e-4


def test_mismatched_answers_are_those_to_another_prompt():
    rows = kto(True)[5:8]
    rows = [rows[0], {**rows[1], "prompt": rows[0]["prompt"]}, rows[2]]
    scorer = scorer_of(made_model(), chat_tokenizer(), get_objective("preference", form="kto"), Generation())
    examples = scorer.with_base(render(rows, chat_tokenizer(), needs="choices"))
    for example, other in zip(examples, (2, 2, 1), strict=True):
        [(request, _)] = example.mismatched
        assert (request.prompt, request.target) == (example.prompt_tokens, examples[other].candidate_tokens[0])
    assert not get_objective("preference").reads_mismatched  # the other forms pay for none


@pytest.mark.parametrize("chat", [False, True])
def test_single_answers_have_the_tokens_of_trl(chat, tmp_path):
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    rows = kto(chat)[5:9] + kto(chat)[30:34]
    args = trl.KTOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to=[], max_length=None)
    data = datasets.Dataset.from_list(rows)
    trainer = trl.KTOTrainer(made_model(), made_model(), args, train_dataset=data, processing_class=chat_tokenizer())
    examples = render(rows, chat_tokenizer(), needs="choices")
    for one, of_trl in zip(examples, trainer.train_dataset, strict=True):
        assert [*one.prompt_tokens, *one.candidate_tokens[0]] == of_trl["prompt_ids"] + of_trl["completion_ids"]
        assert one.candidate_tokens[0][-1] == of_trl["completion_ids"][-1]


# --- from the command line, and in Python --------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [*PAIRED, lambda: kto(False), lambda: kto(True)])
def test_eval_takes_every_layout(layout, model_dir, tmp_path, capfd):
    path = written(tmp_path, layout())
    words = ["eval", "preference", "--model", str(model_dir), "--base-model", str(model_dir), "--data", path, "--json"]
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["score"] == 0.5 and json.loads(out)["rows"] in (46, 48)
    assert err.count("Of 50 preferences zoreward leaves out") == 1


@pytest.mark.parametrize("layout", [hh, ultrafeedback, with_tools, lambda: kto(False)])
def test_tune_takes_them(layout, model_dir, tmp_path, capfd):
    path = written(tmp_path, layout())
    words = ["tune", "preference", "--model", str(model_dir), "--data", path, "--eval-data", path, "--steps", "1"]
    assert main([*words, "--batch-size", "4", "--num-directions", "1", "--output", str(tmp_path / "run")]) == 0, (
        capfd.readouterr().err
    )
    assert capfd.readouterr().err.count("Of 50 preferences zoreward leaves out") == 1


def test_a_trainer_takes_them(model_dir, tmp_path):
    few = {"max_steps": 1, "per_device_train_batch_size": 4, "num_directions": 1}
    args = ZOConfig(str(tmp_path / "run"), use_cpu=True, disable_tqdm=True, **few)
    run = ZOTrainer(str(model_dir), objective="preference", args=args, train_dataset=hh(), eval_dataset=with_tools())
    run.train()
    assert 0 < run.evaluate()["eval_score"] < 1


def test_nothing_left_is_one_line(model_dir, tmp_path, capfd):
    path = written(tmp_path, [{"prompt": "Q", "chosen": "Yes", "rejected": "Yes"}] * 2)
    assert main(["tune", "preference", "--model", str(model_dir), "--data", path, "--output", str(tmp_path / "r")]) == 2
    assert capfd.readouterr().err.startswith(
        "error: none of the 2 preferences is of use: 2 with answers that are alike\nhint: "
    )
