"""The area under the ROC curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoreward import objective

if TYPE_CHECKING:
    import numpy as np


@objective("auc", range=(0, 1))
def auc(logprobs: np.ndarray, references: Sequence[int]) -> float:
    """Area under the ROC curve: how well the margin between two choices ranks the rows.

    The share of pairs (a row whose right choice is 1, a row whose right choice is 0) in which the first has the larger
    margin ℓ[1] − ℓ[0]; ties count half. No threshold moves it. 0.5 where all rows have the same right choice, so such
    a batch gives no signal.

    Args:
        logprobs: (N, 2), mean log-probability per token of each choice.
        references: N indices, the right choice of each row.

    Raises:
        ValueError: more than two choices.

    Source: `sklearn.metrics.roc_auc_score`.

    >>> import numpy as np
    >>> auc(np.log([[0.4, 0.1], [0.2, 0.3], [0.3, 0.3]]), [0, 1, 1])
    1.0
    """
    import numpy as np
    from sklearn.metrics import roc_auc_score

    if logprobs.shape[1] != 2:
        raise ValueError(f"auc is for two choices, not {logprobs.shape[1]}: take accuracy or f1 with an average")
    if len(set(references)) == 1:
        return 0.5
    margins = np.clip(logprobs[:, 1] - logprobs[:, 0], -1e300, 1e300)  # a sure model's are infinite
    return float(roc_auc_score(references, margins))
