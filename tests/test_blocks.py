"""Contract under test: by blocks, a step moves the weights of one block of layers and leaves every other bit as it is.

- A transformer layer is a block, what lies outside of them is the last one; neighbours are put together evenly.
- Members and updates of a block are those of all weights in that block, and θ itself elsewhere, bit for bit.
- A run gives each block its turn, and its journal tells which; what cannot be cut is refused.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from conftest import random_model
from families import HEADS
from terms import term_of
from test_lowrank import raw
from test_memory import DENSE, LOW, example
from test_resume import trainer
from zoreward.journal import Journal, fingerprint, read_journal, replay, weights_dtype
from zoreward.kernels import cpu
from zoreward.members import (
    HeldCopies,
    Tuned,
    adapted,
    anchored,
    by_layer,
    in_all_blocks,
    in_blocks,
    in_each_block,
    limited,
    lora_config,
    members_at,
    scratch_bytes,
    self_check,
    smallest,
    tuned_weights,
    update_,
    updates_,
)
from zoreward.members.restrictions import slots_by_members
from zoreward.noise import LowRank
from zoreward.records import InputError, StepRecord, Term, Update
from zoreward.scoring.memory import needed_memory

DTYPES = [
    *(torch.float32, torch.bfloat16),
    *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float16, torch.float64)),
]
LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|block)\.(\d+)\.")


def deep(layers: int = 5) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**HEADS, "num_hidden_layers": layers})).eval()


def cut(model: nn.Module, **options) -> Tuned:
    tuned = tuned_weights(model)
    return in_blocks(tuned, by_layer(model, tuned, **options))


# --- which weights belong to which block -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "opt", "qwen3-moe", "bert", "mamba"])
def test_a_layer_is_a_block_and_the_rest_is_the_last(family):
    model = random_model(family)
    for name, block in by_layer(model, tuned_weights(model)).items():
        layer = LAYER.search(name)
        assert block == (int(layer[1]) if layer else 2), name


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoders_layers_come_before_its_decoders(family):
    model = random_model(family)
    for name, block in by_layer(model, tuned_weights(model)).items():
        layer = LAYER.search(name)
        assert block == (int(layer[1]) + 2 * ("decoder" in name) if layer else 4), name


@pytest.mark.parametrize(
    ("count", "layers"), [(6, [0, 1, 2, 3, 4]), (4, [0, 0, 1, 1, 2]), (3, [0, 0, 0, 1, 1]), (2, [0, 0, 0, 0, 0])]
)
def test_neighbours_are_put_together(count, layers):
    model = deep()
    blocks = by_layer(model, tuned_weights(model), count)
    for layer, block in enumerate(layers):
        assert {b for name, b in blocks.items() if f"layers.{layer}." in name} == {block}
    assert {b for name, b in blocks.items() if "layers" not in name} == {count - 1}


def test_what_directions_do_not_move_has_no_turn():
    model = deep(3)
    tuned = tuned_weights(model, r"layers|\.norm")
    assert set(by_layer(model, tuned).values()) == {0, 1, 2, 3}, "dense directions move the last norm"
    assert set(by_layer(model, tuned, family=LowRank(1)).values()) == {0, 1, 2}, (
        "a vector alone would be a turn of nothing"
    )


def test_an_adapters_weights_belong_to_the_layers_that_they_adapt():
    model = random_model("gpt2")
    model = adapted(model, lora_config(model, 4, 8), 3)
    blocks = by_layer(model, tuned_weights(model))
    assert blocks and all(block == int(LAYER.search(name)[1]) for name, block in blocks.items())
    assert set(blocks.values()) == {0, 1}


@pytest.mark.parametrize(
    ("tune", "options", "error", "hint"),
    [
        ("full", {"count": 7}, "cannot be cut into 7 blocks", "Choose 2 to 6"),
        ("full", {"count": 1}, "cannot be cut into 1 blocks", "Choose 2 to 6"),
        ("head", {}, "lie in one block of layers", "method=spsa"),
        (r"layers\.3\.", {}, "lie in one block of layers", "Tune more"),
    ],
)
def test_what_cannot_be_cut_is_refused(tune, options, error, hint):
    model = deep()
    with pytest.raises(InputError, match=error) as caught:
        by_layer(model, tuned_weights(model, tune), **options)
    assert hint in caught.value.hint


def test_a_model_without_layers_is_refused():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    with pytest.raises(InputError, match="Sequential has no list of transformer layers") as caught:
        by_layer(net, tuned_weights(net))
    assert "method=spsa" in caught.value.hint


# --- updates ---------------------------------------------------------------------------------------------------------

TERMS = [
    ((Term(seed, 0.05), term_of(seed, 0.03, rank=1)), term_of(seed + 9, 0.02, rank=2, b_seed=4)) for seed in (1, 2, 3)
]


def blocked(number: int, block: int) -> Update:
    """Terms of a block's turn, and behind them an older one of its neighbour."""
    own, older = TERMS[number]
    terms = *(replace(term, block=block) for term in own), replace(older, block=(block + 1) % 3)
    return Update(0.1, terms, rounding_seed=number, anchor=0.2, block=block)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["plain", "anchor", "limits"])
