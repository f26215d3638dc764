"""Writing token by token in tensors that stay where they are, so that a step can be replayed as a CUDA graph.

A step of `generate` on a GPU is bound by Python and by launches: each of some hundred layers is called, each launches
some kernels. A graph launches them all at once. It reads and writes the same addresses each time: the cache has its
full length from the beginning, what varies (place, position, what may be seen) lies in tensors, and the factors of
low-rank members are filled in anew for each batch. θ is updated in place, so a graph outlives the steps of tuning.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from transformers.utils import logging

from zoreward.members import HeldFactors, are_factored, has_prefix, members_at, needs_copies
from zoreward.neighbours.of_transformers import cache_argument, cache_of, keys_and_values
from zoreward.neighbours.transformers_cache_layer import FixedLayer, cache_of_layers
from zoreward.records import Member
from zoreward.scoring.devices import is_spread

if TYPE_CHECKING:
    from transformers import LogitsProcessor, StoppingCriteria

    from zoreward.scoring.forward import Reader

# Lengths of the cache: prompts of many lengths share a graph, and attention wants masks of aligned lines.
LENGTHS = 16
# Tokens between two looks at whether all rows have ended: each look waits for the GPU.
LOOK_EVERY = 8
# Batches of how many shapes are kept: a population, and what is left of it after full groups.
SHAPES = 2


class Stepper:
    """Writes for several low-rank members at once, without `generate`.

    Args:
        reader: the model.
        replays: whether steps are captured and replayed; False where there is no GPU, for tests.

    Attributes:
        problem: why this model is left to `generate`; None while it is not.
    """

    def __init__(self, reader: Reader, *, replays: bool = True):
        self._reader, self._replays = reader, replays
        self._desks: OrderedDict[tuple[Any, ...], _Desk] = OrderedDict()
        self.problem: str | None = None
        if is_spread(reader.model):
            self.problem = "its weights lie on several devices"
        elif not reader.shares_prefix:
            self.problem = "its cache is not plain attention"
        elif not {"attention_mask", "position_ids"} <= reader.accepts:
            self.problem = "it takes no position_ids"
        elif has_prefix(reader.model):
            self.problem = "it has a prefix, which would have to be in the cache"

    def suits(self, members: Sequence[Member]) -> bool:
        """Whether these members can be written for: several, of low rank, in a model that needs no copies for them."""
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
        key = (len(members), *ids.shape[:1], tuple(end_tokens))
        desk = self._desks.pop(key, None) or _Desk(self._reader, end_tokens, self._replays)
        try:
            with members_at(self._reader.model, members, tuned=self._reader.tuned, held=desk.held):
                desk.begin(ids, mask, new_tokens)
                written = _written(desk, ids.shape[1], new_tokens, processors, stop)
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
    desk: _Desk, width: int, new_tokens: int, processors: Sequence[LogitsProcessor], stop: StoppingCriteria | None
) -> torch.Tensor:
    for end in range(width, width + new_tokens):
        if processors or stop:
            if end > width:
                desk.graphs.do(desk.advance)
            scores = desk.logits.float()
            desk.lost |= is_lost(scores.amax(-1)).any()
            for process in processors:
                scores = process(desk.ids[:, :end], scores)  # type: ignore[arg-type]
            desk.take(scores.argmax(-1))
            if stop:
                desk.done |= stop(desk.ids[:, : end + 1], scores)  # type: ignore[arg-type]
        elif end > width:
            desk.graphs.do(desk.advance_greedily)
        else:
            desk.take_likeliest()
        look = stop or (end - width) % LOOK_EVERY == LOOK_EVERY - 1
        if look and desk.may_end and bool(desk.done.all()):
            break
    return desk.ids[:, width : end + 1].clone()


class _Attention(TorchFunctionMode):
    """Attention of one query a row in float32 as two products: the kernel made for many queries takes three times that.

    In half precision scores would be rounded on their way; there it is left as it is.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is not torch.nn.functional.scaled_dot_product_attention or len(args) != 3:
            return function(*args, **kwargs)
        query, key, value = args
        known = kwargs.keys() <= {"attn_mask", "scale", "dropout_p", "is_causal"} and not kwargs.get("is_causal")
        if not known or kwargs.get("dropout_p") or query.dtype != torch.float32 or query.shape[1] != key.shape[1]:
            return function(*args, **kwargs)
        scale = kwargs.get("scale") or query.shape[-1] ** -0.5
        scores = (key @ (query * scale).mT).mT
        if kwargs.get("attn_mask") is not None:
            scores = scores + kwargs["attn_mask"]
        return scores.softmax(-1) @ value


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
        keep = {"logits_to_keep": 1} if "logits_to_keep" in self._reader.accepts else {}
        places = (mask.cumsum(1) - 1).clamp(min=0)
        read = self._reader.model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True, **keep)
        width = ids.shape[1]
        if self._length < width + new_tokens:
            self._make(read, -(-(width + new_tokens) // LENGTHS) * LENGTHS)
        for layer, (keys, values) in zip(self._cache.layers, keys_and_values(cache_of(read)), strict=True):
            layer.keys[:, :, :width], layer.values[:, :, :width] = keys, values
        self.ids[:, :width] = ids
        self._place.fill_(width)
        self._position.copy_(mask.sum(1, keepdim=True) - 1)
        self._bias.fill_(torch.finfo(self._bias.dtype).min)
        self._bias[:, 0, 0, :width].masked_fill_(mask.bool(), 0.0)
        self.done.zero_()
        self.lost.zero_()
        self.logits.copy_(read.logits[:, -1])
        # A graph goes on reading these addresses.
        now = addresses(self._reader, self.held.moves)
        if now != self._read:
            self.graphs.clear()
            self._read = now

    def _make(self, read: Any, length: int) -> None:
        device, rows = read.logits.device, read.logits.shape[0]
        self.graphs.clear()
        self._length = length
        self._place = torch.zeros(1, dtype=torch.long, device=device)
        self._position = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._ends = torch.tensor(self._end_tokens, dtype=torch.long, device=device)
        self.ids = torch.zeros(rows, length, dtype=torch.long, device=device)
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)
        self.lost = torch.zeros((), dtype=torch.bool, device=device)
        self.logits = torch.empty_like(read.logits[:, -1])
        layers = [FixedLayer(*pair, length, self._place) for pair in keys_and_values(cache_of(read))]
        self._bias = layers[0].keys.new_zeros(rows, 1, 1, length)
        self._cache = cache_of_layers(layers)

    def advance(self) -> None:
        """Read the token that was taken last; leaves the logits of the next."""
        self._bias.index_fill_(3, self._place, 0.0)
        self._position += 1
        cache = {cache_argument(self._reader.accepts): self._cache}
        with _Attention():
            read = self._reader.model(
                input_ids=self.ids.index_select(1, self._place),
                attention_mask=self._bias,
                position_ids=self._position,
                use_cache=True,
                **cache,
            )
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
        self._replays = replays
        self._graphs: dict[str, torch.cuda.CUDAGraph | None] = {}

    def clear(self) -> None:
        """Forget all graphs: what they read has another address now."""
        self._graphs.clear()

    @property
    def are_captured(self) -> bool:
        """Whether all that was done will be replayed the next time."""
        return all(self._graphs.values())

    def do(self, what: Callable[[], None]) -> None:
        """Do `what`, which goes by its name."""
        name = what.__name__
        if not self._replays:
            what()
        elif name not in self._graphs:
            self._graphs[name] = None
            on_side_stream(what)
        else:
            graph = self._graphs[name]
            if graph is None:
                graph = self._graphs[name] = captured(what)
            graph.replay()


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
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        what()
    torch.cuda.current_stream().wait_stream(stream)


def captured(what: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Return a graph that does what `what` launches; nothing is done yet.

    Other threads, in which a reward model may be at work, are left alone.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        what()
    return graph
