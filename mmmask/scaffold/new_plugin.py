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
# words of the common templates, each of which may name those before it
COMMON = {
    "quick": "",  # settings for its tests: small where the defaults would take their time, and what a check needs
    "description": "Small rendered pictures. To take your own: streams.images.source.path=/my/pictures",
    "encoder": "{name: vit, width: 96, depth: 3, num_heads: 4}",
    "decoder": "{name: transformer, width: 64, depth: 1, num_heads: 4}",
    "model": "encoder: $encoder\n  decoder: $decoder",
    "stream": "images",
    "augment": "[{name: crop, scale: [0.6, 1.0]}, flip]",
    "modality": "{name: image, size: 48, patch_size: [8, 8], augment: $augment}",
    "source": "{name: folder, path: sample-data/images/train}",
    "held_out": "{name: folder, path: sample-data/images/held_out}",
    "masker": "{name: random, mask_ratio: 0.6}",
    "loss": "{name: pixels, normalize: none, unnormalize: false}   # plain values: figures in decibels mean something",
    "objective": "masker: $masker\n    loss: $loss",
    "steps": "300",
    "optimizer": "{learning_rate: 2e-3}",
    "data": "{workers: 1, sample_data: sample-data}                   # the pictures are written on the first run",
}
# kind -> one line about the template's component, and what its experiment and its tests say otherwise
OWN = {
    "augmentation": {
        "summary": "brighter or darker by a factor that is drawn once per sample",
        "augment": "[{name: crop, scale: [0.6, 1.0]}, flip, $name]",
    },
    "callback": {"summary": "remembers the lowest smoothed loss", "data": COMMON["data"] + "\ncallbacks: [$name]"},
    "decoder": {
        "summary": "transformer layers that look at the latents",
        "decoder": "{name: $name, width: 64, depth: 2, num_heads: 4}",
        "quick": ", width=32, depth=2, num_heads=2",
    },
    "encoder": {
        "summary": "pre-norm transformer layers over the visible tokens",
        "encoder": "{name: $name, width: 96, depth: 3, num_heads: 4}",
        "quick": ", width=32, depth=2, num_heads=2",
    },
    "evaluator": {
        "summary": "effective number of dimensions of the features",
        "objective": COMMON["objective"] + "\n    evaluators: [reconstruction, $name]",
        "quick": ", model=mmmask.build_model(mmmask.load_experiment(EXPERIMENT))",
    },
    "loss": {"summary": "Charbonnier error: squared where small, absolute where large", "loss": "$name"},
    "masker": {
        "summary": "masks everything around a place drawn at random",
        "masker": "{name: $name, mask_ratio: 0.6}",
    },
    "modality": {
        "summary": "recordings of a row of sensors",
        "description": "Held-out waves have another seed: none is trained on. For your own recordings (.npy, float32\n"
        "  (sensors, steps) in [0, 1]): 'streams.$name.source={name: folder, path: /my/files}'",
        "stream": "$name",
        "modality": "{name: $name, sensors: 32, steps: 48, patch_size: [8, 8]}",
        "source": "{name: ${name}_waves, count: 2048}",
        "held_out": "{name: ${name}_waves, count: 64, seed: 1}",
        "steps": "400",
        "optimizer": "{learning_rate: 3e-3}",
        "data": "{workers: 1}",
    },
    "objective": {
        "summary": "tells samples whose tokens stand in reverse order",
        "model": "encoder: $encoder",
        "objective": "objective: $name",
        "optimizer": "{learning_rate: 1e-3}",
    },
    "optimizer": {
        "summary": "stochastic gradient descent with Nesterov's momentum",
        "optimizer": "{name: $name, learning_rate: 0.1}",
    },
    "positions": {
        "summary": "sines of a token's place at several scales, mixed by a learned layer",
        "encoder": "{name: vit, width: 96, depth: 3, num_heads: 4, positions: $name}",
        "decoder": "{name: transformer, width: 64, depth: 1, num_heads: 4, positions: $name}",
    },
    "source": {
        "summary": "soft spots of colour, from a formula",
        "description": "Small pictures made by number. Held-out ones have another seed: none is trained on.",
        "source": "{name: $name, count: 1024}",
        "held_out": "{name: $name, count: 64, seed: 1}",
        "data": "{workers: 1}",
    },
}
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_NOT_TEXT = ("true", "false", "null")  # to YAML


def kinds() -> list[str]:
    """Kinds of component with a template."""
    return sorted(OWN)


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
    components = [(kind, "{}", kind.capitalize(), OWN[kind]["summary"]), *ALSO.get(kind, [])]
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
    for word, text in (COMMON | OWN[kind]).items():
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
