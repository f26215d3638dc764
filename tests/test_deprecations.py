"""Contract under test: a deprecated call fails a test where it is ours, and only there; no user is told of it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable

import pytest

import deprecations
from zoreward.cli.prepare import quiet_deprecations, quiet_transformers


@pytest.fixture(autouse=True)
def no_deprecated_calls() -> None:
    """In the place of the plugin's, where these tests themselves run under it."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Run some code as that of zoreward under the plugin; what the test would fail with, or ""."""

    def outcome(code: str, module: str = "zoreward.some") -> str:
        with pytest.MonkeyPatch.context() as patch:
            around = deprecations.no_deprecated_calls.__wrapped__(patch)
            next(around)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(compile(code, "some.py", "exec"), {"__name__": module, **LIBRARIES})
            try:
                next(around, None)
            except pytest.fail.Exception as failure:
                return str(failure)
        return ""

    return outcome


def library(name: str, body: str) -> Callable[..., None]:
    """A function that stands in a library."""
    scope = {"__name__": f"{name}.inside", "warnings": warnings, "logging": logging}
    exec(f"def called(*given):\n    {body}", scope)
    return scope["called"]  # type: ignore[return-value]


WARNS = 'warnings.warn("`old` is deprecated", FutureWarning, stacklevel=2)'
LIBRARIES = {
    "warns": library("transformers", WARNS),
    "user": library("transformers", 'warnings.warn("your data are odd")'),
    "logs": library("transformers", 'logging.getLogger("transformers").warning("`old` is deprecated.")'),
    "peft": library("peft", "given[0]()"),
    "torch": library("torch", "given[0]()"),
    "own": library("torch", 'warnings.warn("`old` is deprecated", DeprecationWarning)'),
}


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("warns()", "FutureWarning: `old` is deprecated"),
        ("torch(warns)", "FutureWarning: `old` is deprecated"),
        ("own()", "DeprecationWarning: `old` is deprecated"),
        ("logs()", "`old` is deprecated."),
        ("try:\n    warns()\nexcept Exception:\n    pass", "FutureWarning"),
        ("peft(warns)", ""),
        ("peft(logs)", ""),
        ("user()", ""),
        ("pass", ""),
    ],
)
def test_a_call_is_told_where_it_is_ours(code: str, told: str, run) -> None:
    found = run(code)
    assert told in found and bool(found) == bool(told)


def test_a_call_of_somebody_else_is_not_ours(run) -> None:
    assert run("warns()", module="somebody") == ""


@pytest.mark.parametrize(
    ("module", "category", "options", "told"),
    [
        ("torch.nn.modules.module", FutureWarning, [], False),
        ("transformers", FutureWarning, [], False),
        ("transformers.utils.generic", FutureWarning, ["error"], True),
        ("transformers.modeling_utils", UserWarning, [], True),
        ("torchvision.io", FutureWarning, [], True),
        ("rewards", FutureWarning, [], True),
    ],
)
def test_users_are_told_what_their_own_code_calls(module, category, options, told, monkeypatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", options)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with quiet_deprecations():
            warnings.warn_explicit("`old` is deprecated", category, "some.py", 1, module=module)
    assert bool(seen) == told


def test_users_are_not_told_of_old_names_in_the_code_of_models() -> None:
    quiet_transformers()
    logger, seen = logging.getLogger("transformers.utils.generic"), []
    handler = logging.Handler()
    handler.emit = seen.append
    logger.addHandler(handler)
    try:
        for text in ("`past_key_values`/`cache_params` are deprecated. Use `cache` instead.", "something else"):
            logger.warning(text)
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in seen] == ["something else"]
