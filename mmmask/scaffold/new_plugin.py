"""Writes the distribution of a new plugin from the templates: code that works, its tests, an experiment that trains."""

from __future__ import annotations

import importlib.util
import json
import keyword
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from string import Template

from mmmask.components import INTERFACE_VERSION, components
from mmmask_registry import MmmaskError, UnknownName

TEMPLATES = Path(__file__).parent / "templates"
SUFFIX = ".template"  # so that no tool takes a template for a program
LONGEST = 32  # of names: lines of the templates still fit
# kind -> what its template registers beyond the component itself
ALSO = {"modality": [("source", "{}_waves")]}
# kind -> settings for its tests: small where the defaults would take their time, and what a check needs besides
_SMALL = ", width=32, depth=2, num_heads=2"
_MODEL = ", model=mmmask.build_model(mmmask.load_experiment(EXPERIMENT))"
QUICK = {"encoder": _SMALL, "decoder": _SMALL, "evaluator": _MODEL}
# kind -> one line about the template's component; the modality's says it itself
SUMMARY = {
    "augmentation": "brighter or darker by a factor that is drawn once per sample",
    "callback": "remembers the lowest smoothed loss",
    "decoder": "predicted tokens look at the latents, and not at each other",
    "encoder": "pre-norm transformer layers over the visible tokens",
    "evaluator": "effective number of dimensions of the features",
    "loss": "Charbonnier error: squared where small, absolute where large",
    "masker": "masks everything around a place drawn at random",
    "objective": "tells samples whose tokens stand in reverse order",
    "optimizer": "stochastic gradient descent with Nesterov's momentum",
    "positions": "sines of a token's place at several scales, mixed by a learned layer",
    "source": "soft spots of colour, from a formula",
}
# what the common experiment says, and kind -> where that names the kind's own component
_MASKER, _PIXELS = "{name: random, mask_ratio: 0.6}", "{name: pixels, normalize: none, unnormalize: false}"
_LEARNED = "    masker: {}\n    loss: {}{}"
_WHY_PLAIN = "   # plain values: figures in decibels mean something"
BLOCKS = {
    "encoder": "{name: vit, width: 96, depth: 3, num_heads: 4}",
    "decoder": "{name: transformer, width: 64, depth: 1, num_heads: 4}",
    "augment": "[{name: crop, scale: [0.6, 1.0]}, flip]",
    "objective": _LEARNED.format(_MASKER, _PIXELS, _WHY_PLAIN),
    "optimizer": "{learning_rate: 2e-3}",
    "callbacks": "",
}
OWN_BLOCKS = {
    "augmentation": {"augment": "[{name: crop, scale: [0.6, 1.0]}, flip, $name]"},
    "callback": {"callbacks": "\ncallbacks: [$name]"},
    "decoder": {"decoder": "{name: $name, width: 64, depth: 2, num_heads: 4}"},
    "encoder": {"encoder": "{name: $name, width: 96, depth: 3, num_heads: 4}"},
    "evaluator": {"objective": f"{BLOCKS['objective']}\n    evaluators: [reconstruction, $name]"},
    "loss": {"objective": _LEARNED.format(_MASKER, "{name: $name}", "")},
    "masker": {"objective": _LEARNED.format("{name: $name, mask_ratio: 0.6}", _PIXELS, _WHY_PLAIN)},
    "optimizer": {"optimizer": "{name: $name, learning_rate: 0.1}"},
    "positions": {
        "encoder": "{name: vit, width: 96, depth: 3, num_heads: 4, positions: $name}",
        "decoder": "{name: transformer, width: 64, depth: 1, num_heads: 4, positions: $name}",
    },
}
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_NOT_TEXT = ("true", "false", "null")  # to YAML


def kinds() -> list[str]:
    """The kinds of component that there are templates of."""
    return sorted(path.name for path in TEMPLATES.iterdir() if path.is_dir() and path.name != "common")


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
    for of, pattern in [(kind, "{}"), *ALSO.get(kind, [])]:
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
    words = {
        "kind": kind,
        "name": name,
        "Name": "".join(word.capitalize() for word in name.split("_")),
        "quick": QUICK.get(kind, ""),
        "Kind": kind.capitalize(),
        "summary": SUMMARY.get(kind, ""),
        "interface_version": str(INTERFACE_VERSION),
        "authors": _author_lines(authors),
    }
    blocks = BLOCKS | OWN_BLOCKS.get(kind, {})
    words |= {block: Template(text).substitute(name=name) for block, text in blocks.items()}
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
