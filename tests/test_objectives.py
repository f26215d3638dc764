"""The shipped objectives: their values against arithmetic of another kind, and what all of them promise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from zoreward.records import InputError, ObjectiveError
from zoreward.registry import describe_objective, get_objective, list_objectives

SHIPPED = sorted(entry.name for entry in list_objectives() if entry.distribution == "zoreward")


def batch(needs: str, n_rows: int, n_choices: int = 2, seed: int = 0) -> dict[str, Any]:
    """Return outputs as the scoring hands them over, with random log-probabilities."""
    rng = np.random.default_rng(seed)
    references = rng.integers(0, n_choices, n_rows).tolist()
    if needs == "likelihood":
        return {"logprobs": -rng.exponential(1.0, n_rows), "text": ["a"] * n_rows}
    logprobs = -rng.exponential(1.0, (n_rows, n_choices))
    predictions = logprobs.argmax(axis=1).tolist()
    sums = {"logprob_sums": 3 * logprobs, "base_logprob_sums": -rng.exponential(3.0, (n_rows, n_choices))}
    plain = {"predictions": predictions, "references": references, "text": ["a"] * n_rows}
    return {**plain, "logprobs": logprobs, **sums}


def perfect(needs: str, n_rows: int) -> dict[str, Any]:
    """Return outputs of a model that is sure of every right answer, both choices among them."""
    if needs == "likelihood":
        return {"logprobs": np.zeros(n_rows)}
    references = [row % 2 for row in range(n_rows)]
    logprobs = np.full((n_rows, 2), -np.inf)
    logprobs[np.arange(n_rows), references] = 0.0
    sums = {"logprob_sums": logprobs, "base_logprob_sums": np.full((n_rows, 2), -1.0)}
    return {"predictions": list(references), "references": references, "logprobs": logprobs, **sums}


def shuffled(outputs: dict[str, Any], order: list[int]) -> dict[str, Any]:
    """Return the same rows in another order."""
    return {k: v[order] if isinstance(v, np.ndarray) else [v[i] for i in order] for k, v in outputs.items()}


# --- what every objective promises --------------------------------------------------------------------------------


def test_the_shipped_objectives_are_found() -> None:
    assert {"accuracy", "auc", "balanced-accuracy", "f1", "log-likelihood", "mcc", "neg-cross-entropy"} <= set(SHIPPED)


# What scores text is tested in test_text_objectives.py: what is perfect there differs for each.
SCORING = [name for name in SHIPPED if describe_objective(name).needs in ("choices", "likelihood")]


@pytest.mark.parametrize("name", SHIPPED)
def test_it_says_what_it_is(name: str) -> None:
    found = describe_objective(name)
    assert found.name == name
    assert found.help.endswith(".")
    assert all(option.help for option in found.options)


@pytest.mark.parametrize("name", SCORING)
def test_perfect_answers_reach_the_top_and_nothing_passes_it(name: str) -> None:
    found = get_objective(name)
    assert found.range is not None
    low, high = found.range
    assert found.score(6, **perfect(found.needs, 6)) == high
    scores = [found.score(9, **batch(found.needs, 9, seed=seed)) for seed in range(20)]
    assert all(low <= score < high for score in scores)
    assert len(set(scores)) > 3


@pytest.mark.parametrize("name", SCORING)
def test_the_order_of_rows_does_not_matter(name: str) -> None:
    found = get_objective(name)
    outputs = batch(found.needs, 50)
    order = np.random.default_rng(1).permutation(50).tolist()
    # Bit-equal: rows are summed exactly (math.fsum) or counted.
    assert found.score(50, **outputs) == found.score(50, **shuffled(outputs, order))


@pytest.mark.parametrize("name", SCORING)
def test_the_same_outputs_give_the_same_score(name: str) -> None:
    found = get_objective(name)
    assert len({found.score(50, **batch(found.needs, 50)) for _ in range(3)}) == 1


@pytest.mark.parametrize("name", SCORING)
def test_empty_and_foreign_text_in_the_rows_does_no_harm(name: str) -> None:
    found = get_objective(name)
    outputs = batch(found.needs, 4)
    plain = found.score(4, **{**outputs, "text": ["a"] * 4})
    assert found.score(4, **{**outputs, "text": ["", "größe", "日本語", "\U0001f600\u0000"]}) == plain


@pytest.mark.parametrize("name", SHIPPED)
def test_it_stands_in_the_documentation(name: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "objectives.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in page


# --- their values -------------------------------------------------------------------------------------------------


def test_accuracy() -> None:
    outputs = batch("choices", 97, n_choices=3)
    expected = np.mean(np.array(outputs["predictions"]) == np.array(outputs["references"]))
    # one rounding in each of the two divisions
    assert get_objective("accuracy").score(97, **outputs) == pytest.approx(expected, rel=2**-52)


def test_accuracy_wants_as_many_references_as_predictions() -> None:
    with pytest.raises(ObjectiveError, match="raised ValueError"):
        get_objective("accuracy").score(2, predictions=[0, 1], references=[0, 1, 1], logprobs=np.zeros((2, 2)))


@pytest.mark.parametrize("pos_label", [0, 1])
def test_f1_of_two_choices(pos_label: int) -> None:
    outputs = batch("choices", 60)
    pairs = list(zip(outputs["predictions"], outputs["references"], strict=True))
    hits = sum(p == r == pos_label for p, r in pairs)
    false = sum(p != r and pos_label in (p, r) for p, r in pairs)
    expected = 2 * hits / (2 * hits + false)
    # a handful of float64 roundings in precision, recall and their mean
    assert get_objective("f1", pos_label=pos_label).score(60, **outputs) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_f1_of_three_choices(average: str) -> None:
    outputs = batch("choices", 60, n_choices=3)
    right, found = np.array(outputs["references"]), np.array(outputs["predictions"])
    hits = np.array([np.sum((right == c) & (found == c)) for c in range(3)])
    sizes, claims = np.bincount(right, minlength=3), np.bincount(found, minlength=3)
    each = 2 * hits / (sizes + claims)
    expected = {"macro": each.mean(), "micro": hits.sum() / 60, "weighted": (each * sizes).sum() / 60}[average]
    # a handful of float64 roundings for each choice
    assert get_objective("f1", average=average).score(60, **outputs) == pytest.approx(expected, rel=1e-14)


def test_f1_without_a_positive_is_zero() -> None:
    outputs = {"predictions": [0, 0], "references": [0, 0], "logprobs": np.zeros((2, 2))}
    assert get_objective("f1").score(2, **outputs) == 0.0


def test_binary_f1_refuses_three_choices_even_where_the_batch_has_two() -> None:
    outputs = {"predictions": [0, 1], "references": [0, 1], "logprobs": np.zeros((2, 3))}
    with pytest.raises(ObjectiveError, match="for two choices, not 3: take macro"):
        get_objective("f1").score(2, **outputs)
    assert get_objective("f1", average="macro").score(2, **outputs) == 1.0


def test_f1_refuses_a_positive_choice_that_is_none() -> None:
    outputs = {"predictions": [0, 0], "references": [0, 0], "logprobs": np.zeros((2, 2))}
    with pytest.raises(ObjectiveError, match="pos_label=2 is none of the choices"):
        get_objective("f1", pos_label=2).score(2, **outputs)


def test_auc_counts_pairs() -> None:
    outputs = batch("choices", 60)
    outputs["logprobs"] = outputs["logprobs"].round(1)  # so that margins tie
    margins = outputs["logprobs"][:, 1] - outputs["logprobs"][:, 0]
    right = np.array(outputs["references"])
    pairs = margins[right == 1][:, None] - margins[right == 0][None, :]
    expected = np.mean((pairs > 0) + 0.5 * (pairs == 0))
    assert (pairs == 0).any()
    # counts of pairs, divided; scikit-learn sums trapezoids: a few float64 roundings for each of 60 thresholds
    assert get_objective("auc").score(60, **outputs) == pytest.approx(expected, rel=60 * 2**-52)


def test_auc_of_one_class_is_that_of_chance_and_three_choices_are_refused() -> None:
    assert get_objective("auc").score(2, logprobs=np.array([[-1.0, -2.0], [-2.0, -1.0]]), references=[1, 1]) == 0.5
    with pytest.raises(ObjectiveError, match="two choices, not 3"):
        get_objective("auc").score(1, logprobs=np.zeros((1, 3)), references=[2])


def test_mcc_is_the_correlation_of_two_indicators() -> None:
    outputs = batch("choices", 60)
    expected = np.corrcoef(outputs["predictions"], outputs["references"])[0, 1]
    assert get_objective("mcc").score(60, **outputs) == pytest.approx(expected, rel=1e-13)  # sums of 60 products
    assert get_objective("mcc").score(2, predictions=[1, 1], references=[0, 1]) == 0.0


def test_balanced_accuracy_averages_the_shares_found() -> None:
    outputs = batch("choices", 60, n_choices=3)
    right, found = np.array(outputs["references"]), np.array(outputs["predictions"])
    expected = np.mean([np.mean(found[right == c] == c) for c in range(3)])
    assert get_objective("balanced-accuracy").score(60, **outputs) == pytest.approx(expected, rel=1e-14)
    assert get_objective("balanced-accuracy").score(3, predictions=[0, 2, 0], references=[0, 0, 0]) == pytest.approx(
        2 / 3
    )


def test_f1_names_its_options() -> None:
    with pytest.raises(InputError) as caught:
        get_objective("f1", averge="macro")
    assert caught.value.hint == "did you mean average? Options: average, pos_label"


def test_neg_cross_entropy_is_sklearns_log_loss() -> None:
    outputs = batch("choices", 40, n_choices=4)
    weights = np.exp(outputs["logprobs"])
    expected = -metrics.log_loss(
        outputs["references"], weights / weights.sum(axis=1, keepdims=True), labels=list(range(4))
    )
    # each row: a few roundings of numbers below 10, so about 1e-15; the mean does not add to it
    assert get_objective("neg-cross-entropy").score(40, **outputs) == pytest.approx(expected, abs=1e-14)


def test_neg_cross_entropy_of_extreme_log_probabilities() -> None:
    logprobs = np.array([[-2000.0, -2001.0], [-1e-30, -800.0], [-1.0, -np.inf]])
    found = get_objective("neg-cross-entropy").function(logprobs=logprobs, references=[1, 1, 0])
    # log(1 + e) lies 2000 below the numbers it comes from: their spacing there is 2.3e-13
    assert found[0] == pytest.approx(-math.log1p(math.e), abs=3e-13)
    assert found[1:] == [-800.0, 0.0]


def test_neg_cross_entropy_sees_what_accuracy_does_not() -> None:
    better, worse = np.log([[0.3, 0.1]]), np.log([[0.2, 0.1]])
    of = {"predictions": [0], "references": [0]}
    assert get_objective("accuracy").score(1, logprobs=better, **of) == get_objective("accuracy").score(
        1, logprobs=worse, **of
    )
    score = get_objective("neg-cross-entropy").score
    assert score(1, logprobs=better, **of) > score(1, logprobs=worse, **of)


def test_log_likelihood() -> None:
    outputs = batch("likelihood", 33)
    found = get_objective("log-likelihood")
    assert found.needs == "likelihood"
    expected = sum(outputs["logprobs"].tolist()) / 33
    # 33 additions, each rounded by at most 2^-53 of a sum below 33 · the mean
    assert found.score(33, **outputs) == pytest.approx(expected, rel=33 * 2**-53)


def test_calibration_error_of_a_model_that_is_too_sure() -> None:
    # 10 rows at confidence 0.9 of which 6 are right, 10 at 0.6 of which 6 are right
    shares = np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    references = [0] * 6 + [1] * 4 + [0] * 6 + [1] * 4
    outputs = {"predictions": [0] * 20, "references": references, "logprobs": np.log(shares)}
    # half of the rows are off by 0.3, half by nothing; 20 float64 subtractions
    assert get_objective("calibration-error").score(20, **outputs) == pytest.approx(-0.15, abs=1e-14)
    assert get_objective("calibration-error", bins=1).score(20, **outputs) == pytest.approx(-0.15, abs=1e-14)
    with pytest.raises(ObjectiveError, match="bins must be at least 1"):
        get_objective("calibration-error", bins=0).score(20, **outputs)


def test_sklearn_scores_what_scikit_learn_scores() -> None:
    outputs = batch("choices", 40, n_choices=3)
    right, found = outputs["references"], outputs["predictions"]
    shares = np.exp(outputs["logprobs"])
    shares /= shares.sum(axis=1, keepdims=True)
    expected = {
        "matthews_corrcoef": metrics.matthews_corrcoef(right, found),
        "f1_macro": metrics.f1_score(right, found, average="macro"),
        "cohen_kappa_score": metrics.cohen_kappa_score(right, found),
        "neg_log_loss": -metrics.log_loss(right, shares),
        "neg_hamming_loss": -metrics.hamming_loss(right, found),
        "roc_auc_ovr": metrics.roc_auc_score(right, shares, multi_class="ovr"),
    }
    for name, value in expected.items():
        # the same functions on probabilities that differ by rounding
        assert get_objective(f"sklearn:{name}").score(40, **outputs) == pytest.approx(value, rel=1e-12), name
    macro = get_objective("sklearn", name="f1_score", average="macro")
    assert macro.score(40, **outputs) == pytest.approx(expected["f1_macro"], rel=1e-12)


def test_sklearns_auc_of_two_choices_is_ours() -> None:
    outputs = batch("choices", 40)
    ours = get_objective("auc").score(40, **outputs)
    assert get_objective("sklearn:roc_auc").score(40, **outputs) == pytest.approx(ours, rel=1e-12)


def test_sklearn_has_many_and_says_which_do_not_fit() -> None:
    fits = 0
    for name in metrics.get_scorer_names():
        try:
            get_objective(f"sklearn:{name}")
            fits += 1
        except ObjectiveError as error:
            assert "cannot score choices" in str(error), name
    assert fits >= 40
    with pytest.raises(ObjectiveError, match="no scorer or metric 'f1_macr'") as caught:
        get_objective("sklearn:f1_macr")
    assert caught.value.hint.startswith("did you mean f1_macro")
    with pytest.raises(ObjectiveError, match="no 'hamming_loss'") as caught:
        get_objective("sklearn:hamming_loss")
    assert caught.value.hint == "ask for neg_hamming_loss"


def test_a_batch_on_which_a_metric_is_undefined() -> None:
    outputs = {"predictions": [1, 1], "references": [1, 1], "logprobs": np.log([[0.4, 0.6], [0.3, 0.7]])}
    for name in ("roc_auc", "roc_auc_ovr", "d2_log_loss_score"):
        with pytest.raises(ObjectiveError, match="has no score on these 2 rows"):
            get_objective(f"sklearn:{name}").score(2, **outputs)
        [returned] = get_objective(f"sklearn:{name}").returned_for([(2, outputs)])
        assert math.isnan(returned[name])
        assert get_objective(f"sklearn:{name}", undefined=0.5).score(2, **outputs) == 0.5


@pytest.mark.parametrize("references", [[1, 1, 1, 1], [0, 0, 2, 0], [0, 1, 2, 1]])
def test_losses_of_probabilities_are_told_all_choices(references: list[int]) -> None:
    shares = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6], [0.3, 0.3, 0.4]])
    outputs = {"predictions": shares.argmax(1).tolist(), "references": references, "logprobs": np.log(shares)}
    right = np.eye(3)[references]
    expected = {
        "neg_log_loss": np.log(shares[range(4), references]).mean(),
        "neg_brier_score": -((shares - right) ** 2).sum(1).mean(),
        "top_k_accuracy": np.mean([right in row.argsort()[-2:] for right, row in zip(references, shares, strict=True)]),
        # classes that do not occur count nothing, as scikit-learn has it
        "f1_macro": metrics.f1_score(references, outputs["predictions"], average="macro"),
    }
    for name, value in expected.items():
        assert get_objective(f"sklearn:{name}").score(4, **outputs) == pytest.approx(value, rel=1e-12), name


def test_what_is_wrong_on_every_batch_is_an_error_not_a_batch_without_a_score() -> None:
    # f1 of scikit-learn is for two choices; here there are three, of which the batch holds two
    outputs = {"predictions": [0, 1, 2], "references": [0, 1, 1], "logprobs": np.log(np.full((3, 3), 1 / 3))}
    with pytest.raises(ObjectiveError, match="average='binary'"):
        get_objective("sklearn:f1").returned_for([(3, outputs)])


def test_callable_is_the_function_with_its_options(tmp_path: Path) -> None:
    path = tmp_path / "rewards.py"
    path.write_text(
        "def caution(predictions, *, price: float = 1.0, of: str = '1'):\n"
        "    return [-price * (p == int(of)) for p in predictions]\n"
    )
    outputs = {"predictions": [0, 1, 1, 1]}
    assert get_objective("callable", function=f"{path}:caution").score(4, **outputs) == -0.75
    found = get_objective("callable", function=f"{path}:caution", option=["price=4", "of=0"])
    assert (found.name, found.score(4, **outputs)) == ("caution", -1.0)
    with pytest.raises(ObjectiveError, match="not written as name=value"):
        get_objective("callable", function=f"{path}:caution", option=["price"])
    with pytest.raises(InputError, match="no option 'prize'"):
        get_objective("callable", function=f"{path}:caution", option=["prize=4"])
