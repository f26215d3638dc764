"""Writing token by token in tensors that stay where they are, so that a step can be replayed as a CUDA graph.

A step of `generate` on a GPU is bound by Python and by launches: each of some hundred layers is called, each launches
some kernels. A graph launches them all at once. It reads and writes the same addresses each time: the cache has its
full length from the beginning, what varies (place, position, what may be seen) lies in tensors, and the factors of
low-rank members are filled in anew for each batch. θ is updated in place, so a graph outlives the steps of tuning.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers.utils import logging

from zoreward.members import HeldFactors, are_factored, has_prefix, has_triton, members_at, needs_copies
from zoreward.neighbours.of_transformers import (
    attention_by,
    cache_argument,
    cache_of,
    counts_from_last_key,
    keys_and_values,
    plain_attention,
)
from zoreward.neighbours.transformers_cache_layer import FixedLayer, cache_of_layers
from zoreward.records import Member
from zoreward.scoring.devices import is_spread, without_cudnn_attention

if TYPE_CHECKING:
    from transformers import LogitsProcessor, StoppingCriteria

    from zoreward.scoring.forward import Reader

# Lengths of the cache: prompts of many lengths share a graph, and attention wants masks of aligned lines.
LENGTHS = 16
# Tokens between two looks at whether all rows have ended: each look waits for the GPU.
LOOK_EVERY = 8
# Prompts of up to so many tokens, all rows together, are read in a graph too: in larger batches launches are hidden.
CAPTURED_TOKENS = 32768
# Batches of how many shapes are kept: a population, what is left of it after full groups, and the model itself.
SHAPES = 3


class Stepper:
    """Writes for several low-rank members at once, or for the model itself, without `generate`.

    Args:
        reader: the model.
        replays: whether steps are captured and replayed; False where there is no GPU, for tests.

    Attributes:
        problem: why this model is left to `generate`; None while it is not.
        checked: whether what it writes was compared with `generate`; before that, the model itself is left to that.
    """

    def __init__(self, reader: Reader, *, replays: bool = True):
        self._reader, self._replays = reader, replays
        self.checked = False
        self._desks: OrderedDict[tuple[Any, ...], _Desk] = OrderedDict()
        self.problem: str | None = None
        if is_spread(reader.model):
            self.problem = "its weights lie on several devices"
        elif not reader.shares_prefix:
            self.problem = "its cache is not plain attention"
        elif not {"attention_mask", "position_ids"} <= reader.accepts:
            self.problem = "it takes no position_ids"
        elif counts_from_last_key(reader.model):
            self.problem = "its local attention would count from the end of the cache"
        elif has_prefix(reader.model):
            self.problem = "it has a prefix, which would have to be in the cache"

    def suits(self, members: Sequence[Member]) -> bool:
        """Whether these members can be written for: several, of low rank, in a model that needs no copies for them.

        Or the model itself, which is written for in each evaluation.
        """
        if self.problem is None and list(members) == [()]:
            return self.checked
        return (
            self.problem is None
            and self._reader.grouped
            and len(members) > 1
            and are_factored(members)
            and not needs_copies(self._reader.tuned, members)
        )

    @torch.no_grad()
    def write(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        members: Sequence[Member],
        new_tokens: int,
        end_tokens: Sequence[int],
        processors: Sequence[LogitsProcessor] = (),
        stop: StoppingCriteria | None = None,
    ) -> tuple[torch.Tensor, bool] | None:
        """Write behind prompts, as `generate` does.

        Args:
            ids: prompts (R, W), padded on the left; rows of one member after the other.
            mask: 0 where they are padded.
            members: M members.
            new_tokens: most tokens of a row.
            end_tokens: they end a row.
            processors: what is done to the logits before the likeliest token is taken.
            stop: says after each token which rows have ended.

        Returns:
            the new tokens (R, ≤ new_tokens), rows that have ended filled up with padding, and whether a logit was NaN
            or +inf; None where this model turns out to need `generate`: `problem` says why.
        """
        # What an evaluation takes of memory is given back with the next step.
        by_itself = list(members) == [()]
        for other in [key for key in self._desks if not (by_itself or key[0])]:
            del self._desks[other]
        key = (0 if by_itself else len(members), *ids.shape[:1], tuple(end_tokens))
        desk = self._desks.pop(key, None) or _Desk(self._reader, end_tokens, self._replays)
        padding = padded_width(*ids.shape) - ids.shape[1]
        ids, mask = (functional.pad(tensor, (padding, 0)) for tensor in (ids, mask))
        try:
            shown = members_at(self._reader.model, members, tuned=self._reader.tuned, held=desk.held)
            with without_cudnn_attention(), shown:
                desk.begin(ids, mask, new_tokens)
                written = _written(desk, (padding, ids.shape[1]), new_tokens, processors, stop)
            lost = bool(desk.lost)
        except torch.OutOfMemoryError:
            self._desks.clear()
            raise
        except Exception as error:  # what is wrong with the model itself, `generate` will tell
            self._desks.clear()
            self.give_up(f"{type(error).__name__}: {error}")
            return None
        if not lost:  # else the cache holds NaN, which a mask does not keep out
            self._desks[key] = desk
        if len(self._desks) > SHAPES:
            self._desks.popitem(last=False)
        return written, lost

    def give_up(self, problem: str) -> None:
        """Leave this model to `generate` from now on, and say so."""
        self.problem = problem
        told = "Texts are written without CUDA graphs (a small model's step takes some times as long): %s."
        logging.get_logger(__name__).warning(told, problem.splitlines()[0])

    def forget(self) -> None:
        """Give back the memory of graphs and caches."""
        self._desks.clear()


def _written(
    desk: _Desk,
    prompt: tuple[int, int],
    new_tokens: int,
    processors: Sequence[LogitsProcessor],
    stop: StoppingCriteria | None,
) -> torch.Tensor:
    """Write behind a prompt that lies between two places, and return what was written."""
    first, width = prompt
    for end in range(width, width + new_tokens):
        if processors or stop:
            if end > width:
                desk.graphs.do(desk.advance)
            scores = desk.logits.float()
            desk.lost |= is_lost(scores.amax(-1)).any()
            for process in processors:
                scores = process(desk.ids[:, first:end], scores)  # type: ignore[arg-type]
            desk.take(scores.argmax(-1))
            if stop:
                desk.done |= stop(desk.ids[:, first : end + 1], scores)  # type: ignore[arg-type]
        elif end > width:
            desk.graphs.do(desk.advance_greedily)
        else:
            desk.take_likeliest()
        look = stop or (end - width) % LOOK_EVERY == LOOK_EVERY - 1
        if look and desk.may_end and bool(desk.done.all()):
            break
    return desk.ids[:, width : end + 1].clone()


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one query a row, (R, H, 1, D), on keys and values of H / G heads; other calls are transformers'.

    torch's kernels are made for many queries. In float32 two products take a third of their time; half precision, where
    scores would be rounded on their way, has a kernel of its own.
    """
    rows, heads, queries, width = query.shape
    half = query.dtype in (torch.bfloat16, torch.float16) and query.is_cuda and has_triton()
    if (
        queries != 1
        or dropout
        or any(others.get(name) is not None for name in ("softcap", "s_aux", "position_bias"))
        or attention_mask is None
        or attention_mask.shape != (rows, 1, 1, key.shape[2])
        or key.shape != value.shape
        or not (half or query.dtype == torch.float32)
    ):
        kept = {"scaling": scaling, "dropout": dropout, **others}
        return plain_attention()(module, query, key, value, attention_mask, **kept)  # type: ignore[no-any-return]
    scale = width**-0.5 if scaling is None else scaling
    packed = query.reshape(rows, key.shape[1], -1, width)
    if half:
        from zoreward.kernels.triton_attention import attend

        held = [tensor.contiguous() for tensor in (packed, key, value, attention_mask.view(rows, -1))]
        read = attend(held[0], held[1], held[2], held[3], scale)
    else:
        scores = (key @ (packed * scale).mT).mT + attention_mask
        read = scores.softmax(-1) @ value
    return read.reshape(rows, 1, heads, width), None