def test_an_update_is_that_of_all_weights_in_its_block_and_nothing_elsewhere(dtype, kind):
    model, plain = random_model("opt").to(dtype), random_model("opt").to(dtype)
    tuned = dress(cut(model), kind)
    for number, block in enumerate((2, 0, 1)):
        update = blocked(number, block)
        if kind != "anchor":
            update = replace(update, anchor=0.0)
        before = {name: weight.detach().clone() for name, weight in tuned.weights.items()}
        update_(model, update, tuned=tuned)
        own, older = TERMS[number]
        for active, terms in ((block, own), ((block + 1) % 3, (older,)), ((block + 2) % 3, ())):
            turn = active == block
            plain.load_state_dict({name: before[name] for name in before}, strict=False)
            whole = dress(tuned_weights(plain), kind, of=tuned)
            same = Update(0.1 * turn, terms, number, update.anchor * turn)
            update_(plain, same, tuned=whole)
            for name, weight in tuned.weights.items():
                if tuned.blocks[name] == active:
                    assert raw(weight) == raw(whole.weights[name]), (name, active)
                    if active == (block + 2) % 3 or (weight.ndim != 2 and not turn):
                        assert raw(weight) == raw(before[name]), name
            assert any(
                raw(weight) != raw(before[name])
                for name, weight in tuned.weights.items()
                if tuned.blocks[name] == active
            ) == bool(terms)


def dress(tuned: Tuned, kind: str, *, of: Tuned | None = None) -> Tuned:
    """With a base, or with limits; the same as others have, if they are given."""
    if kind == "anchor":
        if of is None:
            return anchored(tuned)
        return replace(tuned, base={tuned.weights[name]: of.base[weight] for name, weight in of.weights.items()})
    if kind == "limits":
        return limited(tuned, smallest(tuned, 0.5) if of is None else of.limits)
    return tuned


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_updates_in_one_pass_are_the_updates_one_by_one(dtype):
    updates = [replace(blocked(number % 3, block), anchor=0.0) for number, block in enumerate((2, 0, 0, 1, 2))]
    one, other = random_model("gpt2").to(dtype), random_model("gpt2").to(dtype)
    for update in updates:
        update_(one, update, tuned=cut(one))
    updates_(other, updates, tuned=cut(other))
    assert [raw(weight) for weight in one.parameters()] == [raw(weight) for weight in other.parameters()]


def test_blocks_that_there_are_not_are_refused():
    model = random_model("gpt2")
    for tuned, block in ((cut(model), 3), (tuned_weights(model), 0)):
        term = Term(1, 0.5, block=block)
        for update in (Update(0.0, (term,), 0), Update(0.1, (), 0, block=block)):
            with pytest.raises(ValueError, match=f"no block {block} "):
                update_(model, update, tuned=tuned)
        with pytest.raises(ValueError, match=f"no block {block} "), members_at(model, ((term,),), tuned=tuned):
            pass


# --- members ---------------------------------------------------------------------------------------------------------


def members_of(block: int, rank: int) -> tuple[tuple[Term, ...], ...]:
    couple = tuple((term_of(1, sign * 0.1, rank, block=block),) for sign in (1, -1))
    return *couple, (), (term_of(2, 0.05, rank, block=block), term_of(3, 0.1, rank, block=(block + 1) % 3))


