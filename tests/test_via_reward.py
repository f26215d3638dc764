"""Contract under test: `tune preference --via reward`: a head that scikit-learn would fit on what the frozen model
holds of the answers, its accuracy said before step 1, runs on what the model writes, resumed bit for bit."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from conftest import random_model
from rendering import render
from terms import term_of
from zoreward.cli import main
from zoreward.config import Prompting
from zoreward.data import prompts_of_preferences
from zoreward.journal import load_run
from zoreward.records import InputError
from zoreward.registry import get_objective
from zoreward.scoring import (
    Base,
    Generation,
    RewardHead,
    answer_states,
    base_of,
    checked_scorer,
    engine_of,
    examples_of,
    fit_head,
    preference_states,
    repeated_4,
)

pytestmark = pytest.mark.usefixtures("trials_are_kept")

GOOD, BAD = "good great lovely bright".split(), "bad awful dull terrible".split()
PAIRS = [
    {"prompt": f"{the} {film} {was}", "chosen": f" {good} and {end}", "rejected": f" {bad} and very {end}"}
    for the, film, was in (("this", "film", "was"), ("the", "plot", "is"), ("a", "film", "is"), ("the", "film", "was"))
    for good, bad, end in zip(GOOD, BAD, ("it", "not", "film", "plot"), strict=True)
]
SAME = {"prompt": "it was", "chosen": " good", "rejected": " good"}
SINGLE = [
    {"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}
    for pair in PAIRS
    for name in ("chosen", "rejected")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model_dir: Path) -> Path:
    """The rows: to fit on, of which one pair is alike; and dev rows."""
    folder = tmp_path_factory.mktemp("via-reward")
    for name, rows in (("train", [*PAIRS[:10], SAME, *PAIRS[10:12]]), ("dev", PAIRS[12:])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def words(folder: Path, tiny_model_dir: Path, tmp_path: Path) -> list[str]:
    return [
        *("tune", "preference", "--via", "reward", "--model", str(tiny_model_dir), "--device", "cpu"),
        *("--data", str(folder / "train.jsonl"), "--eval-data", str(folder / "dev.jsonl"), "--output"),
        *(str(tmp_path / "run"), "--max-new-tokens", "4", "--lr", "0.05", "--eps", "0.1", "--num-directions", "2"),
        *("--batch-size", "4", "--max-kl", "1000", "--eval-every", "1", "--max-rewinds", "0"),
    ]


@torch.no_grad()
def slow_state(model, prompt, answer):
    """By definition: one text at a time, no padding, the last layer as transformers hands it out."""
    answer = [*answer][: [*answer, 1].index(1)]  # in front of the end token
    states = model(torch.tensor([[*prompt, *answer]]), output_hidden_states=True).hidden_states[-1][0]
    return states[-max(1, len(answer)) :].double().mean(0).numpy()


def slow_states(model, examples):
    return np.array(
        [[slow_state(model, example.prompt_tokens, one) for one in example.candidate_tokens] for example in examples]
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_states_are_those_of_a_slow_loop(family, tokenizer):
    model, examples = random_model(family).eval(), render(PAIRS, tokenizer, needs="choices", template=None)
    found = preference_states(engine_of(model, 0), Base(model, adapter=False), examples, [1])
    assert found.shape == (16, 2, model.config.hidden_size)
    assert np.abs(found - slow_states(model, examples)).max() < 1e-4  # float32, in other batches


def test_an_empty_answer_is_read_at_the_end_of_its_prompt():
    model = random_model("llama").eval()
    base = Base(model, adapter=False)
    [found, ended] = answer_states(engine_of(model, 0), base, [((5, 6), ()), ((5, 6), (1, 7))], [1])
    assert np.abs(found - slow_state(model, (5, 6), ())).max() < 1e-4
    assert np.array_equal(found, ended)


def test_the_head_is_the_one_that_scikit_learn_fits(tokenizer):
    from sklearn.linear_model import LogisticRegression

    model, examples = random_model("llama").eval(), render(PAIRS, tokenizer, needs="choices", template=None)
    head = fit_head(preference_states(engine_of(model, 0), Base(model, adapter=False), examples, [1]), examples)
    states = slow_states(model, examples)
    rows = states[:, 0] - states[:, 1]
    spread = np.sqrt((rows**2).mean(0))  # of differences in both directions, whose mean is 0
    both = np.concatenate([rows, -rows]) / spread
    direct = LogisticRegression(C=head.about["C"], fit_intercept=False, tol=1e-8, max_iter=10_000)
    expected = direct.fit(both, [1] * 16 + [0] * 16).coef_[0] / spread
    assert head.weights == pytest.approx(
        expected, rel=1e-2, abs=1e-3 * np.abs(expected).max()
    )  # the solver's tolerance
    assert head.logits(states.reshape(32, -1).astype(np.float32)).mean() == pytest.approx(0, abs=1e-3)
    share = ((states[:, 0] - states[:, 1]) @ expected > 0).mean()
    assert head.right(states, [0] * 16) == share > 0.9
    assert head.right(states, [1] * 16) == 1 - share


def test_single_answers_are_good_or_bad(tokenizer):
    model, examples = random_model("llama").eval(), render(SINGLE, tokenizer, needs="choices", template=None)
    states = preference_states(engine_of(model, 0), Base(model, adapter=False), examples, [1])
    head, references = fit_head(states, examples), [example.reference for example in examples]
    right = (head.logits(states[:, 0]) > 0) == (np.array(references) == 0)
    assert head.right(states, references) == right.mean() > 0.9


def test_too_few_rows_fit_no_head(tokenizer):
    for rows in (PAIRS[:9], [{**pair, "prompt": "this film was"} for pair in PAIRS]):
        examples = render(rows, tokenizer, needs="choices", template=None)
        with pytest.raises(InputError, match=f"{len(rows)} preferences are too few to fit a reward on"):
            fit_head(np.zeros((len(rows), 2, 4), np.float32), examples)


@pytest.mark.parametrize("adapter", [True, False])
def test_members_are_scored_by_what_the_base_holds_of_what_they_wrote(adapter, tokenizer):
    """Whatever the members are, and wherever the model has moved to."""
    plain = random_model("llama").eval()
    model = copy.deepcopy(plain)
    if adapter:
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = peft.get_peft_model(model, config).eval()
    head = RewardHead(np.linspace(-1, 1, plain.config.hidden_size), 0.1, {})
    objective = replace(get_objective("preference", via="reward"), needs="completions", function=head)
    prompts = [{"prompt": pair["prompt"]} for pair in PAIRS[:6]]
    rows = examples_of(prompts, tokenizer, "completions", Prompting(), max_new_tokens=4)
    members = [(term_of(3, sign * 0.5, 1),) for sign in (1, -1)]
    scorer = checked_scorer(model, tokenizer, objective, Generation(4), rows, members)
    scorer = replace(scorer, base=base_of(model))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ("lora" in name) == adapter:
                weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)))
    scored = scorer.score(rows, members)
    texts = [[written.tokens for written in one.completions] for one in scored]
    assert texts[0] != texts[1]
    for one, own in zip(scored, texts, strict=True):
        states = [slow_state(plain, row.prompt_tokens, text) for row, text in zip(rows, own, strict=True)]
        expected = 1 / (1 + np.exp(-(np.array(states) @ head.weights + 0.1)))
        assert one.score == pytest.approx(expected.mean(), abs=1e-5)
        assert one.metrics["metric/repeated_4"] == repeated_4(own)


def test_accuracy_is_said_before_step_1_and_pairs_alike_are_left_out(words, folder, tiny_model_dir, tokenizer, capfd):
    assert main([*words, "--steps", "1"]) == 0
    told = capfd.readouterr()
    lines = (told.out + told.err).splitlines()
    [line] = [line for line in lines if line.startswith("reward head: ")]
    output = Path(words[words.index("--output") + 1])
    run, about = load_run(output), json.loads((output / "reward_head.json").read_text())
    examples = render(PAIRS[12:], tokenizer, needs="choices", template=None)
    from safetensors.numpy import load_file

    weights = load_file(output / "reward_head.safetensors")["weights"]
    states = slow_states(random_model("llama").eval(), examples)
    expected = ((states[:, 0] - states[:, 1]) @ weights > 0).mean()
    assert f"orders {expected:.1%} of 4 dev pairs rightly" in line and about["dev"] == expected
    assert "fitted on 12 in" in line and about["rows"] == 12
    assert (
        any("leaves out 1: 1 with answers that are alike" in line for line in lines) or "alike" in told.err + told.out
    )
    assert lines.index(line) < next(n for n, one in enumerate(lines) if one.startswith("step 0"))
    assert run.header["options"]["via"] == "reward" and "kl" in run.metrics[0]
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["tune"] == "lora" and config["via"] == "reward" and config["temperature"] == 1
    assert [*prompts_of_preferences([*PAIRS[:1], SAME], Prompting())] == [{"prompt": "this film was"}]


def test_a_run_that_is_resumed_is_one_that_was_not_interrupted(words, tmp_path, monkeypatch):
    whole, parted = ([*words[: words.index("--output") + 1], str(tmp_path / name)] for name in ("whole", "parted"))
    rest = words[words.index("--output") + 2 :]
    assert main([*whole, *rest, "--steps", "4"]) == 0
    assert main([*parted, *rest, "--steps", "2"]) == 0
    head = (tmp_path / "parted" / "reward_head.safetensors").read_bytes()

    def never(*args, **options):
        raise AssertionError("the head is in the run folder")

    monkeypatch.setattr("zoreward.scoring.fit_head", never)
    assert main([*parted, *rest, "--steps", "4", "--resume"]) == 0
    runs = [load_run(tmp_path / name) for name in ("whole", "parted")]
    assert [run.n_steps for run in runs] == [4, 4] and runs[0].evaluations == runs[1].evaluations
    assert [runs[0].record(n) for n in range(4)] == [runs[1].record(n) for n in range(4)]
    adapters = [(tmp_path / name / "model" / "adapter_model.safetensors").read_bytes() for name in ("whole", "parted")]
    assert adapters[0] == adapters[1] and head == (tmp_path / "whole" / "reward_head.safetensors").read_bytes()
    assert any(runs[0].has_moved_by(n) for n in range(1, 5))


def test_another_head_is_not_gone_on_with(words, tmp_path, capfd):
    assert main([*words, "--steps", "1"]) == 0
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "run" / "reward_head.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "weights": -tensors["weights"]}, path)
    capfd.readouterr()
    assert main([*words, "--steps", "2", "--resume"]) == 2
    assert "was made with head=" in capfd.readouterr().err
    path.write_bytes(b"no tensors")
    assert main([*words, "--steps", "2", "--resume"]) == 2
    assert "reward_head.safetensors is damaged" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--beta", "0.1"], "beta, form and gamma are of via=margin"),
        (["--tune", "prefix"], "--via reward takes no prefix"),
        (["--head", "classifier"], "--via reward is for causal language models"),
        (["--reward-model", "/nowhere/at/all"], "there is no reward model folder"),
        (["--limit", "5"], "5 preferences are too few to fit a reward on"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(more, message, words, tmp_path, capfd):
    assert main([*words, "--steps", "1", *more]) == 2
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line and not (tmp_path / "run").exists()


def test_it_is_for_tune_alone(folder, tiny_model_dir, capfd):
    model, data = str(tiny_model_dir), str(folder / "dev.jsonl")
    assert main(["eval", "preference", "--via", "reward", "--model", model, "--data", data]) == 2
    assert "error: --via reward is for tune" in capfd.readouterr().err
    assert main(["eval", "preference", "--reward-model", "x", "--model", model, "--data", data]) == 2
    assert "reward_model is of via=reward" in capfd.readouterr().err


def test_the_step_that_is_kept_has_not_moved_beyond_the_bound(words, tmp_path, capfd):
    free, bound = words[: words.index("--output") + 1], words.index("--max-kl") + 1
    rest = words[words.index("--output") + 2 :]
    assert main([*free, str(tmp_path / "free"), *rest, "--steps", "6"]) == 0
    run = load_run(tmp_path / "free")
    kls = [metrics["kl"] for metrics in run.metrics]
    over = next(n for n in range(2, 7) if kls[n] > 2 * max(kls[1:2]) and kls[n] == max(kls[: n + 1]))
    limit = (kls[over] + max(kls[:over])) / 2
    words[bound] = str(limit)
    capfd.readouterr()
    assert main([*words, "--steps", "6", "--json"]) == 0
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    held = load_run(tmp_path / "run")
    assert held.n_steps == over and held.metrics[-1]["kl"] > limit  # it ends there
    scores = [score for step, score in held.evaluations if held.metrics[step]["kl"] <= limit]
    assert found["kept"] == found["best_step"] == scores.index(max(scores)) < over
    assert found["best"] == max(scores)
    assert "the best" in "".join(capfd.readouterr()) or found["kept"] == held.best_step


def test_steps_are_shorter_where_the_kl_is_bounded(tokenizer):
    from zoreward.methods import make_method
    from zoreward.noise.families import family_options
    from zoreward.trainer.radius import found_rate

    model = random_model("llama").eval()
    rows = examples_of([{"prompt": "this film was"}] * 4, tokenizer, "completions", Prompting(), max_new_tokens=4)
    engine, method = engine_of(model, 0, tokenizer), make_method("spsa", **family_options("low-rank"), num_directions=2)
    of_texts = get_objective("token-f1")
    for steps, share in ((25, 3 / 4), (75, 1 / 2), (300, 1 / 5)):
        how = {"steps_after": lambda rows, steps=steps: steps, "first": 1e-2, "generation": Generation(4)}
        free, held, wide = (
            found_rate(engine, method, of_texts, rows, **how, max_kl=bound) for bound in (None, 0.05, 100.0)
        )
        # A walk of T steps with K directions goes lr √(T/K) far; so far this share of the bound is spent, by squares.
        spent = steps / 2 * held.learning_rate**2 / held.radius**2 * held.nats
        assert spent == pytest.approx(share * 0.05, rel=0.02)  # rates are rounded to three digits
        assert free.learning_rate == wide.learning_rate > held.learning_rate and free.eps == held.eps


@pytest.mark.parametrize("more", [["--tune", "full"], ["--temperature", "0"]])
def test_whole_weights_and_samples_are_tuned_and_tested_too(more, words, folder, tmp_path, capfd):
    assert main([*words, "--steps", "1", "--test-data", str(folder / "dev.jsonl"), "--json", *more]) == 0
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert told["test_rows"] == 4 and 0 < told["test"] < 1 and told["objective"] == "preference"
    assert (tmp_path / "run" / "model" / "adapter_config.json").exists() == ("full" not in more)
    assert main([*words, "--steps", "1", "--test-data", str(folder / "dev.jsonl"), *more, "--resume"]) == 0
    assert "is finished" in "".join(capfd.readouterr())


def test_a_reward_model_takes_the_place_of_a_head(words, tmp_path, tokenizer, capfd):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    judge = LlamaForSequenceClassification(
        LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=0, **sizes)
    )
    judge.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    assert main([*words, "--steps", "2", "--reward-model", str(tmp_path / "judge")]) == 0
    told = "".join(capfd.readouterr())
    run = load_run(tmp_path / "run")
    assert "reward head" not in told and not (tmp_path / "run" / "reward_head.json").exists()
    assert run.header["options"] == {"via": "reward", "reward_model": str(tmp_path / "judge")}
    completions = [{"prompt": pair["prompt"]} for pair in PAIRS[12:]]
    reward = get_objective("reward-model", reward_model=str(tmp_path / "judge"))
    from zoreward.scoring import evaluate

    expected = evaluate(
        random_model("llama").eval(),
        reward,
        completions,
        tokenizer=tokenizer,
        generation=Generation(4, temperature=1.0),
    )
    assert run.evaluations[0][1] == pytest.approx(expected.score, abs=1e-5)


def test_prompts_that_are_missing_are_found_and_single_answers_will_do(words, tmp_path, capfd):
    for name, rows in (
        ("whole", [{n: pair["prompt"] + pair[n] for n in ("chosen", "rejected")} for pair in PAIRS]),
        ("single", SINGLE),
    ):
        (tmp_path / name).with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows)))
        words[words.index("--data") + 1] = words[words.index("--eval-data") + 1] = str(tmp_path / f"{name}.jsonl")
        words[words.index("--output") + 1] = str(tmp_path / f"run-{name}")
        assert main([*words, "--steps", "1"]) == 0
        rows = load_run(tmp_path / f"run-{name}").n_steps
    told = "".join(capfd.readouterr())
    assert "of 16 dev pairs rightly" in told and "judges" in told and "of 32 dev answers rightly" in told
