"""Contract under test: how much rows help others is what autograd's gradients say, whichever way it is found."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import random_model
from zoreward.cli import main
from zoreward.config import Prompting
from zoreward.data import load_rows, write_rows
from zoreward.journal import load_run, replay
from zoreward.journal.card import write_prompting
from zoreward.members import tuned_weights, update_
from zoreward.methods import SPSA
from zoreward.records import Example, InputError, Update
from zoreward.registry import get_objective
from zoreward.scoring import Generation, engine_of, examples_of, load_model, readout_influence
from zoreward.trainer import ZOConfig, ZOTrainer
from zoreward.trainer.fuzzy_gradients import influence, row_slopes, tried_scorer

pytestmark = pytest.mark.usefixtures("trials_are_kept")

TEMPLATE, CHOICES = "{text} it was", [" good", " bad"]
TEXTS = ["a great film", "an awful plot", "lovely and bright", "not very good", "dull", "the film is terrible"]
ROWS = [{"text": text, "label": n % 2} for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def examples(tokenizer: Any) -> list[Example]:
    return examples_of(ROWS, tokenizer, "choices", Prompting(template=TEMPLATE, choices=CHOICES), max_new_tokens=4)


def gradients_of(model: Any, examples: list[Example], *, among: bool, only: str = "") -> torch.Tensor:
    """Autograd's of each row's log-probability of the right answer, among the answers or among all tokens."""
    named = [weight.requires_grad_(True) for name, weight in model.named_parameters() if only in name]
    found = []
    for example in examples:
        logits = model(torch.tensor([example.prompt_tokens])).logits[0, -1]
        targets = [request.target[0] for request in example.requests]
        score = (logits[targets] if among else logits).log_softmax(-1)
        score = score[example.reference if among else targets[example.reference]]
        grads = torch.autograd.grad(score, named, allow_unused=True)
        found.append(
            torch.cat(
                [torch.zeros_like(w).flatten() if g is None else g.flatten() for g, w in zip(grads, named, strict=True)]
            )
        )
    model.requires_grad_(False)
    return torch.stack(found).double()


def slopes_of(model: Any, tokenizer: Any, examples: list[Example], method: SPSA, name: str) -> np.ndarray:
    ways, tuned = method.directions.fresh(0), tuned_weights(model)
    scorer = tried_scorer(model, tokenizer, get_objective(name), Generation(), examples, ways, tuned=tuned)
    return row_slopes(scorer, examples, ways, method.eps)


@pytest.mark.parametrize("rank", [0, 1])
def test_slopes_are_inner_products_of_gradients_with_directions(
    rank: int, tokenizer: Any, examples: list[Example]
) -> None:
    model = random_model("llama").double()
    exact = gradients_of(model, examples, among=True)
    method = SPSA(eps=3e-4, num_directions=3, rank=rank)

    slopes = slopes_of(model, tokenizer, examples, method, "neg-cross-entropy")

    base = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    for k, way in enumerate(method.directions.fresh(0)):
        moved = copy.deepcopy(model)
        update_(moved, Update(0.0, (way,), rounding_seed=0))
        z = torch.cat([weight.detach().flatten() for weight in moved.parameters()]) - base
        assert slopes[:, k] == pytest.approx((exact @ z).numpy(), rel=3e-3, abs=0.03)


def test_of_many_directions_the_influence_is_the_inner_product_within_its_error() -> None:
    draw = np.random.default_rng(0)
    gradients, others = draw.normal(size=(40, 60)) + 0.3, draw.normal(size=(8, 60)) + 0.3
    z = draw.normal(size=(60, 2000))

    found = influence(gradients @ z, (others @ z).mean(0))

    wanted, lengths = gradients @ others.mean(0), np.linalg.norm(gradients, axis=1)
    away = (found.dot_N - wanted) / found.error_N
    assert 0.6 < np.sqrt(np.square(away).mean()) < 1.6 and np.abs(away).max() < 5
    assert found.error_N.max() < 0.2 * np.abs(wanted).max()
    assert found.norm_N == pytest.approx(lengths, rel=0.06)
    cosines = wanted / lengths / np.linalg.norm(others.mean(0))
    assert found.cosine_N == pytest.approx(cosines, abs=0.1) and cosines.std() > 0.1


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2"])
def test_a_readout_is_the_last_layer_s_gradient(family: str, tokenizer: Any) -> None:
    model = random_model(family)
    prompting = Prompting(template="{text} it was", answer=" {right}")
    rows = [{**row, "right": ["good", "bad and dull"][n % 2]} for n, row in enumerate(ROWS)]
    examples = examples_of(rows, tokenizer, "likelihood", prompting, max_new_tokens=4)
    head = model.get_output_embeddings()
    grads = []
    for example in examples:
        [request] = example.requests
        with torch.no_grad():
            ids = torch.tensor([[*request.prompt, *request.target[:-1]]])
            states = model.base_model(ids).last_hidden_state[0, -len(request.target) :]
        weight = head.weight.detach().clone().requires_grad_(True)
        score = (states @ weight.T).log_softmax(-1)[range(len(request.target)), list(request.target)].mean()
        grads.append(torch.autograd.grad(score, weight)[0].flatten())
    exact = torch.stack(grads)

    dots, norms, length = readout_influence(engine_of(model, tokenizer.pad_token_id), examples[:4], examples[4:])

    assert dots == pytest.approx((exact[:4] @ exact[4:].mean(0)).numpy(), rel=1e-3, abs=1e-4)
    assert norms == pytest.approx(exact[:4].norm(dim=1).numpy(), rel=1e-3)
    assert length == pytest.approx(float(exact[4:].mean(0).norm()), rel=1e-3)


# The command.


@pytest.fixture(scope="module")
def files(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("influence")
    write_rows(
        folder / "train.jsonl", [*ROWS, {"text": "a bright film", "label": 0}, {"text": "a bright film", "label": 1}]
    )
    write_rows(folder / "dev.jsonl", [{"text": "a bright film", "label": 0}])
    return {"model": str(tiny_model_dir), "train": str(folder / "train.jsonl"), "dev": str(folder / "dev.jsonl")}


def words(files: dict[str, str], output: Path, *more: str) -> list[str]:
    prompt = ["--template", TEMPLATE, "--choice", " good", "--choice", " bad"]
    rows = ["--data", files["train"], "--for", files["dev"], "--model", files["model"]]
    return ["influence", *rows, *prompt, "--output", str(output), "--json", *more]


@pytest.mark.parametrize("more", [(), ("--noise", "dense", "--eps", "1e-3"), ("--method", "readout")])
def test_the_same_row_helps_most_and_its_opposite_harms(
    more: tuple[str, ...], files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = () if "readout" in more else ("--directions", "64")
    assert main(words(files, tmp_path / "o.jsonl", *more, *count)) == 0

    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == 8 and told["for_rows"] == 1 and told["helpful"] >= 1 and told["harmful"] >= 1
    lines = load_rows(tmp_path / "o.jsonl")
    assert [line["columns"] for line in lines] == load_rows(files["train"])
    assert [line["row"] for line in lines] == list(range(1, 9))
    same, opposite = lines[-2], lines[-1]
    assert same["cosine"] == pytest.approx(1.0) and same["influence"] == max(line["influence"] for line in lines)
    if "readout" not in more:  # of all tokens two answers are not each other's opposites
        assert opposite["cosine"] < -0.9
    assert same["influence"] == pytest.approx(same["norm"] ** 2, rel=1e-3)


def test_along_a_run_rows_are_compared_where_it_was(
    files: dict[str, str], tokenizer: Any, examples: list[Example], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ZOConfig(
        str(tmp_path / "run"), max_steps=4, eps=1e-3, learning_rate=0.3, num_directions=2, rank=1, noise="low-rank",
        template=TEMPLATE, choices=CHOICES, use_cpu=True, report_to="none", per_device_train_batch_size=4, momentum=0.5,
    )  # fmt: skip
    model = load_model(files["model"], dtype="float32")
    ZOTrainer(model, "neg-cross-entropy", args=args, train_dataset=ROWS, processing_class=tokenizer).train()
    capsys.readouterr()

    assert main(words(files, tmp_path / "o.jsonl", "--along", str(tmp_path / "run"), "--directions", "4")) == 0

    told = json.loads(capsys.readouterr().out)
    assert (told["steps"], told["directions"], told["eps"]) == (2, 4, 1e-3)
    run, found = load_run(tmp_path / "run"), []
    every = examples_of(
        [*load_rows(files["train"]), *load_rows(files["dev"])], tokenizer, "choices",
        Prompting(template=TEMPLATE, choices=CHOICES), max_new_tokens=4,
    )  # fmt: skip
    for step in (0, 2):
        at = replay(run, load_model(files["model"], dtype="float32"), step=step)
        drawn = SPSA(eps=1e-3, num_directions=2, rank=1, seed=args.seed).directions.fresh(step)
        scorer = tried_scorer(
            at, tokenizer, get_objective("neg-cross-entropy"), Generation(), every, drawn, tuned=tuned_weights(at)
        )
        found.append(row_slopes(scorer, every, drawn, 1e-3))
    slopes = np.concatenate(found, axis=1)
    wanted = influence(slopes[:-1], slopes[-1])
    assert [line["influence"] for line in load_rows(tmp_path / "o.jsonl")] == pytest.approx(
        wanted.dot_N.tolist(), rel=1e-4
    )


def test_choices_that_the_model_was_tuned_with_are_compared_as_typed_ones_are(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(files["model"], tmp_path / "tuned")
    write_prompting(tmp_path / "tuned", {"template": TEMPLATE, "choices": CHOICES})
    line = ["influence", "--model", str(tmp_path / "tuned"), "--data", files["train"], "--for", files["dev"], "--json"]
    assert main([*line, "--directions", "2", "--eps", "0.01", "--output", str(tmp_path / "o.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out)["objective"] == "neg-cross-entropy"


def test_texts_are_scored_too_and_what_is_left_out_is_null(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "def some(completions, text, **_):\n"
        "    return [None if one == 'dull' else float(sum(map(ord, c))) for c, one in zip(completions, text)]\n"
    )
    line = ["influence", "--data", files["train"], "--for", files["train"], "--model", files["model"], "--json"]
    line += ["--template", TEMPLATE, "--objective", f"{tmp_path}/mine.py:some", "--max-new-tokens", "2"]

    assert main([*line, "--directions", "4", "--eps", "0.3", "--output", str(tmp_path / "o.jsonl")]) == 0

    told = json.loads(capsys.readouterr().out)
    assert told["unscored"] == 1 and told["for_rows"] == 8 and told["for_unscored"] == 1
    lines = load_rows(tmp_path / "o.jsonl")
    assert [line["columns"]["text"] for line in lines if line["influence"] is None] == ["dull"]
    assert any(line["influence"] for line in lines)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (("--objective", "f1"), "'f1' gives one number for all rows"),
        (("--method", "readout", "--directions", "8"), "--directions has no use with --method readout"),
        (("--method", "readout", "--along", "runs/a"), "--along has no use with --method readout"),
        (("--along", "runs/a", "--noise", "dense"), "--noise and --along say two things"),
        (("--along", "runs/a", "--dtype", "bfloat16"), "--dtype and --along say two things"),
        (("--along", "runs/none"), "runs/none"),
        (("--eps", "0"), "--eps"),
        (("--directions", "1"), "1 is less than 2"),
        (("--objective", "accuracy", "--eps", "1e-9", "--directions", "4"), "no row's score differs between members"),
        (("--for", "none.jsonl"), "none.jsonl"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    more: tuple[str, ...], what: str, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(files, tmp_path / "o.jsonl", *more)) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert what in told[0] and len(told) <= 2
    assert not (tmp_path / "o.jsonl").exists()


def test_a_readout_is_of_causal_models(tokenizer: Any, examples: list[Example]) -> None:
    with pytest.raises(InputError, match="one of causal models"):
        readout_influence(engine_of(random_model("bert"), tokenizer.pad_token_id), examples, examples)


@pytest.mark.parametrize("more", [{"logits_scaling": 4.0}, {"final_logit_softcapping": 5.0}])
def test_a_readout_of_logits_that_are_not_the_last_layer_s_is_refused(
    more: dict[str, float], tokenizer: Any, examples: list[Example]
) -> None:
    import transformers as hf

    import families

    size = {**families.HEADS, "vocab_size": len(tokenizer), "tie_word_embeddings": False, **more}
    if "logits_scaling" in more:
        model: Any = hf.GraniteForCausalLM(hf.GraniteConfig(**size))
    else:
        model = hf.Gemma2ForCausalLM(hf.Gemma2Config(**size, head_dim=8))
    engine = engine_of(model.eval().requires_grad_(False), tokenizer.pad_token_id)
    with pytest.raises(InputError, match="scales or caps what its last layer gives"):
        readout_influence(engine, examples[:4], examples[4:])