@contextmanager
def _fused_norms(norms: Sequence[tuple[torch.nn.Module, float]]) -> Iterator[None]:
    """Let norms be torch's own, one launch for six, as long as the context lasts."""
    plain = functional.rms_norm
    try:
        for norm, eps in norms:
            weight: Any = norm.weight
            norm.__dict__["forward"] = partial(plain, normalized_shape=weight.shape, weight=weight, eps=eps)
        yield
    finally:
        for norm, _ in norms:
            norm.__dict__.pop("forward", None)


def _norms_of(model: torch.nn.Module) -> list[tuple[torch.nn.Module, float]]:
    """Return the modules that do what torch's `rms_norm` does, tried on random numbers, and the ε of each.

    Two roundings lie between them where transformers rounds before it multiplies by the weight, and those of a sum.
    """
    found = []
    for module in model.modules():
        eps, weight = getattr(module, "variance_epsilon", getattr(module, "eps", None)), getattr(module, "weight", None)
        if not isinstance(eps, float) or not isinstance(weight, torch.Tensor) or weight.ndim != 1:
            continue
        if "forward" in module.__dict__:
            continue
        drawn = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
        expected, fused = module(drawn).double(), functional.rms_norm(drawn, weight.shape, weight, eps).double()
        if bool(((expected - fused).abs() <= 4 * torch.finfo(weight.dtype).eps * expected.abs()).all()):
            found.append((module, eps))
    return found


