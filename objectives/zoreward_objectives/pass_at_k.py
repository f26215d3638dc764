"""pass@k."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from zoreward import get_objective, objective
from zoreward_objectives.exact_match import ExactMatch


@objective("pass-at-k", range=(0, 1))
class PassAtK:
    """How likely one of k completions of a prompt is right, without bias from the number of samples.

    1 − C(n − c, k) / C(n, k) for a prompt with n completions of which c are right; the mean over prompts. One number
    for the batch: give each prompt in n ≥ k rows, and sample (a temperature above 0).

    Source: Chen et al. 2021, "Evaluating large language models trained on code" (arXiv 2107.03374), equation 1.

    >>> PassAtK(k=2)(["4", "5", "6"], prompts=["2+2="] * 3, answer=["4"] * 3)
    0.6666666666666667
    """

    def __init__(
        self, *, k: int = 1, check: str | None = None, answer_column: str = "answer", group: str | None = None
    ):
        """Set what is counted.

        Args:
            k: how many tries there are.
            check: a function that says which completions are right, path/file.py:name; by default those that match
                the answer, as exact-match compares them.
            answer_column: the column of the right answers, for the default check.
            group: the column that says which rows are tries at the same task; by default those with the same prompt.
        """
        if k < 1:
            raise ValueError(f"k is at least 1, not {k}")
        self._k, self._group = k, group
        self._check = get_objective(check) if check else get_objective(ExactMatch, answer_column=answer_column)
        if self._check.needs != "completions":
            raise ValueError(f"{check!r} checks no completions: name its first parameter so")

    def __call__(self, completions: Sequence[Any], prompts: Sequence[Any], **columns: Any) -> float:
        """Return the mean over prompts."""
        outputs = {**columns, "completions": completions, "prompts": prompts}
        [returned] = self._check.returned_for([(len(completions), outputs)])
        right = returned[self._check.name]
        if not isinstance(right, list):
            raise ValueError(f"{self._check.name!r} returned one number, not one for each completion")
        if self._group is not None and self._group not in columns:
            raise LookupError(f"no row has the column {self._group!r} that says which rows belong together")
        keys = prompts if self._group is None else columns[self._group]
        tries: dict[str, list[bool]] = {}
        for key, score in zip(keys, right, strict=True):
            if score is not None:
                tries.setdefault(json.dumps(key, sort_keys=True, default=str), []).append(score > 0)
        return math.fsum(_pass(len(some), sum(some), self._k) for some in tries.values()) / max(1, len(tries))


def _pass(n: int, c: int, k: int) -> float:
    if n < k:
        raise ValueError(f"a prompt has {n} completions, and k is {k}: give it in at least k rows")
    return 1 - math.comb(n - c, k) / math.comb(n, k)
