"""What a template can do to a text before it stands in the prompt: `{question|as_question}`."""

from __future__ import annotations

from collections.abc import Callable

from zoreward.data.columns import close_hint, listed
from zoreward.records import InputError


def strip(text: str) -> str:
    """Without white space at both ends.

    >>> strip(" a film ")
    'a film'
    """
    return text.strip()


def lower(text: str) -> str:
    """In small letters.

    >>> lower("The Man")
    'the man'
    """
    return text.lower()


def lower_first_letter(text: str) -> str:
    """Its first letter small.

    >>> lower_first_letter("The Man")
    'the Man'
    """
    return text[:1].lower() + text[1:]


def lower_first_word(text: str) -> str:
    """Its first word in small letters, unless that is "I".

    >>> lower_first_word("The Man left."), lower_first_word("I left.")
    ('the Man left.', 'I left.')
    """
    first, space, rest = text.partition(" ")
    return text if first == "I" else first.lower() + space + rest


def as_question(text: str) -> str:
    """Its first letter large, and a question mark at its end.

    >>> as_question("is it true"), as_question("Is it?")
    ('Is it true?', 'Is it?')
    """
    return text[:1].upper() + text[1:] + ("" if text.endswith("?") else "?")


def drop_dot(text: str) -> str:
    """Without white space at its end, then without its last full stop.

    >>> drop_dot("It rained. "), drop_dot("Why?")
    ('It rained', 'Why?')
    """
    return text.rstrip().removesuffix(".")


def drop_last_letter(text: str) -> str:
    """Without its last character, whatever that is.

    >>> drop_last_letter("It rained.")
    'It rained'
    """
    return text[:-1]


FILTERS: dict[str, Callable[[str], str]] = {
    one.__name__: one
    for one in (strip, lower, lower_first_letter, lower_first_word, as_question, drop_dot, drop_last_letter)
}
"""All there are, by the name that stands in a template."""


def check_filters(field: str, option: str) -> None:
    """Raise if a field of a template, `question|strip`, asks for a filter that does not exist.

    Raises:
        InputError: it does. `option` names the template.
    """
    for name in field.split("|")[1:]:
        if name not in FILTERS:
            hint = f"{close_hint(name, FILTERS)}the filters are {listed(list(FILTERS))}"
            raise InputError(f"{option}: {{{field}}} asks for the filter {name!r}, which does not exist", hint=hint)


def filtered(value: object, names: list[str]) -> object:
    """A value after the filters of these names, one after the other.

    Raises:
        TypeError: it is no text.

    >>> filtered(" It rained. ", ["strip", "drop_dot"])
    'It rained'
    """
    for name in names:
        if not isinstance(value, str):
            raise TypeError(f"the filter {name} is for texts, not for a {type(value).__name__}")
        value = FILTERS[name](value)
    return value
