"""Contract under test: with `--chat on` plain rows are conversations by the model's own chat template."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, set_seed
from transformers.utils.logging import warning_once

from rendering import check_columns, check_prompts, render, render_prompts
from test_cli import EVAL, PROMPT, folder, last_object  # noqa: F401  (a fixture)
from tiny_tokenizers import bpe, ids
from whole_models import word_tokenizer
from zoreward.cli import main
from zoreward.data import content_free_examples
from zoreward.records import InputError
from zoreward.scoring import calibrated_logprobs, candidate_logprobs, engine_of, evaluate

pytestmark = pytest.mark.usefixtures("commands_are_kept", "trials_are_kept")

# What stands in front of what the assistant says, and what the template does with it.
LINE = (
    "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
SPACE = LINE.replace(">\n{{", "> {{").replace("<assistant>\n", "<assistant> ")
TRIMS = LINE.replace("\n{{ m.content }}", "{{ m.content | trim }}").replace("<assistant>\n", "<assistant>")
KEEPS = LINE.replace("\n{{ m.content }}", "{{ m.content }}").replace("<assistant>\n", "<assistant>")
# As Mistral's: nothing for the assistant's turn, and a space in front of what it says.
BRACKETS = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>"
    "{% endif %}{% endfor %}"
)
# A template that has its reasons to write a whole conversation in another way than its beginning.
THINKS = KEEPS.replace("<assistant>", "<assistant>{% if not thinking %}<no-think>{% endif %}")
ROWS = [{"text": text, "label": i % 2} for i, text in enumerate(["a funny film", "one long string", "No?", "Maybe"])]
SST2 = {"needs": "choices", "template": "{text} It was", "choices": [" terrible", " great"], "chat": "on"}


def tokenizer_with(template):
    made = bpe(bos_token="<s>", front="<s>", eos_token="</s>", pad_token="</s>")
    made.chat_template = template
    return made


def asked(text, answer=None):
    turns = [{"role": "user", "content": text}]
    return turns + ([] if answer is None else [{"role": "assistant", "content": answer}])


@pytest.fixture(scope="module")
def model():
    set_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=320, max_position_embeddings=512, **shape)).eval()


@torch.no_grad()
def slow_sum(model, tokenizer, messages, answer, **kwargs):
    """Σ log p of an answer's tokens behind a conversation: one row, no padding, no cache."""
    begun = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, **kwargs)["input_ids"]
    said = tokenizer(answer, add_special_tokens=False)["input_ids"]
    logprobs = model(torch.tensor([begun + said])).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[len(begun) - 1 + i, token]) for i, token in enumerate(said))


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("needs", ["choices", "likelihood"])
def test_log_probabilities_are_those_of_a_plain_loop_with_the_chat_template(model, system, needs):
    tokenizer = tokenizer_with(LINE)
    examples = render(ROWS, tokenizer, **SST2 | {"needs": needs, "system_prompt": system})
    [found] = candidate_logprobs(engine_of(model, tokenizer.pad_token_id), examples)
    begun = [] if system is None else [{"role": "system", "content": system}]
    for row, means, example in zip(ROWS, found, examples, strict=True):
        answers = ["terrible", "great"] if needs == "choices" else [["terrible", "great"][row["label"]]]
        assert example.candidates == tuple(answers) and example.reference == (row["label"] if len(answers) > 1 else 0)
        for mean, answer, tokens in zip(means, answers, example.candidate_tokens, strict=True):
            expected = slow_sum(model, tokenizer, begun + asked(f"{row['text']} It was"), answer)
            assert mean * len(tokens) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("template", "text", "answers"),
    [
        (LINE, "<user>\nno</s>\n<assistant>\n", ("great", "bad")),
        (SPACE, "<user> no</s>\n<assistant> ", ("great", "bad")),
        (TRIMS, "<user>no</s>\n<assistant>", ("great", "bad")),
        (KEEPS, "<user>no</s>\n<assistant>", (" great", "bad")),
        (BRACKETS, "<s>[INST] no [/INST]", (" great", " bad")),
        (THINKS, "<user>no</s>\n<assistant><no-think>", (" great", "bad")),
    ],
    ids=["line", "space", "trims", "keeps", "brackets", "thinks"],
)
def test_an_answer_begins_where_the_assistant_s_turn_does(template, text, answers):
    tokenizer = tokenizer_with(template)
    [one] = render([{"x": "no", "label": 0}], tokenizer, **SST2 | {"template": "{x}", "choices": [" great", "bad"]})
    assert (one.prompt, one.candidates) == (text, answers)
    for answer, tokens in zip(answers, one.candidate_tokens, strict=True):
        assert one.prompt_tokens + tokens == ids(tokenizer, text + answer)
        whole = tokenizer.apply_chat_template(asked("no", answer.strip()), tokenize=False)
        if template not in (KEEPS, THINKS):
            assert whole.startswith(text + answer)


