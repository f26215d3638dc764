"""Entries of directions and bits of rounding, those of `zoreward.noise`, by Philox in NumPy in a thread's buffers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zoreward.noise import Distribution, Purpose
from zoreward.noise import definition as noise

Words = NDArray[np.uint64]
_LOW, _HALF = np.uint64(noise.MASK_32), np.uint64(32)
_M0, _M1 = np.uint64(noise.MULTIPLIER_0), np.uint64(noise.MULTIPLIER_1)
# Rows of x0 and x2 in even rounds; of x2 and x0 in odd ones.
_MULTIPLIERS = (np.array([[_M0], [_M1]]), np.array([[_M1], [_M0]]))


class Workspace:
    """The buffers of one thread, and the last direction that was drawn into them; for chunks of at most `count`."""

    def __init__(self, count: int) -> None:
        shared = 2 * noise.SHARING
        blocks = max((count + 3) // 4, (count // 2 + shared) // 4)  # of entries, of bits in groups that the chunk cuts
        self._ramp = np.arange(blocks, dtype=np.uint64)
        self._products = np.empty((2, blocks), np.uint64)  # of the counters, high and low; the same for all seeds
        self._at = (-1, 0)
        self._buffers = [np.empty((2, blocks), np.uint64) for _ in range(3)]
        self._ones = np.empty((blocks, 4), np.int8)
        groups = count // shared + 2
        self._words = np.empty((groups, noise.SHARING), np.uint32)
        self._bits = np.empty((groups, 2, noise.SHARING), np.uint32)
        self._z = np.empty(count, np.float32)
        self._product = np.empty(count, np.float32)
        self._held: tuple[int, int, int, int, int, Distribution] | None = None

    def entries(
        self,
        seed: int,
        stream: int,
        start: int,
        count: int,
        purpose: int = Purpose.DIRECTION,
        distribution: Distribution = "normal",
    ) -> NDArray[np.float32]:
        """Return `noise.entries` of the same arguments; valid until the next call. `start` is a multiple of 4."""
        z = self._z[:count]
        if self._held != (seed, stream, start, count, purpose, distribution):
            even, odd = self._blocks(seed, stream, start, count, purpose)
            if distribution == "gaussian":
                pairs = noise.box_muller(even.astype(np.uint32), odd.astype(np.uint32))
                z[:] = np.stack(pairs).transpose(2, 1, 0).reshape(-1)[:count]
            else:
                self._whole(even, odd, z, distribution)
            self._held = (seed, stream, start, count, purpose, distribution)
        return z

    def _whole(self, even: Words, odd: Words, z: NDArray[np.float32], distribution: Distribution) -> None:
        """Write the numbers that are multiples of a step: counts of bits, or 1 − 2 · the highest bit."""
        ones = self._ones[: even.shape[1]]
        for lanes, words in ((0, even), (1, odd)):
            if distribution == "normal":
                np.bitwise_count(words, out=ones.view(np.uint8).T[lanes::2])
            else:
                np.right_shift(words, np.uint64(30), out=ones.T[lanes::2], casting="unsafe")
        if distribution == "normal":
            np.subtract(ones, np.int8(16), out=ones)
        else:
            np.subtract(np.int8(1), ones & np.int8(2), out=ones)
        scale = noise.INV_SQRT_8 if distribution == "normal" else np.float32(1)
        np.multiply(ones.reshape(-1)[: len(z)], scale, out=z, dtype=np.float32)

    def times(self, coefficient: float, z: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return coefficient · z, valid until the next call."""
        return np.multiply(z, np.float32(coefficient), out=self._product[: len(z)])

    def rounding_bits(self, seed: int, stream: int, start: int, count: int) -> NDArray[np.uint32]:
        """Return `noise.rounding_bits`, valid until the next call. `start` is a multiple of 4."""
        before = start % (2 * noise.SHARING)  # elements of its group
        whole, rest = divmod(before + count, 2 * noise.SHARING)
        groups = whole + (rest > 0)
        drawn = whole * noise.SHARING + min(rest, noise.SHARING)
        even, odd = self._blocks(seed, stream, (start - before) // 2, drawn, Purpose.ROUNDING)
        fours = self._words.reshape(-1, 4)[: even.shape[1]]
        fours.T[0::2], fours.T[1::2] = even, odd
        np.bitwise_and(self._words[:groups], np.uint32(0xFFFF), out=self._bits[:groups, 0])
        np.right_shift(self._words[:groups], np.uint32(16), out=self._bits[:groups, 1])
        return self._bits.reshape(-1)[before : before + count]

    def _blocks(self, seed: int, stream: int, start: int, count: int, purpose: int) -> tuple[Words, Words]:
        """Philox 4x32-10 over consecutive blocks: words 0 and 2, and words 1 and 3, each (2, blocks), in uint64.

        Two lanes stand in the two rows of an array, so that a NumPy call serves both. A round

            x0, x1, x2, x3 = high(m1·x2) ^ x1 ^ k0, low(m1·x2), high(m0·x0) ^ x3 ^ k1, low(m0·x0)

        leaves x2 in the row where x0 was and the other way round: the multipliers swap rows instead, and the low
        halves of the round before are read from the other row. Keys of two rounds are added to a product at once: those
        of its own round to the high half, those of the next to the low half. Within a chunk only counter word 0 varies
        (a chunk never crosses 2^32 blocks), so half of the products of the first rounds are scalars.
        """
        blocks = (count + 3) // 4
        x, product, low = (buffer[:, :blocks] for buffer in self._buffers)
        k0, k1 = ([(half + r * weyl) & noise.MASK_32 for r in range(10)] for half, weyl in _halves(seed))
        first = start // 4
        high_0, low_0 = self._counters(first, blocks)

        scalar = noise.MULTIPLIER_1 * stream
        x0, x1 = (scalar >> 32) ^ (first >> 32) ^ k0[0], scalar & noise.MASK_32
        np.bitwise_xor(high_0, np.uint64(purpose ^ k1[0]), out=x[1])

        scalar = noise.MULTIPLIER_0 * x0
        np.multiply(x[1], _M1, out=low[1])
        np.right_shift(low[1], _HALF, out=x[0])
        np.bitwise_xor(x[0], np.uint64(x1 ^ k0[1]), out=x[0])
        np.bitwise_and(low[1], _LOW, out=low[1])
        np.bitwise_xor(low_0, np.uint64((scalar >> 32) ^ k1[1]), out=x[1])
        x3 = scalar & noise.MASK_32

        for r in range(2, 10):
            np.multiply(x, _MULTIPLIERS[r % 2], out=product)
            if r % 2 == 0:
                keys = ((k1[r] ^ x3) << 32 | k1[r + 1], k0[r] << 32 | k0[r + 1])
                np.bitwise_xor(product, np.array(keys, np.uint64)[:, None], out=product)
            np.right_shift(product, _HALF, out=x)
            if r == 2:  # x3 is a scalar, and is with the keys
                np.bitwise_xor(x[1], low[1], out=x[1])
                x3 = 0
            else:
                np.bitwise_xor(x, low[::-1], out=x)
            np.bitwise_and(product, _LOW, out=product)
            product, low = low, product
        return x, low

    def _counters(self, first: int, blocks: int) -> Words:
        """The high and low halves of m0 · counter word 0, which start every seed's rounds."""
        products = self._products[:, :blocks]
        if self._at != (first, blocks):
            np.add(self._ramp[:blocks], np.uint64(first & noise.MASK_32), out=products[0])
            np.multiply(products[0], _M0, out=products[0])
            np.bitwise_and(products[0], _LOW, out=products[1])
            np.right_shift(products[0], _HALF, out=products[0])
            self._at = (first, blocks)
        return products


def entries_of_many(
    draws: Sequence[tuple[int, int, int, int]], distribution: Distribution
) -> list[NDArray[np.float32]]:
    """Return `noise.entries` of many small tensors: each from its seed, stream, purpose, and how many, from 0 on.

    One call of NumPy works on all of them: tensor by tensor a call takes longer to begin than to do its work.
    """
    blocks = [(count + 3) // 4 for *_, count in draws]
    ends = np.cumsum(blocks)
    x0 = np.arange(ends[-1], dtype=np.uint64) - np.repeat((ends - blocks).astype(np.uint64), blocks)
    x1 = np.zeros_like(x0)
    seeds, streams, purposes = (np.array([draw[i] for draw in draws], np.uint64) for i in (0, 1, 2))
    x2, x3 = np.repeat(streams, blocks), np.repeat(purposes, blocks)
    k0, k1 = np.repeat(seeds & _LOW, blocks), np.repeat(seeds >> _HALF, blocks)
    words = np.stack(noise.philox((x0, x1, x2, x3), k0, k1), axis=1).astype(np.uint32).reshape(-1)
    z = noise.entries_of_words(words, distribution)
    return [z[4 * (end - own) :][:count] for end, own, (*_, count) in zip(ends, blocks, draws, strict=True)]


def _halves(seed: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (seed & noise.MASK_32, noise.WEYL_0), (seed >> 32, noise.WEYL_1)