class _Desk:
    """What a step reads and writes for R rows, and the step itself.

    Attributes:
        held: the members' factors.
        graphs: in which a step is done.
        ids: prompts and what was written, (R, length).
        logits: those of the last step, (R, V).
        done: which rows have ended, (R,).
        lost: whether a logit was NaN or +inf.
        may_end: whether a row can end before the others.
    """

    ids: torch.Tensor
    logits: torch.Tensor
    done: torch.Tensor
    lost: torch.Tensor

    def __init__(self, reader: Reader, end_tokens: Sequence[int], replays: bool):
        self._reader = reader
        self.held = HeldFactors()
        self.may_end = True
        self._end_tokens = list(end_tokens)
        self._length = 0
        self.graphs = Replays(replays)
        self._read: tuple[Any, ...] = ()

    def begin(self, ids: torch.Tensor, mask: torch.Tensor, new_tokens: int) -> None:
        """Read the prompts: fills the cache, and the logits of the first new token."""
        width = ids.shape[1]
        places = (mask.cumsum(1) - 1).clamp(min=0)
        if self._length < width + new_tokens:
            last = self._model(ids[:, -1:], mask[:, -1:], places[:, -1:])  # for the shapes alone
            self._make(last, aligned(width + new_tokens))
        # A graph goes on reading these addresses.
        now = addresses(self._reader, self.held.moves)
        if now != self._read:
            self.graphs.clear()
            self._read = now
        self.ids[:, :width], self._seen[:, :width], self._places[:, :width] = ids, mask.bool(), places
        self._place.fill_(width)
        self._position.copy_(mask.sum(1, keepdim=True) - 1)
        self._bias.fill_(torch.finfo(self._bias.dtype).min)
        self._bias[:, 0, 0, :width].masked_fill_(mask.bool(), 0.0)
        self.done.zero_()
        self.lost.zero_()
        # What is read must not depend on what was read before, or a run that goes on would part from one that did not
        # end. A prompt of one token, which the cache takes for a new one, is padded to more where it is read so.
        if width > 1 and ids.numel() <= CAPTURED_TOKENS:
            self.graphs.do(partial(self._read_prompts, width), f"prompts of {width}")
            return
        read = self._model(ids, mask, places)
        for layer, (keys, values) in zip(self._cache.layers, keys_and_values(cache_of(read)), strict=True):
            layer.keys[:, :, :width], layer.values[:, :, :width] = keys, values
        self.logits.copy_(read.logits[:, -1])

    def _model(self, ids: torch.Tensor, mask: torch.Tensor, places: torch.Tensor, **more: Any) -> Any:
        """Read tokens; the logits are those of the last."""
        keep = {"logits_to_keep": 1} if "logits_to_keep" in self._reader.accepts else {}
        return self._reader.model(
            input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True, **keep, **more
        )

    def _read_prompts(self, width: int) -> None:
        """Read the prompts that lie at the beginning of `ids` into the cache; leaves the logits behind them."""
        earlier = self._seen.new_ones(width, width).tril_()
        seen = self._seen[:, None, None, :width] & earlier
        bias = additive_mask(seen, self._bias.dtype)
        with _fused_norms(self._norms):
            read = self._model(self.ids[:, :width], bias, self._places[:, :width], **self._into_cache)
        self.logits.copy_(read.logits[:, -1])

    def _make(self, read: Any, length: int) -> None:
        device, rows = read.logits.device, read.logits.shape[0]
        self.graphs.clear()
        self._length = length
        self._place = torch.zeros(1, dtype=torch.long, device=device)
        self._position = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._ends = torch.tensor(self._end_tokens, dtype=torch.long, device=device)
        self.ids = torch.zeros(rows, length, dtype=torch.long, device=device)
        self._seen = torch.zeros(rows, length, dtype=torch.bool, device=device)
        self._places = torch.zeros_like(self.ids)
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)
        self.lost = torch.zeros((), dtype=torch.bool, device=device)
        self.logits = torch.empty_like(read.logits[:, -1])
        layers = [FixedLayer(*pair, length, self._place) for pair in keys_and_values(cache_of(read))]
        self._bias = layers[0].keys.new_zeros(rows, 1, 1, length)
        self._cache = cache_of_layers(layers)
        self._into_cache = {cache_argument(self._reader.accepts): self._cache}
        self._norms = _norms_of(self._reader.model)

    def advance(self) -> None:
        """Read the token that was taken last; leaves the logits of the next."""
        self._bias.index_fill_(3, self._place, 0.0)
        self._position += 1
        model = self._reader.model
        with attention_by(model, _attend), _fused_norms(self._norms):
            token = self.ids.index_select(1, self._place)
            read = self._model(token, self._bias, self._position, **self._into_cache)
        self._place += 1
        self.logits.copy_(read.logits[:, -1])

    def advance_greedily(self) -> None:
        """Read the token that was taken last, and take the likeliest behind it."""
        self.advance()
        self.take_likeliest()

    def take_likeliest(self) -> None:
        """Take the token with the largest logit in each row."""
        best, tokens = self.logits.max(-1)
        self.lost |= is_lost(best).any()
        self.take(tokens)

    def take(self, tokens: torch.Tensor) -> None:
        """Write one token in each row: padding, where it has ended."""
        tokens = tokens.masked_fill(self.done, self._reader.pad_token_id)
        self.ids.index_copy_(1, self._place, tokens.unsqueeze(1))
        if self._end_tokens:
            self.done |= (tokens.unsqueeze(1) == self._ends).any(1)


