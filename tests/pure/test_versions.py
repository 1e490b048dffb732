"""What may come after this tree is still made of this tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.versions import FIX, NEXT, Edit, write_tree


@pytest.mark.parametrize("edits", [FIX, NEXT], ids=["fix", "next"])
def test_every_edit_fits(edits: tuple[Edit, ...], tmp_path: Path) -> None:
    write_tree(edits, tmp_path)


@pytest.mark.parametrize("text", ["", "one two", "one one"])
def test_a_text_that_is_not_there_once_is_no_edit(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text, encoding="utf-8")
    edit = Edit("file", "one", "two") if text != "one two" else Edit("file", "three", "two")
    with pytest.raises(ValueError, match="times: edit"):
        edit.apply(tmp_path)
