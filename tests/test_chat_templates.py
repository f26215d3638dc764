"""Contract under test: what a row or an option tells the chat template is rendered as TRL renders it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rendering import check_columns, check_prompts, render, render_prompts
from test_cli import folder  # noqa: F401  (a fixture)
from tiny_tokenizers import bpe, ids
from zoreward.cli import main
from zoreward.records import InputError

CHAT = (
    "{% if tools %}Tools:{% for tool in tools %} {{ tool.function.name }}{% endfor %}. {% endif %}"
    "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% if thinking is defined and not thinking %}<no-think>{% endif %}"
    "{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "w", "parameters": {}}}]
ASKED = [{"role": "user", "content": "weather?"}]
SUNNY, NO = ([{"role": "assistant", "content": text}] for text in ("Sunny.", "No."))
BEGINNINGS = [
    ({}, "<user> weather?\n<assistant> "),
    ({"tools": TOOLS}, "Tools: get_weather. <user> weather?\n<assistant> "),
    ({"tools": json.dumps(TOOLS * 2)}, "Tools: get_weather get_weather. <user> weather?\n<assistant> "),
    ({"tools": [], "chat_template_kwargs": None}, "<user> weather?\n<assistant> "),
    ({"chat_template_kwargs": {"thinking": True}}, "<user> weather?\n<assistant> "),
    ({"tools": TOOLS, "chat_template_kwargs": {"tools": None}}, "<user> weather?\n<assistant> "),
]


@pytest.fixture(scope="module")
def chat_tokenizer():
    found = bpe(bos_token="<s>")
    found.chat_template = CHAT
    return found


@pytest.mark.parametrize(("columns", "begun"), BEGINNINGS)
def test_the_columns_of_a_row_are_told_to_the_chat_template(chat_tokenizer, columns, begun):
    rows = [{"prompt": ASKED, "chosen": SUNNY, "rejected": NO, **columns}]
    [pair] = render(rows, chat_tokenizer, needs="choices", template=None)
    [single] = render(
        [{"prompt": ASKED, "completion": SUNNY, "label": True, **columns}],
        chat_tokenizer,
        needs="choices",
        template=None,
    )
    [free] = render_prompts([{"prompt": ASKED, **columns}], chat_tokenizer)
    assert (pair.prompt, pair.candidates) == (begun, ("Sunny.\n", "No.\n"))
    assert (single.prompt, free.prompt) == (begun, begun)
    for text, tokens in zip(pair.candidates, pair.candidate_tokens, strict=True):
        assert pair.prompt_tokens + tokens == ids(chat_tokenizer, begun + text)


@pytest.mark.parametrize(("columns", "begun"), BEGINNINGS[:3])
def test_trl_scores_the_same_tokens(chat_tokenizer, columns, begun):
    from trl.data_utils import apply_chat_template

    [pair] = render(
        [{"prompt": ASKED, "chosen": SUNNY, "rejected": NO, **columns}], chat_tokenizer, needs="choices", template=None
    )
    tools = columns.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    texts = apply_chat_template({"prompt": ASKED, "chosen": SUNNY, "rejected": NO}, chat_tokenizer, tools)
    assert (pair.prompt, *pair.candidates) == (texts["prompt"], texts["chosen"], texts["rejected"])
    for answer, tokens in zip((SUNNY, NO), pair.candidate_tokens, strict=True):  # as DPOTrainer's tokenize_fn
        whole = chat_tokenizer.apply_chat_template(ASKED + answer, tools=tools, tokenize=True, return_dict=True)
        assert pair.prompt_tokens + tokens == tuple(whole["input_ids"])


@pytest.mark.parametrize("given", [{"thinking": False}, '{"thinking": false}'])
def test_an_option_tells_the_chat_template_of_every_row(chat_tokenizer, given):
    rows = [{"prompt": ASKED}, {"prompt": ASKED, "chat_template_kwargs": {"thinking": True}}]
    examples = render_prompts(rows, chat_tokenizer, chat_template_kwargs=given)
    assert [one.prompt.endswith("<no-think>") for one in examples] == [True, False]  # the row's own wins
    pairs = [{**row, "chosen": SUNNY, "rejected": NO} for row in rows]
    # The whole conversation has no such mark, so the prompt ends where the two part: as in TRL.
    for one in render(pairs, chat_tokenizer, needs="choices", template=None, chat_template_kwargs=given):
        assert (one.prompt, one.candidates) == ("<user> weather?\n<assistant> ", ("Sunny.\n", "No.\n"))


def test_messages_may_call_tools_in_the_place_of_content(chat_tokenizer):
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": {}}}]}
    [example] = render_prompts([{"prompt": [*ASKED, called, *ASKED]}], chat_tokenizer)
    assert example.prompt == "<user> weather?\n<assistant> \n<user> weather?\n<assistant> "


@pytest.mark.parametrize(
    ("row", "given", "message"),
    [
        ({"prompt": ASKED}, "thinking=false", "--chat-template-kwargs 'thinking=false' is no JSON object"),
        ({"prompt": ASKED}, "[1]", "is no JSON object"),
        ({"prompt": "weather?"}, {"thinking": False}, "there are no conversations"),
        ({"prompt": ASKED, "tools": "get_weather"}, None, "row 1: the column 'tools' holds 'get_weather'"),
        ({"prompt": ASKED, "tools": {"a": 1}}, None, "row 1: the column 'tools' holds"),
        ({"prompt": ASKED, "chat_template_kwargs": [1]}, None, "the column 'chat_template_kwargs' holds [1]"),
    ],
)
def test_what_cannot_be_told_is_refused(chat_tokenizer, row, given, message):
    pair = {**row, "chosen": SUNNY, "rejected": NO} if row["prompt"] is ASKED else {"prompt": "a", "chosen": "b"}
    pair = {"rejected": "c", **pair}
    attempts = [lambda: render_prompts([row], chat_tokenizer, chat_template_kwargs=given)]
    attempts += [lambda: render([pair], chat_tokenizer, needs="choices", template=None, chat_template_kwargs=given)]
    if given is not None:  # without a tokenizer, before anything is loaded
        attempts += [lambda: check_prompts([row], chat_template_kwargs=given)]
        attempts += [lambda: check_columns([pair], needs="choices", template=None, chat_template_kwargs=given)]
    for attempt in attempts:
        with pytest.raises(InputError) as caught:
            attempt()
        assert message in str(caught.value) and caught.value.hint


def test_an_argument_that_is_not_the_template_s_own_is_an_error_about_the_row(chat_tokenizer):
    given = {"chat_template_kwargs": {"tokenize": True}}
    pair = {"prompt": ASKED, "chosen": SUNNY, "rejected": NO}
    with pytest.raises(InputError, match="row 1 does not fit the chat template"):
        render_prompts([{"prompt": ASKED}], chat_tokenizer, **given)
    with pytest.raises(InputError, match="row 1 does not fit the chat template"):
        render([pair], chat_tokenizer, needs="choices", template=None, **given)


def test_the_command_line_takes_json_and_its_config_a_mapping(folder, capsys):  # noqa: F811
    model = Path("chat")
    model.mkdir()
    tokenizer = bpe(bos_token="<s>")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(model)
    (model / "config.json").write_bytes(Path("model", "config.json").read_bytes())
    Path("asked.jsonl").write_text(json.dumps({"prompt": ASKED, "tools": TOOLS}))
    Path("own.yaml").write_text(yaml.safe_dump({"chat_template_kwargs": {"thinking": False}}))
    words = ["eval", "bleu", "--model", "chat", "--data", "asked.jsonl", "--show-prompts", "--max-new-tokens", "4"]
    for told in (["--chat-template-kwargs", '{"thinking": false}'], ["--config", "own.yaml"]):
        assert main([*words, *told]) == 0, capsys.readouterr().err
        out = capsys.readouterr().out
        assert "Tools: get_weather" in out and "<assistant> <no-think>" in out
    assert main([*words, "--chat-template-kwargs", "no"]) == 2
    assert "error: --chat-template-kwargs 'no' is no JSON object" in capsys.readouterr().err
