"""Contract under test: what `Packer` reads from rows in lines is what is read from rows padded on the left.

On a CPU a pass runs as it is; on a GPU it is captured once and replayed, and must give the same.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from conftest import random_model
from families import HEADS, with_logit
from terms import term_of
from zoreward.members import HeldCopies, by_layer, in_blocks, limited, smallest, tuned_weights, update_
from zoreward.records import Example, ObjectiveError, Term, Update
from zoreward.scoring import Packer, candidate_logprobs, checked_engine, engine_of
from zoreward.scoring.packing import packed

FAMILIES = ["llama", "llama-tied", "gpt2", "opt", "qwen3"]
MEMBERS = tuple((Term(seed, sign * 0.05),) for seed in (1, 2) for sign in (1, -1))
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# Sums in another order: some 1e-6 a layer, as in test_members.
CLOSE = 1e-5


def examples_of(count: int, answers=((3,), (7,), (9,)), seed: int = 0) -> list[Example]:
    """Prompts of 1 to 40 tokens; every third row has one answer less."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 41, (count,), generator=generator).tolist()
    prompts = [tuple(torch.randint(3, 30, (length,), generator=generator).tolist()) for length in lengths]
    return [
        Example({}, "", tuple("abc"), 0, prompt, answers[: len(answers) - (n % 3 == 2)])
        for n, prompt in enumerate(prompts)
    ]


