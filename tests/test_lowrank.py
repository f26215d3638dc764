"""Contract under test: low-rank directions, z = a·bᵀ/√r for matrices and nothing for other tensors.

- `LowRank` and `Subspace` are the formula, one float32 operation at a time; the kernels' copies and updates are those
  of the slow reference bit for bit, in every dtype, cut anywhere, mixed with dense terms; the two kernels agree.
- What no term moves and no decay takes from is not written at all.
- A member's weights and an update by the same term are the same. Tied weights have one z.
- A subspace's bases are orthonormal, those of Gram and Schmidt; they are made once and let go when none needs them.
- `members_at` shows several low-rank members without perturbed weights: logits and greedy text are those of one
  perturbed copy at a time, also in `generate` with its cache. What it cannot correct takes copies, or is refused.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import reference
from conftest import random_model
from terms import low_rank, numbers_of, term_of
from test_members import digest
from test_rounding import MOSTLY, ROUNDING_SEED, STREAM, assert_same, floats, make_weight, patterns
from zoreward.journal import Journal
from zoreward.kernels import cpu, portable
from zoreward.kernels.subspaces import Keeping
from zoreward.members import members_at, self_check, tuned_weights, update_
from zoreward.noise import Purpose, Subspace, subspace
from zoreward.noise import definition as noise
from zoreward.records import InputError, StepRecord, Term, Update

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SHAPES = [(1, 1), (4, 4), (5, 7), (3, 17), (17, 3), (0, 4), (4, 0), (13,), (), (2, 3, 5)]
# popcount − 16 of the first words of U, V and Z: from reference.py.
FROZEN = [[-1, 0, 4, 5], [5, -1, 5, -2], [-2, -5, -2, -3]]
# Ranks of every kind, a couple, dense terms between low-rank ones, a seed that both families use.
MEMBERS = [
    ((1, 1e-2, 1),),
    ((1, -1e-2, 1),),
    ((2, 0.3, 3), (2**64 - 1, -0.1), (2, 1e-3, 1), (1, 1e-2)),
    ((5, 0.25, 8),),
    # factors b by seeds of their own: the same a with another b, and one b for two a
    ((1, 1e-2, 1, 9), (1, 0.2, 1), (6, -0.1, 1, 9), (6, 0.1, 2, 9)),
    # two in one subspace, of more dimensions than some matrices have; one in another; one in none
    ((1, 0.3, 4, None, 9), (6, -0.1, 4, None, 9), (1, 0.2, 2, None, 2**64 - 1), (1, 1e-2, 4)),
]


def terms_of(member: tuple) -> tuple[Term, ...]:
    return tuple(term_of(*term) for term in member)


@pytest.fixture(params=[12, None], ids=["cut", "whole"])
def cut(request, monkeypatch):
    """Chunks and groups that end in the middle of a line."""
    if request.param:
        monkeypatch.setattr(cpu, "CHUNK", request.param)
        monkeypatch.setattr(portable, "GROUP", request.param)


# --- the definition --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (9, 2)])
def test_a_direction_is_the_formula(shape, rank):
    for seeds in ((0, None), (2**64 - 1, None), (0, 2**64 - 1), (0, None, 0), (2**64 - 1, None, 2**64 - 1)):
        got, expected = (one(seeds[0], STREAM, shape, rank, *seeds[1:]) for one in (low_rank, reference.low_rank))
        np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_a_direction_has_its_rank_its_mean_and_its_variance():
    for rank in (1, 4):
        z = np.stack([low_rank(seed, 7, (24, 20), rank).astype(np.float64) for seed in range(200)])
        sizes = np.linalg.svd(z[0], compute_uv=False)
        assert (sizes > 1e-5 * sizes[0]).sum() == rank  # the rest is float32 rounding, 2^-24 each
        # An entry's mean over 200 seeds has standard error 1/√200; over all entries, whose products of different
        # factors are uncorrelated, 1/√(200·480). E[z⁴] ≤ 9, so that of the mean square is below √8/√(200·44/2):
        # 44 numbers make a direction of rank 1. Five standard errors.
        assert abs(z.mean()) < 5 / np.sqrt(200 * 480)
        assert abs((z**2).mean() - 1) < 5 * np.sqrt(8 / (200 * 22))


def test_frozen_values():
    # √8·a and √8·b, from reference.py: whoever changes the purposes fails here, even if it is done in both places.
    assert (noise.normal(0, 0, 0, 4, Purpose.FACTOR_A) * 8**0.5).round().tolist() == [1, 3, 1, 1]
    assert (noise.normal(0, 0, 0, 4, Purpose.FACTOR_B) * 8**0.5).round().tolist() == [3, 4, 2, -3]
    drawn = [noise.normal(0, 0, 0, 4, purpose) for purpose in (Purpose.BASIS_U, Purpose.BASIS_V, Purpose.CORE)]
    assert [(some * 8**0.5).round().tolist() for some in drawn] == FROZEN


def test_a_term_carries_its_rank():
    assert Term(1, 0.5) == term_of(1, 0.5, 0) != term_of(1, 0.5, 1)
    for wrong in (-1, 1.5):
        with pytest.raises(ValueError, match="rank"):
            term_of(1, 0.5, wrong)


# --- kernels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", MOSTLY)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_copies_and_updates_equal_the_reference(dtype, shape, cut):
    weight = make_weight(shape, dtype)
    before, theta = patterns(weight), floats(weight)
    for copy, member in zip(
        cpu.perturb_all([(weight, STREAM)], [terms_of(m) for m in MEMBERS])[0], MEMBERS, strict=True
    ):
        assert_same(patterns(copy), reference.perturbed(theta, dtype, STREAM, member), dtype)
    assert patterns(weight).tobytes() == before.tobytes()
    for decay in (0.0, 0.1):
        for member in (MEMBERS[2], MEMBERS[4], MEMBERS[5]):
            moved = weight.clone()
            cpu.replay_all_([(moved, STREAM)], [Update(decay, terms_of(member), ROUNDING_SEED)])
            expected = reference.updated(theta, dtype, len(shape), STREAM, decay, member, ROUNDING_SEED)
            assert_same(patterns(moved), expected, dtype, any_zero=dtype == "float16")


def test_update_writes_a_transposed_matrix_by_its_own_index():
    weight = torch.randn(6, 5).t()
    theta = floats(weight.contiguous())
    cpu.replay_all_([(weight, STREAM)], [Update(0.0, terms_of(MEMBERS[0]), 0)])
    expected = reference.updated(theta, "float32", 2, STREAM, 0.0, MEMBERS[0], 0)
    assert_same(patterns(weight), expected, "float32")


def weights(dtype: torch.dtype, device: str = "cpu") -> list[tuple[torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in SHAPES]
    tensors += [torch.randn(7, 5, generator=generator).T, torch.randn(13, 11, generator=generator) * 1e-3]
    return [(tensor.to(dtype).to(device), stream) for stream, tensor in enumerate(tensors)]


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        *(pytest.param(other, marks=pytest.mark.slow) for other in (torch.float64, torch.float32, torch.float16)),
    ],
    ids=str,
)
def test_kernels_agree_bit_for_bit(dtype, device, cut):
    members = [terms_of(member) for member in MEMBERS]
    expected, got = cpu.perturb_all(weights(dtype), members), portable.perturb_all(weights(dtype, device), members)
    assert [[raw(copy) for copy in copies] for copies in got] == [[raw(copy) for copy in own] for own in expected]
    for terms in (members[0], members[2], members[4], members[5]):
        theirs, mine = weights(dtype), weights(dtype, device)
        cpu.replay_all_(theirs, [Update(0.1, terms, 9)])
        portable.replay_all_(mine, [Update(0.1, terms, 9)])
        assert [raw(weight) for weight, _ in mine] == [raw(weight) for weight, _ in theirs]


@pytest.mark.parametrize("kernel", [cpu, portable])
def test_factors_are_those_of_the_definition(kernel, cut):
    matrices = [(torch.empty(5, 3), 7), (torch.empty(2, 40), 2**32 - 1)]
    terms = [term_of(1, 1.0, 1), term_of(2**64 - 1, 1.0, 3), term_of(1, 1.0, 1, 8)]
    for (weight, stream), pairs in zip(matrices, kernel.factors_all(matrices, terms), strict=True):
        for term, (a, b) in zip(terms, pairs, strict=True):
            for factor, size, purpose in ((a, weight.shape[0], 2), (b, weight.shape[1], 3)):
                seed = term.family.seeds(term.seed)[purpose == 3]
                expected = reference.normal(seed, stream, range(size * term.family.rank), purpose)
                np.testing.assert_array_equal(factor.numpy(), expected.reshape(size, term.family.rank))


@pytest.mark.parametrize("kernel", [cpu, portable])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_nothing_moves_is_not_written(dtype, kernel):
    # −0 in float16 becomes +0 when it is rounded again, and writing counts up a tensor's version.
    special = torch.tensor([-0.0, 1.5, float("nan"), 6e-8]).to(dtype)
    vector, table, matrix = special.clone(), special.repeat(2, 2, 1), special.repeat(2, 1)
    before = [(raw(tensor), tensor._version) for tensor in (vector, table, matrix)]
    kernel.replay_all_([(vector, 1), (table, 2), (matrix, 3)], [Update(0.0, (term_of(1, 1.0, 1),), 5)])
    assert [(raw(tensor), tensor._version) for tensor in (vector, table)] == before[:2]
    assert raw(matrix) != before[2][0]
    kernel.replay_all_([(vector, 1), (table, 2)], [Update(0.25, (term_of(1, 1.0, 1),), 5)])
    assert raw(vector) == before[0][0] and raw(table) != before[1][0], "a decay takes from all but vectors"


@pytest.mark.parametrize("basis_seed", [None, 7], ids=["free", "subspace"])
def test_members_and_updates_agree_on_the_direction(basis_seed):
    model = random_model("llama-tied")
    member = (term_of(9, 0.5, 2, basis_seed=basis_seed),)
    with members_at(model, (member,)):
        shown = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        assert model.lm_head.weight is model.model.embed_tokens.weight
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    update_(model, Update(0.0, member, 0))
    for name, weight in model.named_parameters():
        assert torch.equal(weight, shown[name]), name
        assert torch.equal(weight, before[name]) == (weight.ndim != 2), name
    assert model.lm_head.weight is model.model.embed_tokens.weight


# --- members in one forward pass -------------------------------------------------------------------------------------

# Large enough that each member writes another text; ranks differ, one has two terms.
POPULATION = (
    (term_of(21, 0.1, 1),),
    (term_of(21, -0.1, 1),),
    (term_of(22, 0.1, 2),),
    (term_of(22, -0.1, 2),),
    (term_of(23, 0.07, 1), term_of(24, 0.07, 3)),
    (term_of(25, 0.1, 1, b_seed=21),),
)
NEW = 8


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts, padded on the left."""
    tokens = torch.randint(3, 30, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[0, :3], mask[1, :1] = 0, 0
    return tokens * mask, mask


def write(model, members, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens (M, 3, NEW) and their logits (M, 3, NEW, V)."""
    tokens, mask = (tensor.repeat(len(members), 1) for tensor in prompts())
    with torch.no_grad(), members_at(model, members, **options):
        out = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            output_logits=True,
            return_dict_in_generate=True,
        )
    written, logits = out.sequences[:, tokens.shape[1] :], torch.stack(out.logits, dim=1)
    return written.view(len(members), 3, NEW), logits.view(len(members), 3, NEW, -1)


def test_one_member_that_is_too_large_for_a_copy_writes_what_it_writes_on_one():
    model = random_model("llama-tied")
    expected, logits = write(model, POPULATION[:1])
    corrected, again = write(model, POPULATION[:1], keep_bytes=0)
    assert torch.equal(corrected, expected)
    # As in test_families: other blockings of the same sums, 3e-6 a layer, and z is not added to W first.
    torch.testing.assert_close(again, logits, rtol=0, atol=1e-4)
    assert not torch.equal(expected, write(model, ((),))[0])


@pytest.mark.parametrize("keep_bytes", [0, 2**30])
def test_a_dense_or_mixed_population_writes_what_its_members_write_alone(keep_bytes):
    model = random_model("gpt2")
    members = ((Term(31, 0.05),), (Term(31, -0.05),), (term_of(32, 0.1, 1), Term(33, 0.05)), (term_of(21, 0.1, 1),))
    text, logits = write(model, members, keep_bytes=keep_bytes)
    for m, member in enumerate(members):
        alone, expected = write(model, (member,))
        assert torch.equal(text[m], alone[0])
        torch.testing.assert_close(logits[m], expected[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_low_rank_members_need_no_perturbed_weights(family, monkeypatch):
    model = random_model(family)
    monkeypatch.setattr(cpu, "perturb_all", lambda weights, *_: weights and pytest.fail("weights were copied"))
    write(model, POPULATION)


def alone(net: nn.Module, *args) -> torch.Tensor:
    outputs = []
    for member in POPULATION:
        with torch.no_grad(), members_at(net, (member,)):
            outputs.append(net(*args))
    return torch.cat(outputs)


class Everything(nn.Module):
    """A position table called with one line, a subclass with a forward of its own, Conv1D, an owner around a linear
    layer, an embedding that rescales itself, flattened tokens, a weight of three dimensions."""

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Parameter(torch.randn(6, 6) / 3)
            self.inner = nn.Linear(6, 6)

        def forward(self, x):
            return self.inner(x @ self.mix)

    def __init__(self):
        super().__init__()
        self.table, self.rescaled = nn.Embedding(9, 6), nn.Embedding(9, 6, max_norm=1.0)
        self.doubled, self.conv, self.around, self.head = (
            self.Doubled(6, 6),
            Conv1D(6, 6),
            self.Around(),
            nn.Linear(6, 2),
        )
        self.experts = nn.Parameter(torch.randn(2, 6, 6) / 3)

    def forward(self, x):
        places = torch.arange(x.shape[1]).unsqueeze(0)
        y = self.around(self.conv(self.doubled(x + self.table(places)))) + self.rescaled(x.argmax(-1))
        flat = self.head(input=torch.tanh(y).reshape(-1, 6))
        return flat.view(*x.shape[:2], 2)


def test_modules_of_every_kind():
    torch.manual_seed(0)
    net = Everything()
    x = torch.randn(2, 4, 6)
    with torch.no_grad():  # max_norm rescales in place what it looks up, also without members
        net.rescaled.weight.mul_(0.1)
    expected = alone(net, x)
    for keep_bytes in (0, 2**30):
        with torch.no_grad(), members_at(net, POPULATION, keep_bytes=keep_bytes):
            got = net(x.repeat(6, 1, 1))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)  # sums of some 30 terms of size ≤ 10
    assert (expected[:2] - expected[2:4]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_stay_what_they_are(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 3)).to(dtype)
    ids = torch.randint(0, 9, (2, 4))
    with torch.no_grad(), members_at(net, POPULATION):
        got = net(ids.repeat(6, 1))
    assert got.dtype == dtype
    # Three layers of values below 4, each rounded a few times: some 8 halves of an ulp of 4.
    limit = 8 * 4 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-6  # coefficients are float32
    torch.testing.assert_close(got, alone(net, ids), rtol=0, atol=limit)


def test_weights_and_forwards_are_the_same_after_an_error_inside():
    model = random_model("llama-tied")
    before = digest(model)
    hook = model.model.layers[1].register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError), members_at(model, POPULATION):
        model(input_ids=torch.ones(6, 3, dtype=torch.long))
    hook.remove()
    assert digest(model) == before
    assert not [name for name, module in model.named_modules() if "forward" in module.__dict__]


def test_a_layer_called_with_neither_rows_nor_tokens_is_refused():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return self.linear(x[::2])

    net, x = Pooled(), torch.randn(4, 3)
    with torch.no_grad(), members_at(net, POPULATION), pytest.raises(InputError, match="no row or token"):
        net(x.repeat(6, 1))


def score(net: nn.Module, members, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), members_at(net, members):
        return net(x.repeat(len(members), *[1] * (x.ndim - 1))).reshape(len(members), len(x), -1)


def test_self_check_finds_a_weight_that_is_also_read_by_the_parent():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)

        def forward(self, x):
            return self.first(x) @ self.first.weight

    net, x = Reads(), torch.randn(2, 3)
    assert "differ" in str(self_check(net, POPULATION, lambda some: score(net, some, x)).problem)


def test_self_check_leaves_weights_in_peace_that_no_term_moves():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)

        def forward(self, x):
            return self.first(x) * self.norm.weight  # read without a call

    net, x = Unused(), torch.randn(2, 3)
    assert self_check(net, POPULATION, lambda some: score(net, some, x)).problem is None
    assert self_check(net, ((), (Term(1, 0.1),)), lambda some: score(net, some, x)).problem is not None


def test_corrected_outputs_are_those_of_weights_made_by_the_formula():
    tokens = prompts()[0]
    model = random_model("llama-tied")  # the embedding's z counts at both of its uses
    with torch.no_grad(), members_at(model, POPULATION):
        logits = model(input_ids=tokens.repeat(6, 1)).logits.view(6, 3, 6, -1)
    for m in (0, 4, 5):
        torch.testing.assert_close(logits[m], by_the_formula(POPULATION[m], tokens), rtol=0, atol=1e-4)


def by_the_formula(member, tokens: torch.Tensor) -> torch.Tensor:
    """The logits of one member, from weights that the reference moved."""
    moved = random_model("llama-tied")
    tuned = tuned_weights(moved)
    for name, weight in tuned.weights.items():
        for term in member if weight.ndim == 2 else ():
            z = reference.low_rank(term.seed, tuned.streams[name], tuple(weight.shape), *numbers_of(term))
            weight.data += term.coefficient * torch.from_numpy(z)
    with torch.no_grad():
        logits: torch.Tensor = moved(input_ids=tokens).logits
    return logits


# --- subspaces -------------------------------------------------------------------------------------------------------


def counts(seed: int, shape: tuple[int, int], purpose: int) -> np.ndarray:
    """popcount − 16: normals are these times float32(1/√8), rounded."""
    return np.rint(noise.normal(seed, 7, 0, shape[0] * shape[1], purpose) * np.sqrt(8.0)).reshape(shape)


@pytest.mark.parametrize(("size", "rank"), [(2, 1), (7, 3), (40, 39), (300, 24), (5000, 64)])
def test_a_basis_is_that_of_gram_and_schmidt(size, rank):
    for seed in range(3):
        drawn = counts(seed, (size, rank + 1), Purpose.BASIS_U)
        got, drawn = subspace.basis(drawn, rank).astype(np.float64), drawn[:, :rank]
        expected, upper = np.linalg.qr(drawn)
        expected *= np.sign(np.diag(upper))
        # Both solve with CᵀC or C in float64: κ² · 2^-53 · size is below 1e-9 while κ ≤ 1e3 (40 × 39 has the largest).
        # Then an entry x is rounded by 2^-31, and to float32 by |x| · 2^-24.
        assert np.linalg.cond(drawn) < 1e3
        scaled = np.sqrt(size) * expected
        assert (np.abs(got[:, :rank] - scaled) <= 1e-8 + 2.0**-31 + 2.0**-24 * np.abs(scaled)).all()
        assert not got[:, rank:].any()
        # A product of two columns is off by at most Σ |x·δy| + |δx·y| ≤ 2 · size · (2^-24 + 2^-31 + 1e-8).
        products = got[:, :rank].T @ got[:, :rank] / size
        assert np.abs(products - np.eye(rank)).max() < 2 * (2.0**-24 + 2.0**-31 + 1e-8)


def test_a_subspace_of_all_is_no_restriction_and_dependent_columns_are_left_out():
    whole = subspace.basis(counts(0, (3, 5), Purpose.BASIS_V), 3)
    assert np.array_equal(whole[:, :3], np.sqrt(3).astype(np.float32) * np.eye(3))
    columns = np.array([[1.0, 2.0, 3.0, 0.0], [2.0, 4.0, 1.0, 0.0], [-1.0, -2.0, 1.0, 0.0]])  # 1 ∥ 0, 3 is nothing
    turned = subspace.orthogonalising(columns.T @ columns, 3)
    found = columns @ turned
    np.testing.assert_allclose(found.T @ found, np.diag([3.0, 0, 3, 0]), rtol=0, atol=1e-13)  # 2^-48 each
    assert not turned[:, [1, 3]].any()


def test_sums_with_whole_numbers_are_exact():
    # Any order of the columns gives the same bits, which no rounded sum would.
    order = np.random.default_rng(0).permutation(64)
    drawn = counts(1, (3000, 64), Purpose.BASIS_U)
    turned = subspace.orthogonalising(drawn.T @ drawn, 3000)
    assert np.array_equal(drawn @ turned, drawn[:, order] @ turned[order])
    assert np.array_equal(drawn @ turned, sum(drawn[:, k, None] * turned[k] for k in range(64)))
    u = subspace.basis(drawn, 64).astype(np.float64)
    core = counts(2, (64, 64), Purpose.CORE)
    assert np.array_equal(u @ core, u[:, order] @ core[order])


def test_a_direction_in_a_subspace_has_mean_square_1_and_stays_in_it():
    rank, shape = 3, (24, 20)
    drawn = [counts(5, (size, rank), purpose) for size, purpose in zip(shape, (5, 6), strict=True)]
    bases = [subspace.basis(some, rank) for some in drawn]
    u, v = (one / np.sqrt(len(one)) for one in bases)
    squares = []
    for seed in range(400):
        z = low_rank(seed, 7, shape, rank, basis_seed=5).astype(np.float64)
        # Three float32 products and sums of each entry, of size ≤ 5.66² · 3, and those of the factors: 8 · 100 · 2^-24.
        assert np.abs(z - u @ (u.T @ z @ v) @ v.T).max() < 5e-5
        squares.append((z**2).mean())
    # The mean square is that of 9 numbers of Z, each of variance 1.94 (kurtosis 2.94): five standard errors.
    assert abs(np.mean(squares) - 1) < 5 * np.sqrt(1.94 / 9 / 400)


@pytest.mark.parametrize("functions", [cpu, portable], ids=["cpu", "portable"])
def test_a_basis_is_made_once_and_let_go_with_its_subspace(functions, monkeypatch):
    drawn: list[tuple[int, int]] = []
    normals = functions.normals
    monkeypatch.setattr(
        functions,
        "normals",
        lambda seed, purpose, *rest: drawn.append((seed, purpose)) or normals(seed, purpose, *rest),
    )
    kernel = Keeping(functions)
    given = [(torch.randn(6, 5), 1), (torch.randn(7, 4), 2), (torch.randn(3), 3)]
    first, second = term_of(1, 0.5, 2, basis_seed=8), term_of(2, 0.5, 2, basis_seed=9)

    def bases() -> list[int]:
        found = [seed for seed, purpose in drawn if purpose in (Purpose.BASIS_U, Purpose.BASIS_V)]
        drawn.clear()
        return found

    kernel.factors_all(given[:2], [first])
    assert bases() == [8] * 4
    kernel.perturb_all(given, [(first,), (term_of(5, 0.1, 2, basis_seed=8),), (Term(1, 0.5),)])
    kernel.replay_all_(given, [Update(0.0, (first,), 0)])
    kernel.perturb_all(given, [()])  # asks for no subspace
    assert bases() == []
    kernel.replay_all_(given, [Update(0.0, (second, first), 0)])  # both, for a while
    assert bases() == [9] * 4
    kernel.perturb_all(given, [(second,)])
    assert len(kernel._subspaces.held) == 2 and bases() == []
    held = sum(side.numel() for pair in kernel._subspaces.held.values() for side in pair)
    assert held == 2 * (6 + 5 + 7 + 4)
    again, fresh = (some.perturb_all(given, [(first,)]) for some in (kernel, functions))
    assert bases() == [8] * 4 + [8] * 4
    assert [[raw(copy) for copy in copies] for copies in again] == [[raw(copy) for copy in own] for own in fresh]


def test_members_in_a_subspace_are_those_of_the_formula_without_copies(monkeypatch):
    model, tokens = random_model("llama-tied"), prompts()[0]
    members = tuple((term_of(seed, sign * 0.1, 5, basis_seed=3),) for seed in (1, 2) for sign in (1, -1))
    monkeypatch.setattr(cpu, "perturb_all", lambda weights, *rest: weights and pytest.fail("weights were copied"))
    with torch.no_grad(), members_at(model, members):
        logits = model(input_ids=tokens.repeat(4, 1)).logits.view(4, 3, 6, -1)
    for m in (0, 3):
        torch.testing.assert_close(logits[m], by_the_formula(members[m], tokens), rtol=0, atol=1e-4)
    assert (logits[0] - logits[1]).abs().max() > 0.01


def test_only_a_direction_of_a_rank_lies_in_a_subspace():
    for rank, seed in ((0, 3), (2, 2**64), (2, -1)):
        with pytest.raises(ValueError, match=r"rank|seed"):
            Subspace(rank, seed)
    assert term_of(1, 0.5, 2, basis_seed=1).direction != term_of(1, 0.5, 2).direction


# --- the journal -----------------------------------------------------------------------------------------------------


def test_the_journal_writes_a_rank_where_there_is_one(tmp_path):
    with Journal(tmp_path, {}) as journal:
        terms = (Term(1, 0.5), term_of(2, 0.25, 4), term_of(2, 0.25, 4, b_seed=7), term_of(2, 0.25, 4, basis_seed=7))
        journal.append(StepRecord(0, (1.0,), Update(0.0, terms, 3), lr=0.1))
    step = json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[1])
    assert step["terms"] == [[1, 0.5], [2, 0.25, 4], [2, 0.25, 4, 7], [2, 0.25, 4, 2, 7]]
