"""Contract under test: `zoreward.kernels.gpu`, the Triton kernels, give the bits of `zoreward.kernels.cpu`.

For float32, bfloat16 and float16 (float64 goes to `portable.py`), for matrices, vectors, scalars, empty and
non-contiguous tensors, tensors that do not begin on a boundary, and tensors of many dimensions, all in one launch:

- `perturb_all` = `cpu.perturb_all`: couples, members of 0 to n terms, dense and low-rank terms mixed; the copies are
  contiguous, and the weights are left as they are;
- `replay_all_` = `cpu.replay_all_`: updates of 0 to n terms, decay, stochastic rounding at its edges (both zeros,
  subnormals, the largest values, infinity, NaN); what an update does not move is not rounded either;
- `factor_lines` = that of `cpu.factors_all`, bit for bit, for several ranks and subspaces at once;
- tables and scripts that are remembered follow the weights: other addresses, shapes, streams or seeds are not mixed up.

Free is only the pattern of a NaN. `layers.corrected`, `layers.layer_norm` and `attention.attend` are sums in another
order than torch's: they are compared in float64. Without a GPU everything runs in Triton's interpreter.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from conftest import random_model
from terms import term_of
from zoreward.kernels import cpu, tables
from zoreward.kernels.subspaces import Keeping
from zoreward.members import Tuned, grouping, in_blocks, low_rank, members_at, tuned_weights, updates_
from zoreward.members.copies import perturbed_copies
from zoreward.records import Member, Term, Update

pytest.importorskip("triton", reason="Triton is not there: it is made for Linux")
gpu = pytest.importorskip("zoreward.kernels.gpu")
layers = pytest.importorskip("zoreward.kernels.triton_layers")
attention = pytest.importorskip("zoreward.kernels.triton_attention")

pytestmark = pytest.mark.usefixtures("quick_interpreter")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow), torch.float32]
# Where float32 goes the way that other tests of float32 go: Triton's interpreter takes a second for each of them.
HALF_FIRST = [
    torch.bfloat16,
    *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float16, torch.float32)),
]
COUPLES = ((Term(3, 0.01),), (Term(3, -0.01),), (Term(2**64 - 1, 0.5),), (Term(2**64 - 1, -1e-6),))
MIXED: tuple[Member, ...] = (
    (term_of(2, 0.3, 3), Term(2**64 - 1, -0.1)),
    (),
    (term_of(2, -0.25, 3),),
    (term_of(5, 0.25, 2), term_of(2, 0.1, 2, b_seed=5)),
    (term_of(6, 0.2, 3, basis_seed=2), term_of(5, -0.2, 2, basis_seed=2**64 - 1)),
)
UPDATES = [
    Update(0.1, MIXED[0], 9),  # all at once
    Update(0.0, (), 2),  # nothing
    Update(0.25, (), 2**64 - 1),  # decay alone: spares vectors
    Update(0.0, MIXED[2], 4),  # low rank alone: moves matrices only
    Update(0.0, (*MIXED[4], *MIXED[3]), 5),  # in subspaces, and not
]


@pytest.fixture
def kernels() -> gpu.Kernels:
    """Small units: the interpreter takes its time for each program, also for one without elements."""
    return gpu.Kernels(block=1024, unit=1024)


def weights(dtype: torch.dtype, device: str = "cpu") -> list[tuple[torch.Tensor, int]]:
    """A matrix with all edges in it, and one tensor of each kind; a stream each."""
    generator = torch.Generator().manual_seed(0)
    edges = [0.0, -0.0, 1e-6, -3e-8, 6e-5, 6.1e-5, 65504.0, -3.38e38, 1e-41, float("inf"), -float("inf"), float("nan")]
    first = torch.cat([torch.tensor(edges), torch.randn(600, generator=generator) * 1e-3, torch.tensor(edges)])
    whole = torch.randn(40, generator=generator).to(dtype).to(device)
    tensors = [
        first.view(2, -1).to(dtype).to(device),
        torch.randn(7, 5, generator=generator).to(dtype).to(device).T,
        whole[3:16],  # 6 or 12 bytes behind a boundary
        torch.tensor(1.5).to(dtype).to(device),
        torch.empty(0, 4, dtype=dtype, device=device),
    ]
    streams = [2**32 - 1, 0, 1, 2, 3]
    return list(zip(tensors, streams, strict=True))


def pattern(tensor: torch.Tensor) -> bytes:
    """The bits, with one NaN for all."""
    tensor = torch.where(tensor.isnan(), float("nan"), tensor).cpu().contiguous()
    return tensor.view(-1).view(torch.uint8).numpy().tobytes()


def check_copies(
    kernels: gpu.Kernels, dtype: torch.dtype, members: tuple[Member, ...], into: list[list[torch.Tensor]] | None = None
) -> None:
    given = weights(dtype, DEVICE)
    got, expected = kernels.perturb_all(given, members, into), cpu.perturb_all(weights(dtype), members)
    if into:
        places = [copy.data_ptr() for copies in into for copy in copies]
        assert [copy.data_ptr() for copies in got for copy in copies] == places
    for mine, theirs in zip(got, expected, strict=True):
        assert [(copy.shape, copy.stride(), copy.dtype) for copy in mine] == [
            (copy.shape, copy.stride(), copy.dtype) for copy in theirs
        ]
        assert [pattern(copy) for copy in mine] == [pattern(copy) for copy in theirs]
    assert all(pattern(a) == pattern(b) for (a, _), (b, _) in zip(given, weights(dtype), strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_couples_are_bit_equal(kernels, dtype):
    check_copies(kernels, dtype, COUPLES if DEVICE == "cuda" else COUPLES[2:])


@pytest.mark.parametrize(
    "members", [COUPLES, ((Term(1, 0.1),), (Term(2, 0.2),), (Term(3, -0.3),))], ids=["two couples", "single ones"]
)
def test_more_than_one_couple_reads_its_own_coefficients(members):
    # A single couple is written another way: its seed and coefficients come with the launch.
    weight = torch.randn(2, 150, generator=torch.Generator().manual_seed(0)).bfloat16()
    [copies] = gpu.Kernels(block=256, unit=512).perturb_all([(weight.to(DEVICE), 5)], members)
    [expected] = cpu.perturb_all([(weight, 5)], members)
    assert [pattern(copy) for copy in copies] == [pattern(copy) for copy in expected]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_copies_that_are_there_are_written_over(kernels, dtype):
    there = kernels.perturb_all(weights(dtype, DEVICE), MIXED[:2])
    check_copies(kernels, dtype, COUPLES[:2], there)


def test_units_of_several_blocks_and_half_empty_ones():
    weight = torch.randn(2, 3, 100, generator=torch.Generator().manual_seed(0)).bfloat16()
    kernels = gpu.Kernels(block=256, unit=512)  # 600 elements are three blocks, the last with a tail, in two units
    [[copy]] = kernels.perturb_all([(weight.to(DEVICE), 5)], [(Term(4, 0.1),)])
    [[expected]] = cpu.perturb_all([(weight, 5)], [(Term(4, 0.1),)])
    assert pattern(copy) == pattern(expected)


def test_lines_that_blocks_divide():
    # Then a program reads one number of a, and b from one place on.
    weight = torch.randn(2, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    member = (term_of(4, 0.1, 2),)
    kernels = gpu.Kernels(block=128, unit=512)
    [[copy]] = kernels.perturb_all([(weight.to(DEVICE), 5)], [member])
    [[expected]] = cpu.perturb_all([(weight, 5)], [member])
    assert pattern(copy) == pattern(expected)


@pytest.mark.parametrize("columns", [12, 5], ids=["quads", "mixed"])
def test_blocks_of_many_short_lines(columns):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).bfloat16() for shape in ((140, 12), (270, columns), (3,))]
    update = Update(0.0, (term_of(4, 0.1, 1),), 6)
    got = [(tensor.to(DEVICE, copy=True), stream) for stream, tensor in enumerate(tensors)]
    expected = [(tensor.clone(), stream) for stream, tensor in enumerate(tensors)]
    gpu.Kernels(block=1024, unit=2048).replay_all_(got, [update])
    cpu.replay_all_(expected, [update])
    assert [pattern(mine) for mine, _ in got] == [pattern(theirs) for theirs, _ in expected]
    assert pattern(got[1][0]) != pattern(tensors[1])


@pytest.mark.parametrize("dtype", HALF_FIRST, ids=str)
def test_tensors_of_whole_blocks_have_a_launch_of_their_own(kernels, dtype, monkeypatch):
    monkeypatch.setattr(tables, "ONE_LAUNCH", 0)
    edges = torch.tensor([0.0, -0.0, 1e-6, -6e-8, 6.1e-5, 65504.0, float("inf"), float("nan")])
    numbers = torch.cat([edges.repeat(32), torch.randn(768, generator=torch.Generator().manual_seed(0)) * 0.02])
    tensors = [(numbers.repeat(2).view(32, 64).to(dtype), 5), (numbers[:1023].to(dtype), 6), (numbers.to(dtype), 7)]
    for terms in ((Term(3, 1e-5),), (term_of(3, 1e-5, 1),), (term_of(3, 1e-5, 1), Term(4, 1e-5))):
        got = [(tensor.to(DEVICE, copy=True), stream) for tensor, stream in tensors]
        expected = [(tensor.clone(), stream) for tensor, stream in tensors]
        for copies, others in zip(kernels.perturb_all(got, (terms,)), cpu.perturb_all(expected, (terms,)), strict=True):
            assert [pattern(copy) for copy in copies] == [pattern(copy) for copy in others]
        kernels.replay_all_(got, [Update(0.0, terms, 8)])
        cpu.replay_all_(expected, [Update(0.0, terms, 8)])
        assert [pattern(mine) for mine, _ in got] == [pattern(theirs) for theirs, _ in expected]
        moved = (expected[0][0] != tensors[0][0]).double().mean()
        assert 0.01 < moved < 1.0 and len(next(iter(kernels._groups(got)[0].tables.values())).parts) == 2


def test_sums_beyond_the_largest_number_and_roundings_beyond_it(kernels):
    largest = torch.finfo(torch.bfloat16).max
    edges = torch.tensor([largest, -largest, 3.3e38, -3.3e38, float("inf"), -float("inf"), float("nan"), 0.0])
    for coefficient in (1e35, 3.4e38):  # rounded up beyond the largest; sums that are infinite
        got, expected = ([(edges.repeat(32).bfloat16().to(device), 3)] for device in (DEVICE, "cpu"))
        update = Update(0.0, (Term(4, coefficient),), 6)
        kernels.replay_all_(got, [update])
        cpu.replay_all_(expected, [update])
        assert pattern(got[0][0]) == pattern(expected[0][0])
        infinite = got[0][0].isinf().view(-1, 8)[:, :4]
        assert infinite.any() == (coefficient > 1e38), "what is finite ends at the largest, what is not stays"


@pytest.mark.parametrize("dtype", HALF_FIRST, ids=str)
def test_members_of_any_terms_are_bit_equal(kernels, dtype):
    check_copies(kernels, dtype, MIXED)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_updates_are_bit_equal(kernels, dtype):
    got, expected = weights(dtype, DEVICE), weights(dtype)
    outside = got[2][0]._base.clone()
    kernels.replay_all_(got, UPDATES)
    cpu.replay_all_(expected, UPDATES)
    assert [pattern(mine) for mine, _ in got] == [pattern(theirs) for theirs, _ in expected]
    assert any(pattern(mine) != pattern(start) for (mine, _), (start, _) in zip(got, weights(dtype), strict=True))
    outside[3:16] = got[2][0]
    assert torch.equal(outside, got[2][0]._base), "only the view is written"


@pytest.mark.parametrize("dtype", [*HALF_FIRST, torch.float64], ids=str)
def test_an_anchor_takes_back_a_share_of_the_way_from_the_base(kernels, dtype):
    updates = [
        Update(0.0, (Term(7, 0.3),), rounding_seed=1),
        Update(0.1, (Term(8, 0.2), term_of(9, -0.1, 2)), rounding_seed=2, anchor=0.25),
        Update(0.0, (), rounding_seed=3, anchor=0.5),  # alone: moves vectors too
    ]
    # The first has no elements: the bases begin before it all the same.
    got, expected = weights(dtype, DEVICE)[::-1], weights(dtype)[::-1]
    for pairs, kernel in ((got, kernels), (expected, cpu)):
        kernel.replay_all_(pairs, updates, [base for [base] in kernel.perturb_all(pairs, ((),))])
    assert [pattern(mine) for mine, _ in got] == [pattern(theirs) for theirs, _ in expected]
    without = weights(dtype)
    cpu.replay_all_(without, [replace(update, anchor=0.0) for update in updates])
    assert pattern(without[3][0]) != pattern(next(mine for mine, stream in got if stream == 2))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_what_nothing_moves_is_not_written(kernels, dtype):
    # −0 in float16 becomes +0 when it is rounded again.
    special = torch.tensor([-0.0, 1.5, 6e-8], device=DEVICE).to(dtype)
    vector, table, matrix = special.clone(), special.repeat(2, 2, 1), special.repeat(2, 1)
    before = [pattern(tensor) for tensor in (vector, table, matrix)]
    # Together with an update that moves all but vectors, so that they are in one launch.
    update = Update(0.0, (term_of(1, 1.0, 1),), 5)
    kernels.replay_all_([(vector, 1), (table, 2), (matrix, 3)], [update])
    assert [pattern(vector), pattern(table)] == before[:2] and pattern(matrix) != before[2]
    kernels.replay_all_([(vector, 1), (table, 2)], [update, Update(0.25, (), 6)])
    assert pattern(vector) == before[0] and pattern(table) != before[1], "a decay takes from all but vectors"


def test_factors_are_bit_equal(kernels):
    terms = [term_of(1, 1.0, 1), term_of(2**64 - 1, 1.0, 3), term_of(5, 1.0, 1, b_seed=2**64 - 1)]
    terms += [
        term_of(1, 1.0, 3, basis_seed=2**64 - 1),
        term_of(2, 1.0, 40, basis_seed=4),
        term_of(3, 1.0, 40, basis_seed=4),
    ]
    shapes = [((5, 3), 7), ((0, 4), 8), ((2, 300), 2**32 - 1), ((70, 90), 9), ((70, 90), 10)]
    for some in (terms, terms[:1]):
        got, expected = (
            kernel.factor_lines([(torch.empty(shape, device=device), stream) for shape, stream in shapes], some)
            for kernel, device in ((kernels, DEVICE), (Keeping(cpu), "cpu"))
        )
        assert torch.equal(got.cpu(), expected) and expected.std() > 0.5


@pytest.mark.parametrize("dtype", HALF_FIRST, ids=str)
def test_blocks_are_bit_equal(kernels, dtype):
    def net(device: str) -> tuple[torch.nn.Module, Tuned]:
        torch.manual_seed(0)
        made = torch.nn.Sequential(torch.nn.Linear(12, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 9)).to(dtype)
        made = made.to(device)
        tuned = tuned_weights(made)
        return made, in_blocks(tuned, {name: int(name[0]) for name in tuned.weights})

    (mine, tuned), (theirs, plain) = net(DEVICE), net("cpu")
    tuned.kernels[next(mine.parameters()).device] = kernels
    terms = Term(3, 0.05, block=2), term_of(4, 0.03, 2, basis_seed=9, block=2), Term(2, 0.1, block=0)
    members = ((terms[0],), (replace(terms[0], coefficient=-0.05),), (), terms)
    copies = [
        [copy for own in perturbed_copies(some.slots, members, some.kernels).values() for copy in own]
        for some in (tuned, plain)
    ]
    assert [pattern(one) for one in copies[0]] == [pattern(one) for one in copies[1]]
    before = [pattern(weight) for weight in theirs.parameters()]
    updates = [Update(0.1, terms, 5, block=2), Update(0.2, (), 6, block=0)]
    for some, own in ((mine, tuned), (theirs, plain)):
        updates_(some, updates, tuned=own)
    after = [pattern(weight) for weight in theirs.parameters()]
    assert [pattern(weight) for weight in mine.parameters()] == after
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, False, True, True, False, False]


def test_tables_and_scripts_follow_the_weights(kernels):
    weight = torch.ones(6, 4, device=DEVICE)
    cases = [
        (weight, 1, Term(1, 0.5)),
        (weight, 1, Term(2, 0.5)),  # another seed
        (weight, 2, Term(2, 0.5)),  # another stream
        (weight.view(4, 6), 2, term_of(2, 0.5, 1)),  # another shape at the same address
        (weight.view(6, 4), 2, term_of(2, 0.5, 1)),
        (weight[2:], 2, term_of(2, 0.5, 1)),  # another address
        (weight.view(6, 4), 2, term_of(2, 0.5, 2, basis_seed=1)),
        (weight.view(6, 4), 2, term_of(3, 0.5, 2, basis_seed=1)),  # another direction in the same subspace
        (weight.view(6, 4), 3, term_of(3, 0.5, 2, basis_seed=1)),
        (weight.view(4, 6), 3, term_of(3, 0.5, 2, basis_seed=1)),
        (weight.view(4, 6), 3, term_of(3, 0.5, 2, basis_seed=2)),
        (weight, 2, Term(2, 0.5)),  # the same tensor, elsewhere
    ]
    for number, (given, stream, term) in enumerate(cases):
        if number == len(cases) - 1:
            weight.data = torch.zeros(6, 4, device=DEVICE)
        [[copy]] = kernels.perturb_all([(given, stream)], [(term,)])
        [[expected]] = cpu.perturb_all([(given.cpu(), stream)], [(term,)])
        assert pattern(copy) == pattern(expected), (stream, term)


def test_other_dtypes_beside_each_other(kernels):
    def mixed(device: str) -> list[tuple[torch.Tensor, int]]:
        dtypes = [torch.float64, torch.bfloat16, torch.float32]
        return [(torch.ones(3, 2, dtype=dtype, device=device), stream) for stream, dtype in enumerate(dtypes)]

    got, expected = mixed(DEVICE), mixed("cpu")
    for mine, theirs in zip(kernels.perturb_all(got, COUPLES[:2]), cpu.perturb_all(expected, COUPLES[:2]), strict=True):
        assert [pattern(copy) for copy in mine] == [pattern(copy) for copy in theirs]
    kernels.replay_all_(got, [UPDATES[0]])
    cpu.replay_all_(expected, [UPDATES[0]])
    assert [pattern(mine) for mine, _ in got] == [pattern(theirs) for theirs, _ in expected]


@torch.no_grad()
def together_and_alone(model, members, x):
    """What a model gives for its rows at all members at once, and one member after the other."""
    alone = []
    for member, rows in zip(members, x.chunk(len(members)), strict=True):
        with members_at(model, (member,)):
            alone.append(model(rows))
    with members_at(model, members):
        return model(x), torch.cat(alone)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "none"])
@pytest.mark.parametrize(("rows", "n", "m"), [(1, 5, 1030), (4, 1030, 5), (4, 64, 1024)])
def test_a_corrected_product_is_that_with_the_outer_product(rows, n, m, bias):
    generator = torch.Generator().manual_seed(0)
    sizes = ((3 * rows, n), (n, m), (m,), (3, m), (3, n))
    x, weight, c, a, b = (torch.randn(size, generator=generator) for size in sizes)
    member = torch.arange(3).repeat_interleave(rows)
    correction_there = (x.double() * b[member]).sum(1, keepdim=True) * a[member]
    expected = x.double() @ weight.double() + correction_there + (c if bias else 0)
    assert correction_there.abs().max() > 1
    x, weight, c, a, b = (tensor.to(DEVICE) for tensor in (x, weight, c, a, b))
    got = layers.corrected(x, weight, c if bias else None, a, b)
    # Two sums of 1,030 products of size ≤ 16 and root mean square 1, rounded 1,030 times each, one times |a| ≤ 4:
    # 2 · 1,030 · 2^-24 · 32 · 4 ≤ 2e-2.
    torch.testing.assert_close(got.cpu().double(), expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("transposed", [True, False], ids=["linear", "conv1d"])
def test_a_corrected_product_in_half_precision_is_rounded_twice(transposed):
    generator = torch.Generator().manual_seed(0)
    sizes = ((8, 256), (512, 256) if transposed else (256, 512), (512,), (2, 512), (2, 256))
    x, weight, c, a, b = (torch.randn(size, generator=generator).bfloat16().to(DEVICE) for size in sizes)
    weight = weight.mT if transposed else weight
    begun = (x.double() * b[torch.arange(2).repeat_interleave(4)].double()).sum(1, keepdim=True)
    begun = begun * a[torch.arange(2).repeat_interleave(4)].double() + c.double()
    expected = begun.bfloat16().addmm_(x, weight).double()
    got = layers.corrected(x, weight, c, a, b).double()
    # torch's product is the same on both sides, with whatever cuBLAS rounds in between. What is begun may be the next
    # bfloat16 (the interpreter cuts off where a GPU rounds), 2^-7 of it, and so may what comes out, 2^-7 of that.
    bound = 2**-7 * begun.abs() + 2**-7 * (expected.abs() + 2**-7 * begun.abs())
    assert ((got - expected).abs() <= bound).all()
    exact = begun + x.double() @ weight.double()
    assert begun.abs().max() > 10 and (got - exact).abs().max() > 0


def test_linear_layers_of_both_kinds_begin_with_their_correction(monkeypatch):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), Conv1D(5, 16), torch.nn.Linear(5, 3, bias=False)).to(DEVICE)
    torch.nn.init.normal_(model[1].bias)  # it begins as zeros
    members = tuple((term_of(seed, sign * 0.5, 1),) for seed in (1, 2) for sign in (1, -1))
    x = torch.randn(8, 8).to(DEVICE)
    seen: list[int] = []
    begun = layers.corrected
    monkeypatch.setattr(layers, "corrected", lambda *args: seen.append(1) or begun(*args))
    monkeypatch.setattr(low_rank, "_fused", lambda x, weight: x.is_contiguous())
    got, expected = together_and_alone(model, members, x)
    assert len(seen) == 3
    # Other orders of sums of at most 16 products, three layers of values of some 30: 3 · 16 · 2^-24 · 30.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("weight", "bias"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize(("rows", "n"), [(1, 3), (2, 512), (3, 1030)])
def test_rows_are_normalised_with_the_weights_of_their_member(rows, n, weight, bias, dtype):
    generator = torch.Generator().manual_seed(0)
    x, w, c = (torch.randn(size, generator=generator).to(dtype).to(DEVICE) for size in ((3, rows, n), (3, n), (3, n)))
    x += 2.0
    eps = 1e-2
    exact = (x.double() - x.double().mean(-1, keepdim=True)) / (x.double().var(-1, False, keepdim=True) + eps).sqrt()
    expected = exact * (w.double().unsqueeze(1) if weight else 1) + (c.double().unsqueeze(1) if bias else 0)
    weights, biases = list(w) if weight else None, list(c) if bias else None
    got = layers.layer_norm(x.view(3 * rows, n), weights, biases, eps, 3).view(3, rows, n)
    # What comes out may be the next number of the type (the interpreter cuts off where a GPU rounds). In float32, sums
    # of up to 2^11 numbers of size 6 in pairs, for mean and variance, over a deviation of at least √eps = 0.1, times
    # weights up to 4: 2 · 11 · 2^-24 · 6 / 0.1 · 4.
    bound = torch.finfo(dtype).eps * expected.abs() + 2 * 11 * 2**-24 * 6 / 0.1 * 4
    assert ((got.double() - expected).abs() <= bound).all()
    assert expected.std() > 0.5


def test_what_does_not_lie_evenly_is_not_normalised_together():
    x, whole = torch.randn(6, 4, device=DEVICE), torch.randn(9, 4, device=DEVICE)
    assert layers.layer_norm(x, [whole[0], whole[1], whole[3]], None, 1e-5, 3) is None
    assert layers.layer_norm(x.to(torch.bfloat16), list(whole[:3]), None, 1e-5, 3) is None
    even = layers.layer_norm(x, [whole[0], whole[2], whole[4]], None, 1e-5, 3)
    alone = [layers.layer_norm(x[2 * m : 2 * m + 2], [whole[2 * m]], None, 1e-5, 1) for m in range(3)]
    assert torch.equal(even, torch.cat(alone)) and even.std() > 0.1


@pytest.mark.parametrize(
    ("rows", "heads", "group", "places", "width"),
    [(2, 3, 3, 112, 64), (2, 1, 7, 80, 32), (3, 4, 1, 48, 20), (1, 2, 17, 64, 128)],
)
def test_attention_of_one_query_is_that_of_the_formula(rows, heads, group, places, width):
    # Triton's interpreter has no products of bfloat16.
    dtype, draw = torch.bfloat16 if DEVICE == "cuda" else torch.float16, torch.Generator().manual_seed(0)
    q = torch.randn(rows, heads, group, width, generator=draw).to(DEVICE, dtype)
    k, v = (torch.randn(rows, heads, places, width, generator=draw).to(DEVICE, dtype) for _ in range(2))
    bias = torch.zeros(rows, places, device=DEVICE, dtype=dtype)
    bias[:, :2] = bias[:, -5:] = torch.finfo(dtype).min
    bias[0, : attention.PLACES + 1 if places > attention.PLACES + 6 else 2] = torch.finfo(dtype).min  # a whole block
    got = attention.attend(q, k, v, bias, 0.3).double()
    weights = (0.3 * q.double() @ k.double().mT + bias.double()[:, None, None]).softmax(-1)
    # The weights and the sum are rounded; float32 sums of 128 numbers below some 4 · 4 move scores by 1e-5.
    largest = (weights @ v.double().abs()).clamp(min=1e-2)
    assert bool(((got - weights @ v.double()).abs() <= torch.finfo(dtype).eps * largest).all())


def test_norms_of_all_members_are_one_launch(monkeypatch):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.LayerNorm((3, 8)), torch.nn.LayerNorm(8, bias=False))
    model.to(DEVICE)
    members = tuple((Term(seed, sign * 0.5),) for seed in (1, 2) for sign in (1, -1))
    x = torch.randn(8, 3, 8).to(DEVICE)
    seen: list[int] = []
    together = layers.layer_norm
    monkeypatch.setattr(layers, "layer_norm", lambda *args: seen.append(1) or together(*args))
    monkeypatch.setattr(grouping.Grouping, "_can_write_into", lambda self, args, kwargs: True)
    got, expected = together_and_alone(model, members, x)
    assert len(seen) == 2  # the one in the middle is over two dimensions
    # Three norms of 8 or 24 numbers, sums rounded once a number, values of some 10: 3 · 24 · 2^-24 · 10, times 10.
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-4)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_tensors_on_a_gpu(dtype):
    generator = torch.Generator().manual_seed(0)
    whole = (torch.randn(1003, 1021, generator=generator) * 0.02).to(dtype)
    kernels = gpu.Kernels()
    members = (COUPLES[0], COUPLES[1])
    [copies] = kernels.perturb_all([(whole.cuda(), 7)], members)
    [expected] = cpu.perturb_all([(whole, 7)], members)
    assert [pattern(copy) for copy in copies] == [pattern(copy) for copy in expected]
    terms = (Term(1, 1e-6), term_of(2, 1e-4, 2), term_of(5, 1e-4, 24, basis_seed=6))
    updates = [Update(1e-4, terms, 3), Update(0.0, (Term(4, 1e-3),), 5)]
    mine, theirs = whole.cuda(), whole.clone()
    kernels.replay_all_([(mine, 7)], updates)
    cpu.replay_all_([(theirs, 7)], updates)
    assert pattern(mine) == pattern(theirs)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU of 12 GB")
def test_more_than_2_to_the_31_elements_on_a_gpu():
    size = 2**31 + 5_000
    weight = torch.zeros(size, dtype=torch.bfloat16, device="cuda")
    [[copy]] = gpu.Kernels().perturb_all([(weight, 7)], [(Term(1, 1.0),)])
    start = size - 3_000
    from zoreward.noise import definition as noise

    expected = torch.from_numpy(noise.normal(1, 7, start, 3_000)).bfloat16()
    assert torch.equal(copy[start:].cpu(), expected)
    gpu.Kernels().replay_all_([(weight, 7)], [Update(0.0, (Term(1, 1.0),), 3)])
    bits = noise.rounding_bits(3, 7, start, 3_000)
    rounded = noise.round_bf16(noise.normal(1, 7, start, 3_000), bits)
    assert (weight[start:].cpu().view(torch.uint16).numpy() == rounded).all()


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_other_seeds_compile_nothing_and_a_graph_can_run_again():
    weight, other = torch.randn(64, 48, device="cuda").bfloat16(), None
    kernels = gpu.Kernels()
    for seed in range(3):
        kernels.perturb_all([(weight, 1)], [(Term(seed, 0.1),), (Term(seed, -0.1),)])
    before = len(gpu.triton_kernels.perturb.device_caches[0][0])
    for seed in (15, 16, 2**64 - 1):
        [[other, _]] = kernels.perturb_all([(weight, 1)], [(Term(seed, 0.5),), (Term(seed, -0.5),)])
    assert len(gpu.triton_kernels.perturb.device_caches[0][0]) == before
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        [[other, _]] = kernels.perturb_all([(weight, 1)], [(Term(seed, 0.5),), (Term(seed, -0.5),)])
    other.zero_()
    graph.replay()
    [[expected]] = cpu.perturb_all([(weight.cpu(), 1)], [(Term(seed, 0.5),)])
    assert torch.equal(other.cpu(), expected)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("tokens", [3, 60], ids=["corrected", "copied"])
@pytest.mark.parametrize("family", ["opt", "llama-tied"])
def test_members_on_a_gpu_are_those_of_one_at_a_time(family, tokens, rank):
    model = random_model(family).cuda()
    members = tuple((term_of(seed, sign * 0.05, rank),) for seed in (1, 2) for sign in (1, -1))
    ids = torch.randint(3, 30, (4, tokens), generator=torch.Generator().manual_seed(0)).cuda()

    def logits(some: tuple[Member, ...], **options: int) -> torch.Tensor:
        with torch.no_grad(), members_at(model, some, **options):
            return model(input_ids=ids.repeat(len(some), 1), logits_to_keep=1).logits[:, -1].view(len(some), 4, -1)

    expected = torch.cat([logits((member,)) for member in members])
    # As in test_members.py: other blockings of the same float32 sums, some 3e-6 a layer.
    torch.testing.assert_close(logits(members, keep_bytes=0), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits(members), expected, rtol=0, atol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 0.01