class Replays:
    """Does things that read and write the same addresses each time: once as they are, then captured, then replayed.

    Args:
        replays: False: always as they are, where there is no GPU.
    """

    def __init__(self, replays: bool):
        self.replays = replays
        self._graphs: dict[str, torch.cuda.CUDAGraph | None] = {}
        self._pool: Any = None

    def clear(self) -> None:
        """Forget all graphs: what they read has another address now."""
        self._graphs.clear()
        self._pool = None

    @property
    def are_captured(self) -> bool:
        """Whether all that was done will be replayed the next time."""
        return all(self._graphs.values())

    def do(self, what: Callable[[], None], name: str = "") -> None:
        """Do `what`, which goes by a name; by default by its own.

        Graphs share the memory of what lies between their input and output, as one is replayed after the other.
        """
        name = name or what.__name__
        if not self.replays:
            what()
        elif name not in self._graphs:
            self._graphs[name] = None
            on_side_stream(what)
        else:
            graph = self._graphs[name]
            if graph is None:
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                graph = self._graphs[name] = captured(what, self._pool)
            graph.replay()


def additive_mask(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what is added to scores of attention: 0 where a token may be seen, else the least number of a dtype.

    >>> additive_mask(torch.tensor([True, False]), torch.float16)
    tensor([     0., -65504.], dtype=torch.float16)
    """
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


def aligned(places: int) -> int:
    """Return a number of places that is not less, and that graphs share.

    >>> aligned(16), aligned(17)
    (16, 32)
    """
    return -(-places // LENGTHS) * LENGTHS


def padded_width(rows: int, width: int) -> int:
    """Return to how many tokens prompts are padded, so that those of many lengths share the graph that reads them.

    >>> padded_width(32, 41), padded_width(512, 300)
    (48, 300)
    """
    return aligned(width) if rows * aligned(width) <= CAPTURED_TOKENS else width


def addresses(reader: Reader, moves: int) -> tuple[int, ...]:
    """Return where the tuned weights lie, with the number of times that what is held for members has moved."""
    return (moves, *(weight.data_ptr() for weight in reader.tuned.weights.values()))


def is_lost(largest: torch.Tensor) -> torch.Tensor:
    """Say of each row's largest logit whether the row is of no use: a logit is NaN, or has overflowed to +inf.

    A single logit of −inf is a token that a model forbids. Where all are −inf, nothing can be told, either.

    >>> is_lost(torch.tensor([[1.0, float("-inf")], [float("nan"), 1.0], [float("inf"), 1.0]]).amax(-1))
    tensor([False,  True,  True])
    """
    return ~largest.isfinite()


def on_side_stream(what: Callable[[], None]) -> None:
    """Do something on a stream of its own, as libraries must have run once before they are captured."""
    stream = side_stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        what()
    torch.cuda.current_stream().wait_stream(stream)


@cache
def side_stream(device: int, number: int = 0) -> torch.cuda.Stream:
    """The same stream each time: cuBLAS keeps 32 MB for each one that it ever saw, which came to 0.6 GB in a run."""
    return torch.cuda.Stream(device)


def captured(what: Callable[[], None], pool: Any = None) -> torch.cuda.CUDAGraph:
    """Return a graph that does what `what` launches; nothing is done yet.

    Other threads, in which a reward model may be at work, are left alone.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        what()
    return graph