@pytest.mark.parametrize(
    ("family", "rank", "keep_bytes"),
    [
        ("llama-tied", 0, 0),
        ("llama-tied", 2, 0),
        ("gpt2", 0, 2**30),
        ("gpt2", 2, 2**30),
        ("t5", 0, 2**30),
        ("t5", 2, 0),
    ],
)
def test_members_are_shown_with_their_block_moved(family, rank, keep_bytes):
    model, moved, x = random_model(family), random_model(family), torch.randint(3, 30, (2, 5))
    of_moved = cut(moved)
    tuned, more = cut(model), {"decoder_input_ids": torch.tensor([[0, 5]])} if family == "t5" else {}

    def logits(of: nn.Module, count: int) -> torch.Tensor:
        repeated = {name: value.repeat(2 * count, 1) for name, value in more.items()}
        return of(input_ids=x.repeat(count, 1), **repeated).logits

    for block in (0, 2):
        members = members_of(block, rank)
        with torch.no_grad(), members_at(model, members, tuned=tuned, keep_bytes=keep_bytes):
            got = logits(model, 4).unflatten(0, (4, 2))
        for m, member in enumerate(members):
            moved.load_state_dict(model.state_dict())
            update_(moved, Update(0.0, member, 0), tuned=of_moved)  # float32 has no other rounding than its sums
            with torch.no_grad():
                expected = logits(moved, 1)
            # other blockings of the same sums, as in test_members
            torch.testing.assert_close(got[m], expected, rtol=0, atol=2e-4)
            with torch.no_grad(), members_at(model, (member,), tuned=tuned, keep_bytes=keep_bytes):
                torch.testing.assert_close(logits(model, 1), expected, rtol=0, atol=2e-4)
        assert (got[0] - got[1]).abs().max() > 0.01


def test_only_the_active_block_is_copied_and_one_member_has_its_bits(monkeypatch):
    model = random_model("opt")
    tuned, made = cut(model), []
    plain = cpu.perturb_all
    monkeypatch.setattr(cpu, "perturb_all", lambda weights, *more: made.extend(weights) or plain(weights, *more))
    for block in range(3):
        made.clear()
        member = (Term(1, 0.1, block=block),)
        with members_at(model, (member,), tuned=tuned):
            seen = {name: weight.detach().clone() for name, weight in named(model).items()}
        own = {name for name, number in tuned.blocks.items() if number == block}
        assert {id(weight) for weight, _ in made} == {id(tuned.weights[name]) for name in own}
        with members_at(model, ((Term(1, 0.1),),)):
            whole = {name: weight.detach().clone() for name, weight in named(model).items()}
        for name, weight in tuned.weights.items():
            assert raw(seen[name]) == raw(whole[name] if name in own else weight), name


