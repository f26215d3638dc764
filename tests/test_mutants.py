"""The list of mutants: what is to be broken is there to be broken, and tested by files that are there."""

from __future__ import annotations

import pytest

from mutants import MUTANTS, ROOT, Mutant, chosen_by


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_what_a_mutant_breaks_stands_in_its_file_once(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.new != mutant.old
    for word in mutant.tests.split():
        assert not word.startswith("tests/") or (ROOT / word).is_file()


def test_mutants_are_chosen_by_their_files_and_names() -> None:
    assert {one.file.split("/")[1] for one in chosen_by(["zoreward/journal/"])} == {"journal"}
    assert [one.name for one in chosen_by(["a torn line counts"])] == ["a torn line counts"]
    assert len(chosen_by([])) == len(MUTANTS)
    with pytest.raises(SystemExit, match="no mutant's file or name holds 'jounral'"):
        chosen_by(["journal", "jounral"])