@pytest.mark.parametrize("template", [LINE, SPACE, TRIMS, KEEPS, BRACKETS])
def test_demonstrations_are_earlier_turns(template):
    tokenizer = tokenizer_with(template)
    pool = [{"text": "slow", "label": 0}]
    [one] = render(ROWS[:1], tokenizer, **SST2, shots=1, shot_rows=pool)
    said = " terrible" if template == KEEPS else "terrible"
    turns = asked("slow It was", said) + asked("a funny film It was")
    assert one.prompt == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert one.messages == tuple(turns) and one.shots == 1


def test_the_first_demonstrations_go_where_the_context_is_short():
    tokenizer = tokenizer_with(LINE)
    whole = render(ROWS, tokenizer, **SST2, shots=3)
    longest = max(len(one.prompt_tokens) + max(map(len, one.candidate_tokens)) for one in whole)
    for short in (longest - 1, longest - 40):
        examples = render(ROWS, tokenizer, **SST2, shots=3, max_length=short)
        assert any(one.shots < 3 for one in examples) and not any(one.truncated for one in examples)
        for one, full in zip(examples, whole, strict=True):
            turns = full.messages[2 * (3 - one.shots) :]
            assert one.messages == turns
            assert one.prompt == tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)


def test_calibration_takes_the_content_out_of_the_last_turn(model):
    tokenizer = tokenizer_with(THINKS)
    how = {"chat_template_kwargs": {"thinking": True}, "system_prompt": "Be brief."}
    examples = render(ROWS, tokenizer, **SST2, **how, shots=1, shot_rows=[{"text": "slow", "label": 0}])
    free = content_free_examples(
        examples,
        tokenizer,
        template=SST2["template"],
        content_free="N/A It was",
        chat_template_kwargs=how["chat_template_kwargs"],
    )
    found = calibrated_logprobs(engine_of(model, tokenizer.pad_token_id), examples, free)
    begun = [{"role": "system", "content": "Be brief."}, *asked("slow It was", " terrible")]
    for row, sums in zip(ROWS, found, strict=True):
        for answer, value in zip(SST2["choices"], sums, strict=True):
            own, without = (
                slow_sum(model, tokenizer, begun + asked(f"{text} It was"), answer, thinking=True)
                for text in (row["text"], "N/A")
            )
            assert value == pytest.approx(own - without, abs=2e-4)
    by_evaluate = evaluate(
        model,
        "accuracy",
        ROWS,
        tokenizer=tokenizer,
        **{name: value for name, value in SST2.items() if name != "needs"},
        **how,
        shots=1,
        shot_rows=[{"text": "slow", "label": 0}],
        content_free="N/A It was",
    )
    assert by_evaluate.score == np.mean(found.argmax(1) == [row["label"] for row in ROWS])


