"""Starting from other weights: a model takes what it has a place for, resized where sizes differ."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmmask.experiment import Experiment
from mmmask.interfaces import Grid, Positions, TokenSpec
from mmmask.interop.errors import InteropError
from mmmask.interop.loading import Loaded, Report, read
from mmmask.model.model import Model
from mmmask_registry import MmmaskError

ENCODER, SETTING = "encoder.", "model.weights"
NAMED = 3
"""Problems of one kind that are named where there are many."""
SAME_ROW = 1e-3
"""Distance of two rows of positions that are the same but for rounding."""


def start_from(
    model: Model,
    source: str | Path | Mapping[str, Any],
    format: str | None = None,
    *,
    without: Sequence[str] = (),
    **options: object,
) -> Report:
    """Gives a model the weights of another one, in place.

    Of the encoder everything is taken. An embedding takes the kernel of the same key, or of the only one with as many
    channels, resized as `resize_kernel` says; tables of positions are resized as each kind of positions does it; of
    prefix tokens there may be more or fewer. Of objectives that both models have, tensors of equal key and shape are
    taken, but not what belongs to other classes.

    Args:
        model: any that mmmask builds.
        source, format, options: as of `mmmask.interop.read`; a file may hold the encoder alone.
        without: patterns of keys that are not taken, such as `encoder.norm.*` or, the same, `norm.*`.

    Returns:
        What became of every key on both sides.

    Raises:
        InteropError: it cannot be read, is another encoder than the model's, or some of it does not fit.
    """
    if isinstance(source, str | Path):
        source = os.path.expanduser(source)
    is_run = isinstance(source, str) and os.path.isdir(source)
    with torch.device("cpu"):
        loaded = read(source, format, strict=is_run, **options)
        return _Transfer(model, loaded, without).done()


def start(model: Model, experiment: Experiment) -> Report | None:
    """Starts from the weights that an experiment names; None where it names none.

    Raises:
        InteropError: as of `start_from`; each line names the setting.
    """
    settings = experiment.model.weights
    if settings is None:
        return None
    if taken := sorted({"source", "format", "strict", "without", "model"} & settings.options.keys()):
        raise InteropError(f"{SETTING}.options: {taken[0]} is no option of a format")
    try:
        source = getattr(settings, "from")
        return start_from(model, source, settings.format, without=settings.without, **settings.options)
    except MmmaskError as error:
        lines = str(error).splitlines()
        raise InteropError("\n".join([f"{SETTING}: {lines[0]}", *lines[1:]])) from error


def resize_kernel(kernel: Tensor, trained: Sequence[int], patch: Sequence[int]) -> Tensor:
    """A patch embedding's kernel for patches of another size, by the pseudo-inverse of resizing the patch.

    A resized patch then gives what the patch gave, as far as that is possible (FlexiViT, Beyer et al. 2023, PI-resize).
    The last two axes of a patch are resized bicubically with antialiasing; frames and lines are repeated or averaged.
    So a kernel of one frame is repeated over a tubelet and divided by the number of frames (I3D, Carreira and Zisserman
    2017, section 2.1), and those of a tubelet's frames are summed for a still.

    Args:
        kernel: (outputs, product of `trained` times channels), channel fastest.
        trained, patch: extent of a patch along each axis, (frames, height, width), (height, width) or (length,).

    Returns:
        (outputs, product of `patch` times channels), in the dtype of `kernel`.

    Raises:
        ValueError: one patch is a line and the other not.
    """
    if (len(trained) == 1) != (len(patch) == 1):
        raise ValueError(f"patches of {_size(trained)} and {_size(patch)}: one is a line, the other not")
    axes = max(len(trained), len(patch))
    old, new = ((*(1,) * (axes - len(part)), *part) for part in (trained, patch))
    cells = kernel.double().unflatten(1, (*old, -1))
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        if before != after:
            of_plane = axes > 1 and axis >= axes - 2
            how: dict[str, Any] = {"mode": "bicubic", "antialias": True} if of_plane else {"mode": "area"}
            # along the last axis: torch 2.13 resizes a plane of one column wrongly with antialiasing
            identity = torch.eye(before, dtype=torch.float64, device=kernel.device)[None, :, None]
            resizing = F.interpolate(identity, size=(1, after), **how)[0, :, 0]  # (before, after)
            cells = (torch.linalg.pinv(resizing) @ cells.movedim(axis + 1, -2)).movedim(-2, axis + 1)
    return cells.flatten(1).to(kernel.dtype)


class _Transfer:
    """One model's weights on their way into another's."""

    def __init__(self, model: Model, loaded: Loaded, without: Sequence[str]) -> None:
        self.model, self.source, self.read, self.without = model, loaded.model, loaded.report, tuple(without)
        self.own, known = _without_teacher(model), _without_teacher(self.source)
        self.theirs = {key: part for key, part in known.items() if key not in self.read.missing}
        self.modules, self.their_modules = (dict(each.encoder.named_modules()) for each in (model, self.source))
        self.specs, self.their_specs = (
            {modality.embedding: modality.spec for modality in each.modalities.values()}
            for each in (model, self.source)
        )
        stages = set(model.encoder.stages)
        self.stages = [f"{ENCODER}{name}." for name, part in self.modules.items() if part in stages]
        self.targets = {key for key, _ in model.named_buffers() if ".learned_losses." in key}
        self.tensors: dict[str, Tensor] = {}
        self.origin: dict[str, tuple[str, ...]] = {}
        self.adapted: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.problems: dict[str, list[str]] = {}
        self.notes: list[str] = []

    @torch.no_grad()
    def done(self) -> Report:
        """Fills the model, or raises with all problems."""
        self._check_patterns()
        self._check_encoders()
        self.embedding_of = {key: self._embedding_of(key, spec) for key, spec in self.specs.items()}
        self._check_embeddings()
        self._take_kernels()
        for name in self.modules:
            self._take_made(name)
        for key in self.own:
            if key not in self.origin:
                self._take(key)
        used = {key for keys in self.origin.values() for key in keys}
        unused = {key: self._why_unused(key) for key in self.theirs if key not in used}
        if not self.problems and not any(key.startswith(ENCODER) for key in self.origin):
            self._problem("nothing of the encoder is left to take: give fewer patterns", "without")
        self._raise()
        self.model.load_state_dict({**self.model.state_dict(), **self.tensors})
        if self.model.teacher is not None:
            self.model.teacher.begin(self.model.encoder)
        self._compare_positions()
        return self._report(used, unused)

    # --- before anything is taken

    def _check_patterns(self) -> None:
        names = [*self.own, *self.theirs, *(f"{ENCODER}{name}" for name in self.modules)]
        for pattern in self.without:
            if not any(_matches(name, pattern) for name in names):
                known = "norm.*, embeddings.*, positions.*, blocks.0.*, objectives.*"
                self._problem(f"matches no key of the model and of the weights; such as {known}", f"without {pattern}")

    def _check_encoders(self) -> None:
        """Refuses an encoder of another kind or size at once: every key would be a problem of its own."""
        ours, theirs = self.model.encoder, self.source.encoder
        sizes: list[tuple[str, object, object]] = [("name", ours.config.name, theirs.config.name)]
        if type(ours) is type(theirs):
            sizes = [("width", ours.width, theirs.width), ("depth", len(ours.stages), len(theirs.stages))]
            sizes += [
                ("num_heads", *heads) for part, other in self._alike() if (heads := _both(part, other, "num_heads"))
            ]
        if differ := [size for size in sizes if size[1] != size[2] or type(ours) is not type(theirs)]:
            setting, own, other = differ[0]
            self._problem(f"{own} here, and {other} in the weights: set it to that", f"model.encoder.{setting}")
        self._raise()
        epsilons = {_both(part, other, "eps") for part, other in self._alike() if isinstance(part, nn.LayerNorm)}
        self.notes += [
            f"LayerNorms of the encoder have the epsilon {own:g}, and {other:g} where the weights come from"
            for own, other in filter(None, epsilons)
            if own != other
        ]

    def _alike(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Modules of equal place and type in the two encoders."""
        for name, part in self.modules.items():
            other = self.their_modules.get(name)
            if other is not None and type(part) is type(other):
                yield part, other

    def _embedding_of(self, key: str, spec: TokenSpec) -> str | None:
        """The source's embedding that one begins as: of the same key, or the only one that can be; None for none."""
        alike = [name for name, other in self.their_specs.items() if _are_alike(spec, other)]
        same_patch = [name for name in alike if self.their_specs[name].patch_size == spec.patch_size]
        best = next((names for names in ([key] if key in alike else [], same_patch, alike) if names), [])
        if len(best) > 1:
            self._problem(f"could begin as {' or '.join(best)}: name one in the modality's `embedding`", key)
        if not best:
            return None
        other = self.their_specs[best[0]]
        for what, own, given in (("mean", spec.mean, other.mean), ("std", spec.std, other.std)):
            if own != given:
                self.notes.append(
                    f"{key}: values have the {what} {list(own)}, and {list(given)} where the weights come from"
                )
        return best[0]

    def _check_embeddings(self) -> None:
        left = [key for key in self.specs if self._is_left(f"{ENCODER}embeddings.{key}.weight")]
        if not left and not any(self.embedding_of.values()):
            own, given = (
                ", ".join(f"{key} ({_tokens(spec)})" for key, spec in specs.items())
                for specs in (self.specs, self.their_specs)
            )
            self._problem(f"{own}, and {given} in the weights: none can begin as another; or give without: "
                          "[embeddings.*, positions.*]", "embeddings")  # fmt: skip

    # --- taking

    def _take_kernels(self) -> None:
        """Patch embeddings of another patch size."""
        for key, name in self.embedding_of.items():
            own, given = f"{ENCODER}embeddings.{key}.weight", f"{ENCODER}embeddings.{name}.weight"
            if name is None or self._is_left(own) or own not in self.own or given not in self.theirs:
                continue
            spec, other, kernel = self.specs[key], self.their_specs[name], self.theirs[given]
            is_whole = (self.own[own].shape[1:], kernel.shape[1:]) == ((spec.content_dim,), (other.content_dim,))
            if is_whole and spec.patch_size != other.patch_size:
                self.tensors[own] = resize_kernel(kernel, other.patch_size, spec.patch_size)
                self.origin[own] = (given,)
                self.adapted[own] = f"kernel of {_size(other.patch_size)} made one of {_size(spec.patch_size)}"

    def _take_made(self, name: str) -> None:
        """Copies the counterpart of a module of the encoder, as the module itself does; positions above all."""
        part, place = self.modules[name], self._their_name(name)
        if place is not None and isinstance(self.their_modules.get(shared := place.rpartition(".")[0]), Positions):
            place = shared  # one table for all blocks, where every block here has its own
        keys = [key for key, _ in part.named_parameters(f"{ENCODER}{name}".rstrip("."), recurse=False)]
        left = all(map(self._is_left, keys or [f"{ENCODER}{name}"]))
        if left or place is None or not hasattr(part, "weights_from"):
            return None
        other, where = self.their_modules.get(place), f"{ENCODER}{name}"
        if not isinstance(part, Positions):
            if type(part) is not type(other):
                return None
        elif not isinstance(other, Positions):
            return self._problem("the weights have no such positions: choose theirs", where)
        elif not keys and type(part) is not type(other):
            text = f"{part.config.name} here, and {other.config.name} in the weights: choose that"
            return self._problem(text, "model.encoder.positions")
        try:
            made = cast("Any", part).weights_from(other)
        except ValueError as error:
            return self._problem(f"{error}; begun anew by without: [{name}.*]", where)
        given = [
            key for key, _ in cast("nn.Module", other).named_parameters(f"{ENCODER}{place}".rstrip("."), recurse=False)
        ]
        for parameter, tensor in made.items():
            own, same = (".".join(filter(None, (ENCODER[:-1], each, parameter))) for each in (name, place))
            before = self.theirs.get(same)
            if self._is_left(own) or (before is None and not self.theirs.keys() >= set(given)):
                continue
            if tensor.shape != self.own[own].shape:
                self._problem(f"would be of shape {tuple(tensor.shape)}, not {tuple(self.own[own].shape)}", own)
            self.tensors[own], self.origin[own] = tensor, (same,) if before is not None else tuple(given)
            if before is None or not torch.equal(before, tensor):
                self.adapted[own] = _how(part, other, before, tensor)
        return None

    def _take(self, key: str) -> None:
        """Tensor as it is, or the reason against it."""
        name, own, in_encoder = self._their_name(key), self.own[key], key.startswith(ENCODER)
        given = None if name is None else self.theirs.get(name)
        if self._is_left(key):
            self.missing[key] = "`without` says so"
        elif name is None:
            self.missing[key] = "the weights know no such tokens"
        elif given is None:
            self.missing[key] = "not in the weights"
            if key.startswith(tuple(self.stages)):
                self._problem("in the model, and not in the weights: set model.encoder as it was there", key)
        elif given.shape != own.shape:
            self.missing[key] = f"of shape {tuple(given.shape)} in the weights, {tuple(own.shape)} here"
            if in_encoder:
                self._problem(self.missing[key], key)
        elif not in_encoder and self._is_of_other_classes(key):
            self.missing[key] = "of other classes in the weights"
        elif key in self.targets:
            self.missing[key] = "says what is predicted here"
        else:
            self.tensors[key], self.origin[key] = given, (name,)

    def _why_unused(self, key: str) -> str:
        if self._is_left(key):
            return "`without` says so"
        if key.startswith(tuple(self.stages)):
            self._problem("in the weights, and not in the model: set model.encoder as it was there", key)
        if any(name in key.split(".") for name in self.their_specs.keys() - {*self.embedding_of.values()}):
            return "the model has no such tokens"
        if self.missing.get(key):
            return f"the model's is new: {self.missing[key]}"
        return "the model has no such tensor"

    def _is_left(self, key: str) -> bool:
        return any(_matches(key, pattern) for pattern in self.without)

    def _their_name(self, key: str) -> str | None:
        """A key or a module's name with the source's embedding in place of its own; None where there is none."""
        parts = [self.embedding_of.get(part, part) for part in key.split(".")]
        return None if None in parts else ".".join(cast("list[str]", parts))

    def _is_of_other_classes(self, key: str) -> bool:
        """Whether a tensor belongs to a label set whose classes have other names, or another order, in the source."""
        own, given = (_label_sets(model, key.split(".")[1]) for model in (self.model, self.source))
        return any(
            part in own and not all(names in given.get(part, []) for names in own[part]) for part in key.split(".")
        )

    # --- afterwards

    def _compare_positions(self) -> None:
        """Notes computed tables with rows that the weights were not trained with."""
        for name, part in self.modules.items():
            other = self.their_modules.get(self._their_name(name) or "")
            if not isinstance(part, Positions) or type(part) is not type(other) or [*part.parameters()]:
                continue
            other = cast("Positions", other)
            decided = getattr(part, "trained_grid", None) is not None
            if not decided and not all(_is_known(part, other, grid) for grid in part.grids):
                trained = getattr(other, "trained_grid", None) or max(other.grids, key=math.prod)
                self.notes.append(
                    f"{ENCODER}{name}: computed for {_size(max(part.grids, key=math.prod))} tokens, and the weights "
                    f"were trained on {_size(trained)}; model.encoder.positions.trained_grid: {list(trained)} resizes "
                    "the table of those instead, as fine-tuning mostly does"
                )

    def _report(self, used: Iterable[str], unused: Mapping[str, str]) -> Report:
        foreign = self.read.origin
        of_used = {key for own in used for key in foreign[own]}
        lost = {key: why for own, why in unused.items() for key in foreign[own] if key not in of_used}
        return Report(
            self.read.format,
            {own: tuple(key for given in keys for key in foreign[given]) for own, keys in self.origin.items()},
            {key: how for key, how in self.read.converted.items() if key in of_used},
            {**self.read.unused, **lost},
            self.missing,
            tuple(self.missing),
            self.adapted,
            tuple(dict.fromkeys(self.notes)),
        )

    def _problem(self, problem: str, where: str) -> None:
        self.problems.setdefault(problem, []).append(where)

    def _raise(self) -> None:
        if self.problems:
            raise InteropError("\n".join(f"{_named(keys)}: {problem}" for problem, keys in self.problems.items()))


