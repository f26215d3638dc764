"""Contract under test: KL to the base from whole distributions, what it is used for, and a base that nobody moves."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from conftest import FAMILIES, random_model
from terms import term_of
from zoreward.members import members_at, update_
from zoreward.records import InputError, Term, Update
from zoreward.scoring import base_of, engine_of, kl_to_base, weights_moved
from zoreward.trainer import ZOConfig, ZOTrainer

pytestmark = pytest.mark.usefixtures("trials_are_kept")

PROMPTS = [(5, 6), (7, 8, 9, 10, 11), (4,)]
TEXTS = [[(12, 13, 14), (15,), (16, 17)], [(20, 21), (22, 23, 24, 25), ()]]
MEMBERS = ((term_of(7, 0.05, 1),), (term_of(7, -0.05, 1),))


def slow_kl(model, base, prompts, texts) -> float:
    """Sequence by sequence, token by token, in float64, with torch's own Kullback-Leibler divergence."""
    model, base = copy.deepcopy(model).double(), copy.deepcopy(base).double()
    values = []
    for prompt, text in zip(prompts, texts, strict=True):
        for length in range(len(text)):
            ids = torch.tensor([[*prompt, *text[:length]]])
            p, q = (net(input_ids=ids).logits[0, -1].log_softmax(-1) for net in (model, base))
            values.append(float(torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True)))
    return sum(values) / len(values)


def moved(model, by: float = 0.05):
    update_(model, Update(0.0, (Term(3, by),), 0))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_kl_is_that_of_whole_distributions(family):
    model, base = moved(random_model(family)), random_model(family)
    with torch.no_grad():
        expected = slow_kl(model, base, PROMPTS, TEXTS[0])
    [found] = kl_to_base(engine_of(model, 0), base_of(base), PROMPTS, TEXTS[:1])
    # Log-probabilities in float32 are some 1e-6 apart from those in float64; KL is quadratic in larger differences.
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5) and expected > 0.01


@pytest.mark.parametrize("grouped", [True, False])
def test_each_member_has_its_own_texts_and_its_own_kl(grouped):
    from dataclasses import replace

    model = random_model("llama")
    reader = replace(engine_of(model, 0), problem=None if grouped else "asked for")
    expected = []
    for member, texts in zip(MEMBERS, TEXTS, strict=True):
        other = copy.deepcopy(model)
        update_(other, Update(0.0, member, 0))
        with torch.no_grad():
            expected.append(slow_kl(other, model, PROMPTS, texts))
    assert kl_to_base(reader, base_of(model), PROMPTS, TEXTS, MEMBERS) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_small_batches_change_nothing():
    from dataclasses import replace

    model, base = moved(random_model("llama")), base_of(random_model("llama"))
    reader = engine_of(model, 0)
    whole = kl_to_base(reader, base, PROMPTS, TEXTS[:1])
    assert kl_to_base(replace(reader, tokens=1), base, PROMPTS, TEXTS[:1]) == pytest.approx(whole, rel=1e-3)


def test_the_base_is_at_no_distance_from_itself():
    model = random_model("llama")
    base = base_of(model)
    assert kl_to_base(engine_of(model, 0), base, PROMPTS, TEXTS[:1]) == [0.0]
    assert weights_moved(engine_of(model, 0), base) == 0.0
    assert kl_to_base(engine_of(moved(model), 0), base, PROMPTS, [[(), (), ()]]) == [0.0]  # nothing was written


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_copy_of_the_base_is_not_moved_and_keeps_ties(device):
    model = random_model("llama-tied")
    base = base_of(model, device)
    before = {name: weight.clone() for name, weight in base.model.named_parameters()}
    moved(model)
    with members_at(model, (MEMBERS[0],)):
        kl_to_base(engine_of(model, 0), base, PROMPTS, TEXTS[:1])
    assert all(torch.equal(weight, before[name]) for name, weight in base.model.named_parameters())
    assert base.model.lm_head.weight is base.model.model.embed_tokens.weight
    assert base.bytes == 4 * sum(weight.numel() for weight in model.parameters())
    flat = [torch.cat([w.detach().double().flatten() for w in net.parameters()]) for net in (model, base.model)]
    expected = float((flat[0] - flat[1]).norm() / flat[1].norm())
    assert weights_moved(engine_of(model, 0), base) == pytest.approx(expected, rel=1e-6) and expected > 0


def test_an_adapter_that_is_off_is_the_base():
    peft = pytest.importorskip("peft")
    plain = random_model("llama")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(plain), config).eval()
    base = base_of(model)
    assert base.bytes == 0
    with torch.no_grad():
        expected = slow_kl(model, plain, PROMPTS, TEXTS[0])
    [found] = kl_to_base(engine_of(model, 0), base, PROMPTS, TEXTS[:1])
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5) and expected > 1e-4
    assert weights_moved(engine_of(model, 0), base) is None