def test_a_plain_preference_is_what_the_same_messages_are():
    tokenizer = tokenizer_with(LINE)
    plain = [{"prompt": "weather?", "chosen": " Sunny.", "rejected": "No."}]
    messages = [{"prompt": asked("weather?"), "chosen": asked("", "Sunny.")[1:], "rejected": asked("", "No.")[1:]}]
    how = {"needs": "choices", "system_prompt": "Be brief."}
    [one], [other] = (render(rows, tokenizer, chat=chat, **how) for rows, chat in ((plain, "on"), (messages, "auto")))
    assert (one.prompt, one.candidates, one.candidate_tokens) == (
        other.prompt,
        other.candidates,
        other.candidate_tokens,
    )
    assert one.prompt.startswith("<system>\nBe brief.</s>\n<user>\nweather?</s>") and one.candidates[1] == "No.</s>\n"


def test_a_prompt_to_write_behind_is_what_the_same_messages_are():
    tokenizer = tokenizer_with(LINE)
    [one] = render_prompts([{"q": "weather?"}], tokenizer, template="{q}", chat="on", system_prompt="Be brief.")
    [other] = render_prompts([{"prompt": asked("weather?")}], tokenizer, system_prompt="Be brief.")
    assert (one.prompt, one.prompt_tokens, one.messages) == (other.prompt, other.prompt_tokens, other.messages)
    assert one.messages[0] == {"role": "system", "content": "Be brief."}
    begun = [{"role": "system", "content": "My own."}, *asked("weather?")]
    [own] = render_prompts([{"prompt": begun}], tokenizer, system_prompt="Be brief.", chat="off")
    assert own.messages == tuple(begun)


@pytest.mark.parametrize("chat", ["auto", "off"])
def test_otherwise_prompts_are_raw_and_one_line_says_so(chat, caplog):
    warning_once.cache_clear()
    for _ in range(2):
        made = [render(ROWS, tokenizer_with(template), **SST2 | {"chat": chat}) for template in (None, LINE)]
        assert made[0] == made[1] and made[0][0].prompt == "a funny film It was" and made[0][0].messages is None
        render_prompts([{"prompt": "x"}], tokenizer_with(LINE), chat=chat)
        render_prompts([{"prompt": asked("x")}], tokenizer_with(LINE), chat=chat)
    told = [record.getMessage() for record in caplog.records if "chat template" in record.getMessage()]
    assert len(told) == (chat == "auto") and all("prompts are raw: --chat on uses it" in line for line in told)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat": "yes"}, "--chat is 'yes'"),
        ({"chat": True}, "--chat is True"),
        ({"system_prompt": "Be brief."}, "there are no conversations"),
        ({"chat": "off", "chat_template_kwargs": {"a": 1}}, "there are no conversations"),
    ],
)
def test_options_of_conversations_that_have_no_use_are_refused(options, message):
    raw = SST2 | {"chat": "auto"} | options
    attempts = [lambda: check_columns(ROWS, **raw), lambda: check_prompts(ROWS, template="{text}", **options)]
    for attempt in attempts:
        with pytest.raises(InputError, match=message) as caught:
            attempt()
        assert caught.value.hint


@pytest.mark.parametrize("kind", ["masked", "classifier", "ranker", "encoder-decoder"])
def test_models_that_take_no_turns_are_refused(kind):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = LINE
    template = "{text} It was [MASK]" if kind == "masked" else "{text}"
    with pytest.raises(InputError, match=r"--chat on: .* takes no turns") as caught:
        render(ROWS, tokenizer, **SST2 | {"template": template}, kind=kind, classes=["terrible", "great"])
    assert caught.value.hint
    with pytest.raises(InputError, match=r"--chat on: .* takes no turns"):
        render_prompts([{"prompt": "x"}], tokenizer, chat="on", kind=kind)


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def chat_folder(folder):  # noqa: F811
    """The folder of the commands, with a model beside it that has a chat template."""
    Path("chat").mkdir()
    for file in Path("model").iterdir():
        Path("chat", file.name).write_bytes(file.read_bytes())
    Path("chat", "chat_template.jinja").write_text(SPACE.replace("</s>", ""))
    return folder