def _without_teacher(model: Model) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("teacher.")}


def _named(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + more


def _matches(key: str, pattern: str) -> bool:
    return fnmatchcase(key, pattern) or fnmatchcase(key.removeprefix(ENCODER), pattern)


def _both(part: object, other: object, attribute: str) -> tuple[Any, Any] | None:
    """An attribute of two modules, None where they have none."""
    return (getattr(part, attribute), getattr(other, attribute, None)) if hasattr(part, attribute) else None


def _are_alike(spec: TokenSpec, other: TokenSpec) -> bool:
    """Whether an embedding can begin as that of other tokens."""
    if spec.vocab_size is not None or other.vocab_size is not None:
        return (spec.vocab_size, spec.patch_size) == (other.vocab_size, other.patch_size)
    return spec.channels == other.channels and (len(spec.patch_size) == 1) == (len(other.patch_size) == 1)


def _is_known(part: Positions, other: Positions, grid: Grid) -> bool:
    """Whether other positions have the plane of a grid, and every row of its table."""
    table, tables = part(grid), [other(each) for each in other.grids]
    if table is None or any(each is None for each in tables):
        return True
    has_plane = len(grid) == 1 or grid[-2:] in [each[-2:] for each in other.grids]
    known = torch.cat(cast("list[Tensor]", tables)).float().cpu()
    return has_plane and bool(torch.cdist(table.float().cpu(), known, p=math.inf).amin(1).max() < SAME_ROW)


def _label_sets(model: Model, objective: str) -> dict[str, list[Sequence[str]]]:
    """{label set: the names of its classes, of every stream} of an objective, as far as it has classes."""
    objectives = cast("Mapping[str, Any]", getattr(model, "objectives", {}))
    classes = getattr(objectives[objective], "classes", {}) if objective in objectives else {}
    found: dict[str, list[Sequence[str]]] = {}
    for sets in classes.values():
        for name, names in sets.items():
            if list(names) not in found.setdefault(name, []):
                found[name].append(list(names))
    return found


def _how(part: nn.Module, other: object, before: Tensor | None, after: Tensor) -> str:
    shapes = "" if before is None else f" from {tuple(before.shape)}"
    if isinstance(part, Positions) and isinstance(other, Positions):
        own, given = (max(each.grids, key=math.prod) for each in (part, other))
        tokens = f" for {_size(own)} tokens" + (
            f", from {_size(given)} of {other.config.name}" if own != given or not shapes else ""
        )
        return f"made {tuple(after.shape)}{shapes}{tokens}"
    return f"made {tuple(after.shape)}{shapes}"


def _tokens(spec: TokenSpec) -> str:
    return f"{spec.vocab_size} ids" if spec.vocab_size else f"{spec.channels} channels of {_size(spec.patch_size)}"


def _size(numbers: Sequence[int]) -> str:
    return " x ".join(map(str, numbers))