# --- in a run ------------------------------------------------------------------------------------------------------

ROWS = [{"prompt": f"{a} film {b}"} for a in ("the", "a", "this") for b in ("was", "and", "is")]


def length(completions, completion_ids):
    """Longer words are better: something that a step changes."""
    return [float(sum(ids)) / 100 for ids in completion_ids]


def run(tmp_path, tokenizer, objective=length, rows=ROWS, **changes) -> ZOTrainer:
    settings = {"max_steps": 2, "per_device_train_batch_size": 3, "num_directions": 2, "max_completion_length": 4}
    settings |= {"learning_rate": 1e-2, "eps": 2e-2, "logging_steps": 1, "completions_every": 0, **changes}
    return ZOTrainer(
        random_model("llama"), objective=objective, processing_class=tokenizer, train_dataset=rows,
        args=ZOConfig(str(tmp_path / "run"), use_cpu=True, disable_tqdm=True, **settings),
    )  # fmt: skip


def test_the_penalty_is_in_the_score_and_turns_the_choice(tmp_path, tokenizer):
    plain, held = run(tmp_path / "a", tokenizer), run(tmp_path / "b", tokenizer, kl=50.0)
    plain.train(), held.train()
    first = {
        name: next(log for log in one.state.log_history if "score" in log) for name, one in (("a", plain), ("b", held))
    }
    assert first["b"]["unpenalised"] == pytest.approx(first["a"]["score"])
    assert first["b"]["score"] == pytest.approx(first["b"]["unpenalised"] - 50 * first["b"]["member_kl"])
    assert first["b"]["member_kl"] > 0 and "kl" not in first["a"]
    assert plain.last_step.update.terms != held.last_step.update.terms


def test_the_members_penalty_is_their_own_kl(tmp_path, tokenizer):
    one = run(tmp_path, tokenizer, kl=2.0, max_steps=1)
    reader, members = one.scorer.reader, one.method.ask(one.method_state).members
    one.train()
    for member, scored in zip(members, one.last_scored, strict=True):
        texts = [[written.tokens for written in scored.completions]]
        other = random_model("llama")
        update_(other, Update(0.0, member, 0))
        prompts = [row.prompt_tokens for row in one.last_rows]
        with torch.no_grad():
            expected = slow_kl(other, one.drift.base.model, prompts, texts[0])
        assert scored.metrics["member_kl"] == pytest.approx(expected, rel=1e-3, abs=1e-5)
        assert scored.score == pytest.approx(scored.metrics["unpenalised"] - 2 * scored.metrics["member_kl"], abs=1e-12)
    assert reader.model is one.model


def test_the_run_stops_at_the_log_line_that_passes_the_bound(tmp_path, tokenizer):
    free = run(tmp_path / "free", tokenizer, drift=True, max_steps=6)
    free.train()
    lines = [log for log in free.state.log_history if "kl" in log]
    assert [log["step"] for log in lines] == [1, 2, 3, 4, 5, 6] and all(log["moved"] > 0 for log in lines)
    kls = [log["kl"] for log in lines]
    peak = next(i for i in range(1, 6) if kls[i] > max(kls[:i]))
    bound = math.sqrt(kls[peak] * max(kls[:peak]))
    held = run(tmp_path / "held", tokenizer, max_kl=bound, max_steps=6)
    held.train()
    assert held.state.global_step == peak + 1 and held.drift.exceeded == pytest.approx(kls[peak])
    assert len((tmp_path / "held" / "run" / "journal.jsonl").read_text().splitlines()) == 1 + peak + 1


def test_answers_that_are_given_are_penalised_by_the_kl_behind_them(tmp_path, tokenizer):
    pairs = [{"prompt": "this film was", "chosen": " good", "rejected": " bad and bad"}] * 3
    one = run(tmp_path, tokenizer, "preference", pairs, kl=1.0, max_steps=1, noise="dense")
    one.train()
    [example, *_] = one.last_rows
    member = one.method.ask(one.method.init()).members[0]
    other = random_model("llama")
    update_(other, Update(0.0, member, 0))
    with torch.no_grad():
        expected = slow_kl(other, one.drift.base.model, [example.prompt_tokens] * 2, example.candidate_tokens)
    assert one.last_scored[0].metrics["member_kl"] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    log = next(log for log in one.state.log_history if "kl" in log)
    assert {"kl", "moved", "distinct_2", "length", "metric/share"} <= log.keys()


def test_nobody_pays_for_a_base_that_is_not_asked_for(tmp_path, tokenizer):
    assert run(tmp_path, tokenizer).drift is None
    with pytest.raises(InputError, match="no base is kept"):
        run(tmp_path, tokenizer, base_device="cpu")