def test_a_model_without_a_chat_template_is_refused_before_it_is_loaded(chat_folder, capsys, monkeypatch):
    monkeypatch.setattr("zoreward.scoring.loading.load_model", None)
    monkeypatch.setattr("zoreward.scoring.evaluation.load_model", None)
    rows = ["--data", "train.jsonl", *PROMPT]
    Path("rows").mkdir()
    for name in ("train", "dev"):
        Path("rows", f"{name}.jsonl").write_text(Path("train.jsonl").read_text())
    for words in (
        ["eval", "accuracy", "--model", "model", *rows],
        ["eval", "accuracy", "--model", "model", *rows, "--show-prompts"],
        ["tune", "accuracy", "--model", "model", *rows, "--output", "run", "--steps", "1"],
        ["bench", "sst2", "--model", "model", "--data-dir", "rows", "--dev-rows", "2", "--output", "table"],
    ):
        assert main([*words, "--chat", "on"]) == 2
        err = capsys.readouterr().err
        assert "error: --chat on: this model's tokenizer has no chat template" in err and "hint: " in err
    assert not Path("run").exists()


def test_eval_shows_and_scores_conversations(chat_folder, capsys):
    words = ["eval", "accuracy", *EVAL, "--model", "chat", "--chat", "on", "--system-prompt", "it"]
    assert main([*words, "--show-prompts", "--shots", "1"]) == 0
    shown = capsys.readouterr().out
    assert "<system> it" in shown and "→ 'great'" in shown and shown.count("<user> a") >= 6
    for more in ([], ["--calibrate"], ["--shots", "1"]):
        assert main([*words, *more, "--json"]) == 0
        assert last_object(capsys.readouterr().out)["rows"] == 5


def test_a_run_records_how_it_asks_and_goes_on_with_nothing_else(chat_folder, capsys):
    warning_once.cache_clear()
    tune = ["tune", "accuracy", "--model", "chat", "--data", "train.jsonl", *PROMPT, "--lr", "1e-3", "--eps", "1e-3"]
    assert main([*tune, "--output", "raw", "--steps", "1"]) == 0
    assert capsys.readouterr().err.count("--chat on uses it") <= 1
    Path("own.yaml").write_text("chat: on\n")  # YAML takes it for true
    on = [*tune, "--config", "own.yaml", "--output", "run"]
    assert main([*on, "--steps", "1"]) == 0, capsys.readouterr().err
    assert yaml.safe_load(Path("run", "config.yaml").read_text())["chat"] == "on"
    header = json.loads(Path("run", "journal.jsonl").read_text().splitlines()[0])
    assert '"chat": "on"' in json.dumps(header)
    for more in (["--chat", "off"], ["--system-prompt", "it"]):
        assert main([*on, "--steps", "2", "--resume", *more]) == 2
        assert ("chat" if "--chat" in more else "system_prompt") in capsys.readouterr().err
    assert main([*on, "--steps", "2", "--resume"]) == 0
    for run in ("raw", "run"):  # as it was before there was the option
        assert main(["eval", "accuracy", *EVAL, "--model", f"{run}/model", "--chat", "off"]) == 0


def test_a_table_of_conversations_is_one_of_its_own(chat_folder, capsys):
    Path("rows").mkdir()
    for name in ("train", "dev"):
        Path("rows", f"{name}.jsonl").write_text(Path("train.jsonl").read_text())
    words = ["bench", "sst2", "--model", "chat", "--data-dir", "rows", "--dev-rows", "2", "--seeds", "1"]
    words += ["--methods", "zero-shot,shots,calibrated", "--shots", "1", "--output", "table", "--device", "cpu"]
    assert main([*words, "--chat", "on"]) == 0, capsys.readouterr().err
    for more in (["--chat", "off"], ["--chat", "on", "--system-prompt", "it"]):
        assert main([*words, *more]) == 2
        assert "was begun with something else: sst2's" in capsys.readouterr().err
