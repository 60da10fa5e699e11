"""The house: arrows point one way, and the core knows no modality."""

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "mmmask").rglob("*.py"))
NAMES = re.compile(r"\b(image|video)s?\b", re.IGNORECASE)


def test_arrows_point_one_way():
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kept, 0 broken" in done.stdout


def words(source):
    """(line, text) of every name and text of a program; comments and docstrings are left out."""
    previous = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        statement = previous in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)
        docstring = token.type == tokenize.STRING and statement
        if token.type in (tokenize.NAME, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)) and not docstring:
            yield token.start[0], token.string
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            previous = token.type


def test_the_reader_of_programs_sees_names_and_texts_only():
    source = (
        '"""Of images."""\nvideo = "an image"  # of videos\n\ndef f():\n    """Video."""\n    return f"{x} images"\n'
    )
    found = [text for _, text in words(source) if NAMES.search(text)]
    assert found[:2] == ["video", '"an image"']
    assert len(found) == 3


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_core_names_no_modality(path):
    draws = path.relative_to(ROOT / "mmmask").as_posix() in (
        "evaluation/confusion.py",
        "evaluation/pictures.py",
        "evaluation/held_out.py",
        "evaluation/reconstruction.py",
    )
    pillow = {"Image", "image", "images"} if draws else set()  # the class of Pillow, and variables that hold pictures
    found = [
        f"line {line}: {text}" for line, text in words(path.read_text()) if NAMES.search(text) and text not in pillow
    ]
    assert found == []