def packer_for(model, device: str) -> tuple[Packer, object]:
    reader = engine_of(model.to(device), 0)
    return Packer(reader, replays=device == "cuda"), reader


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow) if name in ("llama", "qwen3") else name for name in FAMILIES]
)
def test_packed_rows_are_read_like_padded_ones(family, device) -> None:
    model = random_model(family)
    packer, reader = packer_for(model, device)
    for step in range(4):  # as it is, captured, replayed; weights and rows change
        examples = examples_of(20, seed=step)
        members = tuple((Term(10 * step + k, 0.05),) for k in range(4))
        groups = [row.requests for row in examples]
        assert packer.suits(groups, members, None)
        expected = candidate_logprobs(reader, examples, members)
        there = np.isfinite(expected[0])
        np.testing.assert_allclose(
            packer.logprobs(groups, members), expected[:, there], rtol=0, atol=CLOSE if device == "cpu" else 1e-4
        )
        assert np.ptp(expected[:, 0, 0]) > 1e-2, "members must differ, or the comparison shows nothing"
        update_(model, Update(0.0, members[0], 0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("what", ["all", "limited", "blocks"])
def test_copies_that_stay_are_those_of_the_members_at_hand(what, device) -> None:
    model = random_model("llama-tied").to(device)
    tuned, first, second = tuned_weights(model), MEMBERS[:2], MEMBERS[2:]
    if what == "limited":
        tuned = limited(tuned, smallest(tuned, 0.5))
    elif what == "blocks":  # another block has its turn
        tuned = in_blocks(tuned, by_layer(model, tuned))
        first, second = (
            tuple(tuple(replace(term, block=block) for term in member) for member in members)
            for block, members in enumerate((first, second))
        )
    held = HeldCopies(list(tuned.slots), tuned.kernels)

    def shown() -> dict[str, torch.Tensor]:
        return {f"{m}.{name}": weight for m in (0, 1) for name, weight in of_member(m).items()}

    def of_member(m: int) -> dict[str, torch.Tensor]:
        with held.shown(m):
            return dict(model.named_parameters())

    held.fill(first)
    places = {name: weight.data_ptr() for name, weight in shown().items()}
    update_(model, Update(0.0, (Term(9, 0.1),), 3), tuned=tuned)
    held.fill(second)
    found, moves = {name: weight.clone() for name, weight in shown().items()}, held.moves
    assert moves == 1 and {name: weight.data_ptr() for name, weight in shown().items()} == places
    held = HeldCopies(list(tuned.slots), tuned.kernels)
    held.fill(second)
    assert all(torch.equal(found[name], weight) for name, weight in shown().items())
    held.fill(second[:1])
    assert held.moves == 2  # another number of members has another place


def test_rows_fill_the_lines() -> None:
    lengths = torch.randint(1, 80, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    lines = packed(lengths, 128)
    assert sorted(n for line in lines for n in line) == list(range(64))
    assert all(sum(lengths[n] for n in line) <= 128 for line in lines)
    assert len(lines) <= sum(lengths) / 128 * 1.25 + 1  # first fit of sorted lengths stays within 11/9 of the best


@pytest.mark.parametrize(
    ("examples", "members", "rows"),
    [
        (examples_of(4, ((3, 4), (7,))), MEMBERS, None),
        (examples_of(4), MEMBERS, 2),
        (examples_of(4), ((term_of(1, 0.1, 1),), (term_of(1, -0.1, 1),)), None),
        (examples_of(4), ((),), None),
        (examples_of(400), MEMBERS, None),
    ],
    ids=["two-tokens", "rows", "low-rank", "one-member", "many-tokens"],
)
def test_what_does_not_suit(examples, members, rows) -> None:
    packer, _ = packer_for(random_model("llama"), "cpu")
    assert packer.suits([row.requests for row in examples_of(4)], MEMBERS, None)
    assert not packer.suits([row.requests for row in examples], members, rows)


def test_rows_longer_than_a_sliding_window_do_not_suit() -> None:
    """Those that packing is tried on may be shorter."""
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**HEADS, sliding_window=16)).eval()
    packer, reader = packer_for(model, "cpu")
    for example in (Example({}, "", tuple("ab"), 0, tuple(range(3, 3 + n)), ((7,), (9,))) for n in (16, 17)):
        expected = candidate_logprobs(reader, [example] * 2, MEMBERS)
        groups = [example.requests] * 2
        differs = np.abs(packer.logprobs(groups, MEMBERS) - np.reshape(expected, (4, -1))).max() > 1e-4
        assert packer.suits(groups, MEMBERS, None) != differs


def test_a_model_that_reads_packed_rows_otherwise_is_found_out() -> None:
    good, examples = random_model("llama"), examples_of(8)
    reader = checked_engine(good, 0, examples, MEMBERS[:2], packer=Packer(engine_of(good, 0), replays=False))
    assert reader.packer is not None and reader.packer.problem is None

    class Sociable(type(good)):
        def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
            if attention_mask is not None and attention_mask.ndim == 4:
                attention_mask = torch.zeros_like(attention_mask).tril()  # rows of a line see each other
            return super().forward(input_ids, attention_mask, position_ids, **kwargs)

    good.__class__ = Sociable
    packer = Packer(engine_of(good, 0), replays=False)
    assert checked_engine(good, 0, examples, MEMBERS[:2], packer=packer).packer is None
    assert "logits differ" in packer.problem


def test_an_error_inside_leaves_the_rows_to_the_plain_way() -> None:
    model, examples = random_model("llama"), examples_of(8)
    reader = checked_engine(model, 0, examples, MEMBERS[:2], packer=Packer(engine_of(model, 0), replays=False))
    expected = candidate_logprobs(reader, examples, MEMBERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "get_output_embeddings", lambda: model.model.embed_tokens)
        again = candidate_logprobs(reader, examples, MEMBERS)
    assert reader.packer.problem
    np.testing.assert_allclose(again, expected, rtol=0, atol=CLOSE)


def test_numbers_that_are_lost_are_told() -> None:
    model, examples = random_model("llama"), examples_of(8)
    reader = checked_engine(model, 0, examples, MEMBERS[:2], packer=Packer(engine_of(model, 0), replays=False))
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(ObjectiveError, match="not finite"):
        candidate_logprobs(reader, examples, MEMBERS)
    assert reader.packer.problem is None


@pytest.mark.parametrize("token", [3, 31], ids=["a-candidate", "no-candidate"])
def test_a_logit_that_has_overflowed_is_told(token) -> None:
    model, examples = random_model("llama"), examples_of(8)
    reader = checked_engine(model, 0, examples, MEMBERS[:2], packer=Packer(engine_of(model, 0), replays=False))
    with_logit(model, token, float("inf"))
    with pytest.raises(ObjectiveError, match="not finite"):
        candidate_logprobs(reader, examples, MEMBERS)
    assert reader.packer.problem is None
