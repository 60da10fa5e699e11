"""Writes the distribution of a new plugin from the templates: code that works, its tests, an experiment that trains."""

from __future__ import annotations

import importlib.util
import json
import keyword
import re
import secrets
import shutil
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from string import Template

from mmmask.components import INTERFACE_VERSION, components
from mmmask_registry import MmmaskError, UnknownName

TEMPLATES = Path(__file__).parent / "templates"
SUFFIX = ".template"  # so that no tool takes a template for a program
LONGEST = 32  # of names: lines of the templates still fit
# kind -> [(kind, name, class, line about it)] that its template registers beyond the component itself
ALSO = {
    "modality": [("source", "{}_waves", "WavesSource", "waves that travel along a row of sensors, from a formula")],
}
REGISTRATION = """\
    register(
        "{}",
        "{}",
        "{}",
        "{}",
    )"""
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_NOT_TEXT = ("true", "false", "null")  # to YAML


def kinds() -> list[str]:
    """Kinds of component with a template."""
    return sorted(_words().keys() - {"common"})


@cache
def _words() -> dict[str, dict[str, str]]:
    """{kind: words of its templates}, and those that are common to all kinds."""
    return tomllib.loads((TEMPLATES / "words.toml").read_text(encoding="utf-8"))


def write_plugin(kind: str, name: str, folder: str | Path = ".", authors: Sequence[str] = ()) -> Path:
    """Writes `folder/mmmask-NAME`, whole or not at all.

    Args:
        kind: one of `kinds()`.
        name: of the component; its package is `mmmask_NAME`.
        folder: made if it is not there.
        authors: `Name` or `Name <address>`.

    Returns:
        The folder that was written.

    Raises:
        MmmaskError: the name cannot be used or is taken, or the folder exists or cannot be written.
    """
    if kind not in kinds():
        raise UnknownName("kind of new component", kind, kinds())
    check_name(kind, name)
    target = Path(folder) / f"mmmask-{name}"
    if target.exists() or target.is_symlink():
        raise MmmaskError(f"{target} exists already, and nothing in it was changed: choose another name or --output.")
    files = render(kind, name, authors)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        for path, text in files.items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).write_text(text, encoding="utf-8")
        partial.rename(target)
    except OSError as error:
        raise MmmaskError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def check_name(kind: str, name: str) -> None:
    """Refuses names that cannot be the component's and its package's.

    Raises:
        MmmaskError: it is not made of lower-case words, means something to Python or YAML, or is taken.
    """
    if not _NAME.fullmatch(name) or len(name) > LONGEST:
        mended = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:LONGEST].rstrip("_")
        hint = f" Did you mean {mended!r}?" if mended != name and _NAME.fullmatch(mended) else ""
        raise MmmaskError(
            f"the name {name!r} is not made of lower-case letters, digits and single underscores, a letter first, "
            f"{LONGEST} at most.{hint}"
        )
    if keyword.iskeyword(name) or name in _NOT_TEXT:
        language = "YAML" if name in _NOT_TEXT else "Python"
        raise MmmaskError(f"the name {name!r} has a meaning of its own in {language}: choose another.")
    for of, pattern, *_ in [(kind, "{}"), *ALSO.get(kind, [])]:
        registry = components().registry(of)
        if (wanted := pattern.format(name)) in registry:
            raise MmmaskError(
                f"the {of} {wanted!r} is supplied by {registry.entry(wanted).supplier}: choose another name."
            )
    package = f"mmmask_{name}"
    if found := importlib.util.find_spec(package):
        raise MmmaskError(f"there is a package {package} already ({found.origin}): choose another name.")


def render(kind: str, name: str, authors: Sequence[str] = ()) -> dict[str, str]:
    """{path within the distribution: its text}; a file of the kind's stands before one that all kinds have.

    Raises:
        MmmaskError: an author is no text that can stand in a pyproject.toml.
    """
    title = "".join(word.capitalize() for word in name.split("_"))
    own = _words()[kind]
    components = [(kind, "{}", kind.capitalize(), own["summary"]), *ALSO.get(kind, [])]
    words = {
        "kind": kind,
        "name": name,
        "Name": title,
        "components": ", ".join(f'("{of}", "{pattern.format(name)}")' for of, pattern, *_ in components),
        "registrations": "\n".join(
            REGISTRATION.format(of, pattern.format(name), f"mmmask_{name}.{of}:{title}{suffix}", summary)
            for of, pattern, suffix, summary in components
        ),
        "interface_version": str(INTERFACE_VERSION),
        "authors": _author_lines(authors),
    }
    for word, text in (_words()["common"] | own).items():
        words[word] = Template(text).substitute(words)
    files = {}
    for folder in (TEMPLATES / "common", TEMPLATES / kind):
        for path in sorted(folder.rglob(f"*{SUFFIX}")):
            place = path.relative_to(folder).as_posix().removesuffix(SUFFIX).replace("NAME", name)
            files[place] = Template(path.read_text(encoding="utf-8")).substitute(words)
    return files


def _author_lines(authors: Sequence[str]) -> str:
    """The key `authors` of a pyproject.toml, or nothing."""
    tables = []
    for author in authors:
        parts = re.fullmatch(r"([^<>]*[^<>\s])(?:\s*<([^<>\s]+@[^<>\s]+)>)?", author.strip())
        if not parts or not author.isprintable():
            raise MmmaskError(f"--author {author!r}: expected a name, or 'Name <name@example.org>'.")
        said = {"name": parts[1], "email": parts[2]}
        # a JSON string of printable characters is a TOML string
        pairs = [f"{key} = {json.dumps(text, ensure_ascii=False)}" for key, text in said.items() if text]
        tables.append(f"{{ {', '.join(pairs)} }}")
    return f"authors = [{', '.join(tables)}]\n" if tables else ""