def named(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights as they hang now; tied ones under their first name."""
    return {
        f"{place}.{key}": weight
        for place, module in reversed(list(model.named_modules()))
        for key, weight in module._parameters.items()
        if weight is not None
    }


def test_held_copies_are_those_of_their_block_and_plain_elsewhere():
    model = random_model("gpt2")
    tuned = cut(model)
    held = HeldCopies(list(tuned.slots), tuned.kernels)
    for block in (1, 2):
        held.fill(((Term(1, 0.1, block=block),), (Term(1, -0.1, block=block),)))
        for m, sign in enumerate((1, -1)):
            with held.shown(m):
                seen = {name: weight.detach().clone() for name, weight in named(model).items()}
            moved = random_model("gpt2")
            update_(moved, Update(0.0, (Term(1, sign * 0.1, block=block),), 0), tuned=cut(moved))
            assert {name: raw(weight) for name, weight in named(moved).items()} == {n: raw(w) for n, w in seen.items()}
    assert held.moves == 1, "a graph goes on reading them, whatever block has its turn"


class Mixing(nn.Module):
    """A stack that adds what its rows have in common, around layers of their own, behind a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[0](x) * self.scale
        return self.layers[1](x - x.mean(0))


def test_what_runs_a_member_at_a_time_in_the_trial_does_so_in_every_block():
    torch.manual_seed(0)
    model, x = Mixing(), torch.randn(3, 4)
    tuned = tuned_weights(model)
    tuned = in_blocks(tuned, {name: int(name[7]) if name[7:8].isdigit() else 2 for name in tuned.weights})

    def score(members):
        with torch.no_grad(), members_at(model, members, tuned=tuned):
            return model(x.repeat(len(members), 1)).view(len(members), len(x), -1)

    couple = ((Term(1, 0.5, block=0),), (Term(1, -0.5, block=0),))
    assert self_check(model, in_all_blocks(couple), score, tuned=tuned).problem is None
    for members in in_each_block(tuned, couple):
        assert self_check(model, members, score, tuned=tuned).problem is None, members


@pytest.mark.parametrize("members", [DENSE, LOW], ids=["dense", "low-rank"])
def test_memory_is_that_of_the_largest_block(members):
    model = random_model("llama")
    tuned = cut(model)
    whole = scratch_bytes(tuned, members)
    each = [scratch_bytes(tuned, some) for some in in_each_block(tuned, members)]
    assert len(each) == 3 and max(each) < whole and len(set(each)) > 1
    if members is DENSE:
        assert sum(each) == whole
    settings = {"rows": 2, "new_tokens": 0, "copied": 0, "device": torch.device("cpu")}
    memory = needed_memory(model, tuned, members, [example(5, 1)], **settings)
    assert memory.scratch == max(*each, scratch_bytes(tuned, ((),)))


# --- runs ------------------------------------------------------------------------------------------------------------


class Watch(TrainerCallback):
    """After each step, the blocks whose weights are others than before."""

    def __init__(self) -> None:
        self.moved: list[set[int]] = []
        self.before: dict[str, list] = {}

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.before = {name: raw(weight) for name, weight in model.named_parameters()}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        after = {name: raw(weight) for name, weight in model.named_parameters()}
        moved = {name for name in after if after[name] != self.before[name]}
        self.moved.append({int(found[1]) if (found := LAYER.search(name)) else 2 for name in moved})
        for block in self.moved[-1]:  # all of a block, or nothing
            same = {name for name in after if (int(f[1]) if (f := LAYER.search(name)) else 2) == block}
            assert same <= moved, same - moved


@pytest.mark.parametrize("every", [1, 2])
def test_a_run_moves_one_block_at_a_time_each_in_its_turn(every, tmp_path, tokenizer):
    watch = Watch()
    run = trainer(
        tmp_path, tokenizer, callbacks=[watch], method="bcd", max_steps=6 * every, eval_strategy="no",
        block_every=every if every > 1 else None,
    )  # fmt: skip
    assert run.method.blocks == 3
    run.train()
    assert all(len(moved) == 1 for moved in watch.moved), watch.moved
    turns = [block for moved in watch.moved for block in moved]
    assert turns == [turn for turn in turns[::every] for _ in range(every)]
    assert sorted(turns[: 3 * every : every]) == sorted(turns[3 * every :: every]) == [0, 1, 2]
    assert [run.method.directions.block(step) for step in range(6 * every)] == turns
    header = read_journal(tmp_path / "journal.jsonl").header
    assert header["blocks"] == by_layer(run.model, tuned_weights(run.model))
    assert header["method"]["blocks"] == 3 and header["method"]["block_every"] == every


@pytest.mark.parametrize("change", ["count", "missing", "name", "number", "gap"])
def test_a_header_whose_blocks_do_not_fit_is_refused(change, tmp_path):
    model, expected = random_model("gpt2"), "its blocks are not those of its weights"
    blocks = cut(model).blocks
    first = next(iter(blocks))
    method = {"seed": 1, "num_directions": 1, "rank": 0, "blocks": 4 if change == "count" else 3}
    changed = {
        "missing": {},
        "name": {**{name: block for name, block in blocks.items() if name != first}, "other": 0},
        "number": {**blocks, first: -1},
        "gap": {name: min(block, 1) for name, block in blocks.items()},
    }
    record_one(tmp_path, model, {"method": method, "blocks": changed.get(change, blocks)}, Update(0.0, (), 0))
    with pytest.raises(InputError, match=expected):
        read_journal(tmp_path / "journal.jsonl")


def test_a_step_of_a_block_that_the_header_has_not_is_refused(tmp_path):
    model = random_model("gpt2")
    before = [raw(weight) for weight in model.parameters()]
    record_one(tmp_path, model, {}, Update(0.0, (Term(1, 0.5, block=1),), 0, block=1))
    with pytest.raises(InputError, match="a block that the header does not tell of"):
        replay(tmp_path, model)
    assert [raw(weight) for weight in model.parameters()] == before


def record_one(folder: Path, model: nn.Module, header: dict, update: Update) -> None:
    """A journal of one step."""
    base = {"fingerprint": fingerprint(model), "dtype": weights_dtype(model), "streams": tuned_weights(model).streams}
    with Journal(folder, {**base, **header}) as journal:
        journal.append(StepRecord(0, (), update, 0.1))


def test_members_of_no_block_are_given_to_kernels_as_they_are():
    # A GPU's kernel knows members again by who they are: a model's hundreds of modules then share one script.
    slots = list(tuned_weights(random_model("llama")).slots)
    members = ((Term(1, 0.5),), (Term(1, -0.5),))
    [(own, some)] = slots_by_members(slots, members)
    assert own is members and some == slots
    assert list(slots_by_members([], members)) == []
