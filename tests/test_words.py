"""Retired words of CONTRIBUTING.md's table do not return to the four packages, the tests and the documents.

In tests only names, docstrings and comments are checked, because their other strings are inputs and expected outputs.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("proto/edgekd", "scheduler", "cloud_teacher", "edge_student")
SCOPES = ("anywhere", "names", "classes")
ROW = re.compile(r"^\| ([a-z ,]+) \| [^|]+ \| (anywhere|names|classes) \|$", re.MULTILINE)
NAME_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

KEYS_IN_FILES = {
    ("scheduler/control/learning.py", "stance"),
    ("scheduler/live/comm_side.py", "behind"),
    ("edge_student/doctor/software.py", "trial"),
}
"""Words that earlier versions wrote into files, as keys or values, by the module that reads or writes them."""

OTHER_SENSES = {"behind"}
"""Words that are retired as a term, and that tests use in their usual sense (a teacher behind a proxy)."""

PHRASES = (
    *("anew", "nobody", "is told", "says so", "in words", "believes", "hears", "is born"),
    *("what came", "so many", "refuses to know", "goes by"),
)
"""The retired words that documents must not use either. CONTRIBUTING.md quotes them, and CHANGELOG.md is history."""


def retired_words() -> dict[str, list[str]]:
    """Return the retired words by scope, from the table of CONTRIBUTING.md."""
    rows = ROW.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    return {scope: [word for words, found in rows if found == scope for word in words.split(", ")] for scope in SCOPES}


WORDS = retired_words()


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")) if "_pb2" not in path.name]


def files_of_tests() -> list[Path]:
    return [path for path in sorted((ROOT / "tests").rglob("*.py")) if path.name != Path(__file__).name]


def documents() -> list[Path]:
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")]
    return [path for path in sorted(found) if path.name not in ("CONTRIBUTING.md", "CHANGELOG.md")]


def parts_of(text: str) -> str:
    """Return the words of a text in lower case, each between two spaces, with names in snake and camel case taken apart."""
    return f" {' '.join(NAME_PART.findall(text)).lower()} "


def words_in(text: str, words: list[str]) -> list[str]:
    """Return those of the words or phrases that the text contains as whole words or as parts of names."""
    parts = parts_of(text)
    return [word for word in words if f" {word} " in parts]


def class_names(source: str) -> Iterator[tuple[int, str]]:
    return ((node.lineno, node.name) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Return all strings that are statements, which includes the docstrings of attributes."""
    statements = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    return ((node.lineno, node.value) for node in statements if isinstance(node, ast.Constant) and isinstance(node.value, str))


def retired_in(source: str, *, only_docstrings: bool = False) -> list[tuple[int, str]]:
    """Return the line and the word of every retired word in the source of a module. Other strings may be left out."""
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    names = [(token.start[0], token.string) for token in tokens if token.type == tokenize.NAME]
    comments = [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]
    tree = ast.parse(source)
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    every = [(node.lineno, node.value) for node in constants if isinstance(node.value, str)]
    strings = [*docstrings(tree)] if only_docstrings else every
    checked = {"anywhere": [*names, *comments, *strings], "names": names, "classes": [*class_names(source)]}
    return sorted({(line, word) for scope in SCOPES for line, text in checked[scope] for word in words_in(text, WORDS[scope])})


def test_no_retired_word_is_in_the_code() -> None:
    found = [
        f"{name}:{line}: {word}"
        for path in modules()
        for name in [path.relative_to(ROOT).as_posix()]
        for line, word in [*retired_in(path.read_text(encoding="utf-8")), *((1, w) for w in words_in(path.stem, WORDS["names"]))]
        if (name, word) not in KEYS_IN_FILES
    ]
    assert found == []


def test_no_retired_word_is_in_names_docstrings_and_comments_of_tests() -> None:
    found = [
        f"{path.relative_to(ROOT).as_posix()}:{line}: {word}"
        for path in files_of_tests()
        for line, word in retired_in(path.read_text(encoding="utf-8"), only_docstrings=True)
        if word not in OTHER_SENSES
    ]
    assert len(files_of_tests()) > 100
    assert found == []


@pytest.mark.parametrize("phrase", PHRASES)
def test_no_document_uses_a_retired_phrase(phrase: str) -> None:
    found = [path.relative_to(ROOT).as_posix() for path in documents() if words_in(path.read_text(encoding="utf-8"), [phrase])]
    assert found == []


def test_the_table_has_words_of_every_scope() -> None:
    """Guard the tests above: with a changed table they would check nothing."""
    assert all(WORDS[scope] for scope in SCOPES)
    assert set(PHRASES) <= set(WORDS["anywhere"])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("class RunWitness: pass", [(1, "witness")]),
        ("retry_patience_s = 3", [(1, "patience")]),
        ("x = 1  # nobody reads it", [(1, "nobody")]),
        ('x = f"{1} is told\\nagain"', [(1, "is told")]),
        ("class TaskBoundary: pass", [(1, "boundary")]),
        ("task_boundary = 1  # instances take turns at the boundary, behind others", []),
    ],
)
def test_a_retired_word_is_noticed(source: str, expected: list[tuple[int, str]]) -> None:
    assert retired_in(source) == expected


def test_of_a_test_only_names_docstrings_and_comments_are_checked() -> None:
    source = 'def stranger():\n    """Hears."""\n    x = "hears"  # nobody'
    assert retired_in(source, only_docstrings=True) == [(1, "stranger"), (2, "hears"), (3, "nobody")]
    assert retired_in(source) == [(1, "stranger"), (2, "hears"), (3, "hears"), (3, "nobody")]
