"""Preferences."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from zoreward import get_objective, objective

if TYPE_CHECKING:
    import numpy as np


@objective("preference", range=(float("-inf"), 1))
class Preference:
    """How far the chosen answer gains over the rejected one, against the model before tuning.

    With h DPO's margin of a row, the chosen answer y_w, the rejected one y_l, the member π and the base π_ref:

        h = log π(y_w|x)/π_ref(y_w|x) − log π(y_l|x)/π_ref(y_l|x)

        sigmoid: σ(βh)    log-sigmoid: log σ(βh)    share: 1 where h > 0, ½ where h = 0, else 0
        ipo: −(h' − 1/(2β))²    simpo: log σ(β(s_w − s_l) − γ)
        kto: −λ_D (1 − σ(β(r − z))) of a good answer, −λ_U (1 − σ(β(z − r))) of a bad one

    σ(βh) is the share made smooth: with β → ∞ they are the same. The base has 0.5 in both, log ½ in log-sigmoid,
    which is minus DPO's loss. Log-probabilities are sums over an answer's tokens. A row with one answer has
    h = log π(y|x)/π_ref(y|x) where it is said to be good, and minus that where it is said to be bad.
    ipo and simpo are minus the losses of these names, of pairs: h' is h with log-probabilities that are means over an
    answer's tokens, s such a mean under π alone. kto is minus KTOTrainer's loss of single answers, of pairs the mean
    of two: r is log π(y|x)/π_ref(y|x), and z the reference point, the mean of the same over the batch with answers y'
    to other prompts, at least 0, by the weights that the step begins with: TRL takes no gradient of it.

    Logs `share` and `margin`, the means of share and h over the rows, and `chosen_logprob`, the mean log-probability
    per token of the answers that are chosen or said to be good; of kto `reference_point`, z.

    Source: Rafailov et al. 2023, arXiv 2305.18290; kto, and without its reference
    point single answers in the other forms: Ethayarajh et al. 2024, arXiv 2402.01306; ipo: Azar et al. 2023, arXiv
    2310.12036, by tokens as in TRL's DPOTrainer; simpo: Meng et al. 2024, arXiv 2405.14734.

    >>> import numpy as np
    >>> gained, lost = [-3.0, -5.0], [-6.0, -4.0]
    >>> [round(score, 4) for score in Preference()(np.array([gained, lost]), np.array([[-4.0, -4.0]] * 2),
    ...                                            np.array([gained, lost]), [0, 0])]
    [0.7311, 0.2689]
    """

    def __init__(
        self,
        *,
        beta: float = 0.5,
        form: Literal["sigmoid", "log-sigmoid", "share", "ipo", "kto", "simpo"] = "sigmoid",
        gamma: float = 0.5,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        via: Literal["margin", "reward"] = "margin",
        reward_model: str | None = None,
    ):
        """Set what is scored.

        Args:
            beta: β, how soon a row that has gained counts no more.
            form: what is scored; the share has steps where the others have a slope.
            gamma: γ, of simpo alone: how far the chosen answer is to be ahead.
            desirable_weight: λ_D, of kto alone: how much good answers count.
            undesirable_weight: λ_U: how much bad ones do.
            via: margin: the answers of the rows are scored. reward: a reward is fitted on them first, and what the
                model itself writes is scored by it; by default lora, temperature 1, max_kl 0.1. For `tune` alone.
            reward_model: with reward: a folder or a Hub id of a reward model, instead of one that is fitted.

        Raises:
            ValueError: β is not positive and finite, γ not finite, a weight negative; or options say two things.
        """
        if reward_model is not None and via != "reward":
            raise ValueError("reward_model is of via=reward")
        weights = (desirable_weight, undesirable_weight)
        if via == "reward" and (beta, form, gamma) != (0.5, "sigmoid", 0.5):
            raise ValueError("beta, form and gamma are of via=margin")
        if form != "kto" and weights != (1.0, 1.0):
            raise ValueError("desirable_weight and undesirable_weight are of form=kto")
        if not all(0 <= weight < math.inf for weight in weights):
            raise ValueError(f"desirable_weight and undesirable_weight are 0 or more, not {weights}")
        self.via, self.reward_model = via, reward_model
        if not 0 < beta < math.inf:
            raise ValueError(f"beta must be positive and finite, not {beta}")
        if not math.isfinite(gamma):
            raise ValueError(f"gamma must be finite, not {gamma}")
        self._beta, self._form, self._gamma, self._weights = beta, form, gamma, weights
        if form != "kto":  # the others do not ask for what kto alone is worth a forward pass
            asked = inspect.signature(self)
            own = [one for one in asked.parameters.values() if one.name != "mismatched_ratios"]
            self.__signature__ = asked.replace(parameters=own)

    def given_reward(self) -> Any:
        """Return the reward that is given; None where one is to be fitted."""
        return None if self.reward_model is None else get_objective("reward-model", reward_model=self.reward_model)

    def __call__(
        self,
        logprob_sums: np.ndarray,
        base_logprob_sums: np.ndarray,
        logprobs: np.ndarray,
        references: Sequence[int],
        log_metric: Callable[[str, float], None] | None = None,
        base_logprobs: np.ndarray | None = None,
        mismatched_ratios: np.ndarray | None = None,
    ) -> list[float]:
        """Return one number for each row.

        Args:
            logprob_sums: (N, C), log-probability of each answer; C is 1 or 2.
            base_logprob_sums: the same of the model before tuning.
            logprobs: the same per token, of the member.
            references: N indices: which answer is the chosen one; −1 where the only one is said to be bad.
            log_metric: takes a name and a number.
            base_logprobs: as `logprobs`, of the model before tuning; for ipo.
            mismatched_ratios: (R,), of answers to other prompts log π/π_ref, π the weights without a member; for kto.

        Raises:
            ValueError: a row has more than two answers, or one where the form is of pairs; or kto has no
                `mismatched_ratios`.
        """
        import numpy as np

        if self.via == "reward":
            raise ValueError("via=reward is for `zoreward tune preference`: here a reward would have to be made first")
        rows, answers = logprob_sums.shape
        if answers > 2:
            raise ValueError(f"a preference is between two answers, not {answers}")
        chosen = np.asarray(references)
        ratios = logprob_sums - base_logprob_sums
        if answers == 1:
            h = np.where(chosen == 0, ratios[:, 0], -ratios[:, 0])
        else:
            h = ratios[np.arange(rows), chosen] - ratios[np.arange(rows), 1 - chosen]
        share = np.where(h == 0, 0.5, h > 0)
        if log_metric is not None:
            log_metric("share", float(share.mean()))
            log_metric("margin", float(h.mean()))
            if (chosen >= 0).any():
                good = np.flatnonzero(chosen >= 0)
                log_metric("chosen_logprob", float(logprobs[good, chosen[good]].mean()))
        if self._form == "share":
            return share.tolist()
        if self._form == "kto":
            if mismatched_ratios is None:
                raise ValueError("kto asks for mismatched_ratios")
            z = max(0.0, float(np.mean(mismatched_ratios)))
            if log_metric is not None:
                log_metric("reference_point", z)
            good = np.arange(answers) == chosen[:, None]
            ahead = self._beta * np.where(good, ratios - z, z - ratios)
            lost = np.exp(-np.logaddexp(0.0, ahead)) * np.where(good, *self._weights)
            return (-lost.mean(1)).tolist()
        if self._form in ("ipo", "simpo"):
            if answers == 1 or (self._form == "ipo" and base_logprobs is None):
                raise ValueError(f"{self._form} is of pairs, and asks for base_logprobs")
            means = logprobs - base_logprobs if self._form == "ipo" else logprobs
            ahead = means[np.arange(rows), chosen] - means[np.arange(rows), 1 - chosen]
            if self._form == "ipo":
                return (-((ahead - 1 / (2 * self._beta)) ** 2)).tolist()
            return (-np.logaddexp(0.0, self._gamma - self._beta * ahead)).tolist()
        log_sigmoid = -np.logaddexp(0.0, -self._beta * h)
        return (log_sigmoid if self._form == "log-sigmoid" else np.exp(log_sigmoid)).tolist()


preference = Preference  # the name at its entry point
