"""Every check finds the fault that it is there for, in a component that is sound but for that; sound ones pass all."""

import json
import random
import re
import threading
import time
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ConfigDict, Field, PrivateAttr, field_serializer
from torch import nn

from mmmask import MmmaskError, hookimpl, testing
from mmmask.components import INTERFACES, components
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import (
    PLAIN,
    Augmentation,
    BadSample,
    Callback,
    Decoder,
    Encoder,
    EncoderInput,
    Evaluator,
    ForeignWeights,
    Format,
    Latents,
    Loss,
    LossTerm,
    Masker,
    Modality,
    Objective,
    Optimizer,
    Part,
    Plan,
    Pool,
    Positions,
    Preparation,
    Source,
    SourceFile,
    Tokens,
    TokenSpec,
    View,
    Written,
    gather_rows,
    patchify,
    unpatchify,
)
from mmmask.interop.own_format import OwnFormat
from mmmask.model.build import build_model, settings_of
from mmmask.model.masks import mask_from_bool


class SoundMasker(Masker):
    """Masks tokens at random."""

    class Config(Masker.Config):
        mask_ratio: float = Field(default=0.5, ge=0, lt=1, description="share that is masked")

    def scores(self, context):
        return context.noise((context.batch, torch.Size(context.grid).numel()))

    def num_masked(self, grid, step):
        return int(torch.Size(grid).numel() * self.config.mask_ratio)


class SoundPreparation(Preparation):
    """Cuts a piece out of a longer signal."""

    extensions = (".signal",)

    def __init__(self, length):
        self.length = length

    def decode(self, loaded, view):
        if not isinstance(loaded, SourceFile):
            return loaded
        content = np.frombuffer(loaded.read(), np.uint8)
        if not content.size or content.size % 2:
            raise BadSample("not two channels")
        return torch.from_numpy(content.copy()).reshape(2, -1)

    def prepare(self, decoded, view):
        spare = decoded.shape[1] - self.length
        if spare < 0:
            raise BadSample("too short")
        start = 0 if view.place is None else int(torch.randint(spare + 1, (), generator=view.place))
        return decoded[:, start : start + self.length]

    def show(self, sample):
        rows = (sample.clamp(0, 1) * 255).to(torch.uint8)
        return rows.unsqueeze(-1).expand(-1, -1, 3).numpy()


class SoundModality(Modality):
    """Signals of two channels."""

    worker_side = SoundPreparation

    class Config(Modality.Config):
        length: int = Field(default=64, gt=0, description="values of a sample, per channel")

    @property
    def spec(self):
        return TokenSpec((4,), 2, mean=(0.5, 0.5), std=(0.25, 0.25), scale=255.0, range=(0.0, 1.0))

    @property
    def embedding(self):
        return "sound"

    @property
    def sample_shape(self):
        return (2, self.config.length)

    @property
    def preparation(self):
        return self.worker_side(self.config.length)

    def grid(self, shape):
        return (shape[-1] // 4,)

    def tokenize(self, batch):
        content = patchify(batch, (4,))
        return Tokens(content, self.grid(batch.shape), self.spec, normalized=batch.is_floating_point())

    def detokenize(self, content, grid):
        return unpatchify(content, grid, (4,))


class SoundPositions(Positions):
    """A learned table for each grid, and a learned bias for each pair of its tokens."""

    def __init__(self, config, width, grids, num_prefix=0, heads=0):
        super().__init__(config, width, grids, num_prefix, heads)
        sizes = {grid: torch.Size(grid).numel() for grid in self.grids}
        self.tables = nn.ParameterDict({str(grid): torch.randn(size, width) for grid, size in sizes.items()})
        side = {grid: size + num_prefix for grid, size in sizes.items()}
        self.biases = nn.ParameterDict({str(grid): torch.randn(2, size, size) for grid, size in side.items()})

    def forward(self, grid):
        return self.tables[str(tuple(grid))]

    def bias(self, grid, rows):
        whole = self.biases[str(tuple(grid))]
        if rows is None:
            return whole
        prefix = torch.arange(self.num_prefix).expand(len(rows), -1)
        at = torch.cat([prefix, rows + self.num_prefix], dim=1)
        return whole[:, at.unsqueeze(2), at.unsqueeze(1)].transpose(0, 1)


class Places(nn.Module):
    """A learned vector per token of the largest grid."""

    def __init__(self, width, embedding):
        super().__init__()
        self.table = nn.Parameter(torch.randn(torch.Size(embedding.grids[0]).numel(), width))


class Look(nn.Module):
    """Attention of some tokens to others."""

    def __init__(self, width):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, asked, seen):
        return asked + self.attention(asked, seen, seen, need_weights=False)[0]


class CountingLook(Look):
    """Has a number of its own for every step."""

    def forward(self, asked, seen):
        step = counted(self)
        return super().forward(asked, seen) + step - step


class SoundEncoder(Encoder):
    """Attention over the visible tokens, once."""

    class Config(Encoder.Config):
        width: int = Field(default=16, gt=0, description="width of a token")

    def __init__(self, config, embeddings):
        super().__init__(config, embeddings)
        width = config.width
        self.embeddings = nn.ModuleDict({key: part.build(width) for key, part in embeddings.items()})
        self.places = nn.ModuleDict({key: Places(width, part) for key, part in embeddings.items()})
        self.look = Look(width)
        self.norm = nn.LayerNorm(width)

    @property
    def width(self):
        return self.config.width

    @property
    def stages(self):
        return [self.look]

    def by_depth(self):
        return [[self.look], [self.norm]]

    def forward(self, inputs, stages=()):
        return [self.encoded(one, stages) for one in inputs]

    def encoded(self, one, stages):
        rows = self.seen(self.embed(one))
        return Latents(self.norm(rows), one.mask.visible, stages=(rows,) * len(stages))

    def seen(self, rows):
        return self.look(rows, rows)

    def embed(self, one):
        visible = one.mask.visible
        if len(one.parts) == 1:
            return self.embed_part(one.part, visible) + self.places[one.part.key].table[visible]
        every = [self.embed_part(part, None) + self.places[part.key].table for part in one.parts]
        return gather_rows(torch.cat(every, dim=1), visible)

    def embed_part(self, part, index):
        return self.embeddings[part.key](part.tokens.values(index))


class SoundDecoder(Decoder):
    """Every predicted token looks at the latents once."""

    def __init__(self, config, embeddings, latent_width):
        super().__init__(config, embeddings, latent_width)
        self.places = nn.ModuleDict({key: Places(latent_width, part) for key, part in embeddings.items()})
        self.look = Look(latent_width)
        self.norm = nn.LayerNorm(latent_width)

    @property
    def width(self):
        return self.norm.weight.shape[0]

    @property
    def stages(self):
        return [self.look]

    def forward(self, inputs):
        return [self.answer(one) for one in inputs]

    def answer(self, one):
        return self.norm(self.look(self.asked(one), one.latents.values))

    def asked(self, one):
        return self.places[one.key].table[one.mask.predicted]


class SoundLoss(Loss):
    """Mean squared difference of the normalised values."""

    def prediction_dim(self, spec):
        from mmmask import MmmaskError

        if spec.vocab_size is not None:
            raise MmmaskError("for values")
        return spec.content_dim

    def target(self, tokens, index):
        return tokens.values(index)

    def error(self, prediction, target):
        return (prediction.float() - target).nan_to_num().square().mean(-1)

    def restore(self, prediction, tokens, index, statistics):
        return Tokens(prediction, tokens.grid, tokens.spec, normalized=True).raw()

    def baseline(self, tokens, mask):
        return tokens.values(mask.visible).nan_to_num().mean(1, keepdim=True).expand(-1, mask.predicted.shape[1], -1)


class TaughtLoss(SoundLoss):
    """Mean squared difference to the teacher's latents."""

    class Config(SoundLoss.Config):
        needs_teacher = True

    def __init__(self, config, teacher):
        super().__init__(config)
        self.width = teacher.width

    def prediction_dim(self, spec):
        return self.width

    def target(self, tokens, index, latents):
        return gather_rows(latents.values, index)

    def restore(self, prediction, tokens, index, statistics):
        raise NotImplementedError("no content")

    def baseline(self, tokens, mask):
        return None


class SoundSource(Source):
    """Numbers."""

    class Config(Source.Config):
        count: int = Field(default=20, ge=0, description="how many there are")

    def __len__(self):
        return self.config.count

    def load(self, index):
        return torch.full((2, 70), index, dtype=torch.uint8)


class PairsSource(SoundSource):
    """Numbers, every third of which lacks its right half."""

    pairs_parts = True

    def load(self, index):
        return {"left": super().load(index), "right": None if index % 3 else super().load(index)}


class SoundFormat(Format):
    """mmmask's own layout, every key under a name of its own."""

    @classmethod
    def recognizes(cls, keys):
        return "sound.mmmask.settings" in keys

    def read(self, state):
        own = OwnFormat(OwnFormat.Config(name="mmmask")).read({key.removeprefix("sound."): state[key] for key in state})
        origin = {key: (f"sound.{key}",) for key in own.state}
        unused = {f"sound.{key}": why for key, why in own.unused.items()}
        return ForeignWeights(own.settings, own.state, origin, unused=unused)

    def write(self, settings, state):
        own = OwnFormat(OwnFormat.Config(name="mmmask")).write(settings, state)
        return Written({f"sound.{key}": tensor for key, tensor in own.state.items()})


class LearnedMasker(nn.Module, SoundMasker):
    """Masks what it has learned to be hard, with a loss of its own."""

    def __init__(self, config):
        nn.Module.__init__(self)
        self.config = config
        self.place = nn.Parameter(torch.ones(1))

    def scores(self, context):
        return super().scores(context) * self.place

    def loss(self, mask, error):
        return error * self.place


class SoundPool(Pool):
    """A mean of what a layer makes of the tokens."""

    def __init__(self, config, width):
        super().__init__(config, width)
        self.layer = nn.Linear(width, width)

    def forward(self, latents):
        return self.layer(latents.values).mean(1)


class SoundAugmentation(Augmentation):
    """Cuts a window out."""

    def __call__(self, content, view, target):
        if view.place is None:
            return content
        start = int(torch.randint(content.shape[-1] - target.size[-1] + 1, (), generator=view.place))
        return content[..., start : start + target.size[-1]]


class SoundOptimizer(Optimizer):
    """Gradient descent with momentum."""

    def build(self, groups):
        return torch.optim.SGD(list(groups), lr=0.0, momentum=0.9)


class SoundEvaluator(Evaluator):
    """The mean of the samples."""

    def __init__(self, config, model, stream):
        super().__init__(config, model, stream)
        self.sum, self.count = 0.0, 0

    def add(self, batch, first, total):
        self.sum += float(batch.content.double().mean(dim=(1, 2)).sum())
        self.count += len(batch)

    def figures(self):
        return {"mean": self.sum / self.count, "psnr": None}

    def state(self):
        return self.sum, self.count

    def merge(self, states):
        self.sum, self.count = (sum(part) for part in zip(*states, strict=True))


class SoundCallback(Callback):
    """Counts steps."""

    def __init__(self, config):
        super().__init__(config)
        self.count = torch.tensor(3)

    @hookimpl
    def step_ended(self, run, metrics):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class SoundObjective(Objective):
    """Tells from half of the tokens of which class a sample is."""

    def __init__(self, streams, context):
        super().__init__(streams, context)
        (self.modality,) = context.modalities.values()
        self.layer = nn.Linear(context.encoder.width, len(context.classes["stream"]["label"]))

    def plan(self, tokens, batches, context):
        (cut,) = tokens.values()
        ranks = context.noise("stream", "mask")(cut.content.shape[:2]).argsort(1)
        given = EncoderInput((Part(self.modality.embedding, cut),), mask_from_bool(ranks < cut.content.shape[1] // 2))
        return Plan(tokens, batches, {"stream": given}, {"stream": float(len(cut.content))})

    def losses(self, plan, latents):
        scores = self.layer(latents["stream"].values.mean(1))
        error = nn.functional.cross_entropy(scores, plan.batches["stream"].labels["label"], reduction="sum")
        return {"stream": LossTerm(error, plan.counts["stream"])}


SOUND = {
    "masker": SoundMasker, "modality": SoundModality, "positions": SoundPositions, "encoder": SoundEncoder,
    "decoder": SoundDecoder, "loss": SoundLoss, "source": SoundSource, "format": SoundFormat, "pool": SoundPool,
    "augmentation": SoundAugmentation, "optimizer": SoundOptimizer, "evaluator": SoundEvaluator,
    "callback": SoundCallback, "objective": SoundObjective,
}  # fmt: skip
FAULTS = []
"""(kind, check, component that breaks its promise)"""


def fault(kind, check, name, **changes):
    """Plants a fault: the sound component with some attributes changed, as a class of this module."""
    sound = SOUND[kind]
    component = type(sound)(name, (sound,), {"__doc__": f"{name}.", "__module__": __name__, **changes})
    globals()[name] = component
    FAULTS.append((kind, check, component))


def preparation_fault(check, name, **changes):
    """Plants a fault in the worker side of a modality."""
    worker = type(f"{name}Worker", (SoundPreparation,), {"__module__": __name__, **changes})
    globals()[worker.__name__] = worker
    fault("modality", check, name, worker_side=worker)


def counted(part):
    """Number of times an object was asked."""
    part.__dict__["asked"] = part.__dict__.get("asked", 0) + 1
    return part.asked


def kept(part, value):
    """First argument that an object was given."""
    return part.__dict__.setdefault("kept", value)


def unseeded():
    """A generator with a seed that nobody chose."""
    generator = torch.Generator()
    generator.seed()
    return generator


def with_attribute(name, value):
    """An `__init__` that also sets an attribute."""

    def init(self, *args, **kwargs):
        super(type(self), self).__init__(*args, **kwargs)
        setattr(self, name, value())

    return init


def with_other_weights(weights):
    """An `__init__` whose weights have a seed that nobody chose."""

    def init(self, *args, **kwargs):
        super(type(self), self).__init__(*args, **kwargs)
        weights(self).data.normal_(generator=unseeded())

    return init


def idle():
    """A parameter that is not used."""
    return nn.Parameter(torch.ones(3))


class WithoutDescription(SoundMasker.Config):
    strength: int = 3


class Tolerant(SoundMasker.Config):
    model_config = ConfigDict(extra="ignore")


class Wavering(SoundMasker.Config):
    model_config = ConfigDict(frozen=False)


class Forgetful(SoundMasker.Config):
    mask_ratio: float = Field(default=0.5, ge=0, lt=1, description="share that is masked")

    @field_serializer("mask_ratio")
    def _halved(self, ratio):
        return ratio / 2


class Clinging(SoundMasker.Config):
    _lock: Any = PrivateAttr(default_factory=threading.Lock)


def refuse(*_):
    raise MmmaskError("not this grid")


def erase(self, context):
    context.tokens.content.zero_()
    return SoundMasker.scores(self, context)


def waste(self, context):
    np.random.rand()
    return SoundMasker.scores(self, context)


def contrast(self, context):
    content = context.tokens.content.double()
    return (content - content.mean(0, keepdim=True)).mean(-1)


scores = SoundMasker.scores
masker_faults = {
    "LeavesOut": ("leaves_no_method_out", {"num_masked": abstractmethod(lambda self, grid, step: 0)}),
    "Silent": ("says_what_it_is", {"__doc__": None}),
    "Puzzling": ("describes_every_setting", {"Config": WithoutDescription}),
    "Tolerating": ("keeps_settings_strict", {"Config": Tolerant}),
    "Wobbling": ("keeps_settings_strict", {"Config": Wavering}),
    "Forgetting": ("writes_settings_that_read_the_same", {"Config": Forgetful}),
    "Sticking": ("pickles_settings", {"Config": Clinging}),
    "Short": ("masks_an_exact_number", {"scores": lambda self, context: scores(self, context)[:, 1:]}),
    "Boundless": ("masks_an_exact_number", {"num_masked": lambda self, grid, step: -1}),
    "Halving": ("masks_an_exact_number", {"num_masked": lambda self, grid, step: torch.Size(grid).numel() * 0.5}),
    "Unranked": ("masks_an_exact_number", {"scores": lambda self, context: scores(self, context) * torch.nan}),
    "Choosy": ("masks_an_exact_number", {"num_masked": refuse}),
    "Counting": (
        "is_a_function_of_what_it_is_given",
        {"scores": lambda self, context: scores(self, context).roll(counted(self), dims=1)},
    ),
    "Gambling": (
        "leaves_global_random_state_alone",
        {"scores": lambda self, context: torch.rand(context.batch, torch.Size(context.grid).numel())},
    ),
    "Wasting": ("leaves_global_random_state_alone", {"scores": waste}),
    "Neighbourly": ("keeps_samples_apart", {"scores": lambda self, context: scores(self, context).roll(1, dims=0)}),
    "Contrasting": ("keeps_samples_apart", {"scores": contrast}),
    "Comparing": (
        "keeps_samples_apart",
        {"scores": lambda self, context: contrast_batch(self, context.features().values.double()).mean(-1)},
    ),
    "Erasing": ("leaves_its_input_alone", {"scores": erase}),
    "Locked": ("can_be_pickled", {"__init__": with_attribute("lock", threading.Lock)}),
    "Partial": (
        "masks_an_exact_number",
        {"scores": lambda self, context: scores(self, context)[:, : context.parts.get("first")]},
    ),
    "Hashing": (
        "does_not_hash_texts",
        {"scores": lambda self, context: scores(self, context).roll(hash("a string") % 5, dims=1)},
    ),
    "Hoarding": ("is_a_module_where_it_learns", {"__init__": with_attribute("table", lambda: torch.zeros(3))}),
}
for name, (check, changes) in masker_faults.items():
    fault("masker", check, f"{name}Masker", **changes)


class IdleMasker(LearnedMasker):
    """Has a parameter that its loss does not reach."""

    def __init__(self, config):
        super().__init__(config)
        self.idle = idle()


class ChoosingMasker(LearnedMasker):
    """Expects to learn from its choice of tokens, which has no gradient."""

    def loss(self, mask, error):
        return None


FAULTS += [("masker", "is_a_module_where_it_learns", faulty) for faulty in (IdleMasker, ChoosingMasker)]


def flat_tokens(self, batch):
    tokens = SoundModality.tokenize(self, batch)
    return replace(tokens, grid=(2, tokens.grid[0] // 2))


def changed_tokens(change):
    def tokenize(self, batch):
        tokens = SoundModality.tokenize(self, batch)
        return replace(tokens, content=change(tokens.content))

    return tokenize


def assert_shapes(self, batch):
    assert batch.dim() == 3
    assert batch.shape[-1] % 4 == 0
    return SoundModality.tokenize(self, batch)


class SharingEmbedding(nn.Linear):
    def forward(self, values):
        return super().forward(values - values.mean(1, keepdim=True))


class IntegerTokens(Tokens):
    """Has no idea of any integers but bytes."""

    def values(self, index=None):
        content = self.content if index is None else gather_rows(self.content, index)
        return content if content.dtype != torch.uint8 else super().values(index)


tokenize, detokenize = SoundModality.tokenize, SoundModality.detokenize
fault(
    "modality", "has_sizes_that_agree", "FlatModality",
    tokenize=flat_tokens, detokenize=lambda self, content, grid: detokenize(self, content, (grid[0] * grid[1],)),
)  # fmt: skip
fault(
    "modality", "detokenizes_what_it_tokenizes", "MirroredModality",
    detokenize=lambda self, content, grid: detokenize(self, content, grid).flip(-1),
)  # fmt: skip
fault(
    "modality", "detokenizes_what_it_tokenizes", "FloatingModality", tokenize=changed_tokens(lambda part: part.float())
)
fault(
    "modality", "only_rearranges", "DimmedModality",
    tokenize=changed_tokens(lambda part: part + 1),
    detokenize=lambda self, content, grid: detokenize(self, content - 1, grid),
)  # fmt: skip
fault(
    "modality", "tokenizes_every_sample_by_itself", "ContrastModality",
    tokenize=lambda self, batch: tokenize(self, batch - batch[:1]),
)  # fmt: skip
fault(
    "modality", "refuses_samples_of_another_size", "CroppingModality",
    tokenize=lambda self, batch: tokenize(self, batch[..., : batch.shape[-1] // 4 * 4]),
)  # fmt: skip
fault("modality", "refuses_samples_of_another_size", "AssertingModality", tokenize=assert_shapes)
fault(
    "modality", "embeds_every_token_by_itself", "SharingModality",
    build_embedding=lambda self, width: SharingEmbedding(8, width),
)  # fmt: skip
fault("modality", "holds_no_weights", "LearningModality", __init__=with_attribute("table", lambda: nn.Linear(3, 3)))
fault(
    "modality", "guesses_from_visible_tokens", "PeekingModality",
    baseline=lambda self, tokens, mask: tokens.raw().mean(1, keepdim=True).expand(-1, mask.predicted.shape[1], -1),
)  # fmt: skip
fault(
    "modality", "has_values_in_any_dtype", "BytesModality",
    spec=property(lambda self: TokenSpec((4,), 2, mean=(0.0, 0.0), std=(9.0, 9.0))),
    tokenize=lambda self, batch: IntegerTokens(patchify(batch, (4,)), self.grid(batch.shape), self.spec),
)  # fmt: skip
fault(
    "modality", "has_values_in_any_dtype", "BoundlessModality",
    spec=property(lambda self: TokenSpec((4,), 2, mean=(0.5, 0.5), std=(0.2, 0.2), scale=255.0, range=(0.0, 0.5))),
)  # fmt: skip
show, decode, prepare = SoundPreparation.show, SoundPreparation.decode, SoundPreparation.prepare
preparation_fault("draws_pictures", "GreyModality", show=lambda self, sample: show(self, sample)[..., 0])
preparation_fault("holds_no_weights", "HoardingModality", __init__=with_attribute("window", lambda: torch.ones(64)))
preparation_fault("names_endings_in_lower_case", "ShoutingModality", extensions=(".SIGNAL",))
preparation_fault(
    "pickles_its_worker_side", "OpenModality", __init__=with_attribute("change", lambda: lambda sample: sample)
)
preparation_fault(
    "prepares_samples_that_fit", "LongModality",
    prepare=lambda self, decoded, view: prepare(self, decoded, view) if view.generator is None else decoded,
)  # fmt: skip
preparation_fault(
    "is_a_function_of_what_it_is_given", "CountingModality",
    prepare=lambda self, decoded, view: prepare(self, decoded.roll(counted(self), dims=1), view),
)  # fmt: skip
preparation_fault(
    "leaves_global_random_state_alone", "GamblingModality",
    prepare=lambda self, decoded, view: prepare(self, decoded.roll(random.randrange(40), dims=1), view),
)  # fmt: skip
preparation_fault(
    "moves_with_the_geometry_alone", "WanderingModality",
    prepare=lambda self, decoded, view: prepare(self, decoded, View(view.generator, view.index, view.of)),
)  # fmt: skip


def share(self, loaded, view):
    self.turn = 0 if view.generator is None else int(torch.randint(40, (), generator=view.generator))
    time.sleep(1e-4)
    return loaded


def stop(self, loaded, view):
    if isinstance(loaded, SourceFile) and not loaded.read():
        raise OSError("an empty file")
    return decode(self, loaded, view)


preparation_fault(
    "prepares_in_several_threads", "SharedModality",
    decode=share, prepare=lambda self, decoded, view: prepare(self, decoded.roll(self.turn, dims=1), PLAIN),
)  # fmt: skip
preparation_fault(
    "decodes_clips_as_one_by_one", "HastyModality",
    decode_clips=lambda self, loaded, count: [decode(self, loaded, PLAIN).roll(1, dims=1)] * count,
)  # fmt: skip
preparation_fault("calls_broken_files_bad_samples", "StrictModality", decode=stop)


def mixed(self, grid, rows):
    bias = SoundPositions.bias(self, grid, rows)
    return bias if rows is None else bias.transpose(2, 3)


def equal(self, grid):
    table = SoundPositions.forward(self, grid)
    return torch.cat([table[:1], table[:1], table[2:]])


def noisy(self, grid):
    table = SoundPositions.forward(self, grid)
    return table + 0.1 * torch.randn(table.shape, dtype=table.dtype)


def nothing(self, *_):
    return None


place = SoundPositions.forward
fault("positions", "fits_every_grid", "FirstPositions", forward=lambda self, grid: place(self, self.grids[0]))
fault("positions", "fits_every_grid", "SilentPositions", forward=nothing, bias=nothing)
fault("positions", "biases_some_as_among_all", "MixedPositions", bias=mixed)
fault("positions", "tells_places_apart", "EqualPositions", forward=equal, bias=nothing)
fault("positions", "trains_every_parameter", "IdlePositions", __init__=with_attribute("idle", idle))
fault("positions", "follows_the_models_dtype", "SinglePositions", forward=lambda self, grid: place(self, grid).float())
fault("positions", "leaves_global_random_state_alone", "NoisyPositions", forward=noisy)
fault(
    "positions", "is_a_function_of_what_it_is_given", "DriftingPositions",
    forward=lambda self, grid: place(self, grid) * counted(self),
)  # fmt: skip
fault(
    "positions", "has_the_weights_of_its_seed", "UnseededPositions",
    __init__=with_other_weights(lambda self: next(iter(self.tables.values()))),
)  # fmt: skip
fault(
    "positions", "can_be_evaluated_first", "CachedPositions",
    forward=lambda self, grid: kept(self, {}).setdefault(grid, place(self, grid).detach() * 2),
)  # fmt: skip


def but_values(change):
    """An encoder's forward whose latents are changed by `change(self, values, one input, all inputs)`."""

    def forward(self, given, stages=()):
        return [
            Latents(change(self, latents.values, one, given), latents.index)
            for latents, one in zip(SoundEncoder.forward(self, given), given, strict=True)
        ]

    return {"forward": forward}


def but_features(change):
    """A decoder's answer, changed by `change(self, features, input)`."""
    return {"answer": lambda self, given: change(self, SoundDecoder.answer(self, given), given)}


def peek(self, values, one, given):
    return values + self.embeddings[one.part.key](one.part.tokens.values().nan_to_num()).mean(1, keepdim=True)


def erase_tokens(self, values, one, given):
    one.part.tokens.content.zero_()
    return values


def erase_latents(self, features, given):
    given.latents.values.data.zero_()
    return features


def part_by_part(self, one, stages, count):
    """Latents of so many parts, each encoded by itself."""
    if len(one.parts) == 1:
        return SoundEncoder.encoded(self, one, stages)
    first, values, index = 0, [], []
    for part in one.parts[:count]:
        masked = one.mask.masked[:, first : first + part.tokens.content.shape[1]]
        alone = replace(one, parts=(part,), mask=mask_from_bool(masked))
        latents = SoundEncoder.encoded(self, alone, stages)
        values, index = [*values, latents.values], [*index, latents.index + first]
        first += masked.shape[1]
    return Latents(torch.cat(values, dim=1), torch.cat(index, dim=1))


def mix_up(self, features, given):
    """Latents of all parts by the places of the part that is asked for."""
    table, index = self.places[given.key].table, given.latents.index
    if index is None:
        return features
    return features + (given.latents.values * table[index % len(table)]).mean(1, keepdim=True)


def late(self, given, stages=()):
    every = [self.embeddings[one.part.key](one.part.tokens.values()) for one in given]
    return [
        Latents(gather_rows(self.norm(self.seen(rows)), one.mask.visible), one.mask.visible)
        for rows, one in zip(every, given, strict=True)
    ]


def cached(self, values, *_):
    return values * kept(self, torch.ones(self.width, dtype=values.dtype) * 2)


def neighbours_noise(self, values, one, *_):
    return values if one.noise is None else values * one.noise(values.shape).roll(1, 0)


def gamble(self, values, *_):
    return nn.functional.dropout(values, 0.1, self.training)


def contrast_batch(self, values, *_):
    return values - values.mean(0, keepdim=True)


def unseeded_look(self):
    return self.look.attention.in_proj_weight


WIDTHS = {"encoder": 16, "decoder": 32}
for kind, but in (("encoder", but_values), ("decoder", but_features)):
    called = kind.capitalize()
    fault(kind, "trains_every_parameter", f"Idle{called}", __init__=with_attribute("idle", idle))
    fault(kind, "keeps_samples_apart", f"Contrast{called}", **but(contrast_batch))
    fault(kind, "leaves_global_random_state_alone", f"Dropping{called}", **but(gamble))
    fault(kind, "has_the_weights_of_its_seed", f"Unseeded{called}", __init__=with_other_weights(unseeded_look))
    fault(kind, "follows_the_models_dtype", f"Single{called}", **but(lambda self, values, *_: values.float()))
    fault(kind, "can_be_evaluated_first", f"Caching{called}", **but(cached))
    fault(kind, "draws_from_its_noise_alone", f"Mistaken{called}", **but(neighbours_noise))
    fault(
        kind,
        "compiles_once",
        f"Counting{called}",
        __init__=with_attribute("look", lambda width=WIDTHS[kind]: CountingLook(width)),
    )
fault(
    "encoder", "gives_every_input_its_latents", "NarrowEncoder", **but_values(lambda self, values, *_: values[..., 1:])
)
fault(
    "encoder", "gives_every_input_its_latents", "LosingEncoder",
    forward=lambda self, given, stages=(): [
        Latents(part.values[:, :-1], part.index[:, :-1]) for part in SoundEncoder.forward(self, given)
    ],
)  # fmt: skip
fault(
    "encoder", "gives_every_token_where_nothing_is_masked", "FlatMapsEncoder",
    feature_maps=lambda self, given: [[latents.values] for latents in self(given)],
)  # fmt: skip
fault(
    "encoder", "gives_the_stages_asked_for", "ShallowEncoder",
    encoded=lambda self, one, stages: replace(SoundEncoder.encoded(self, one, stages), stages=()),
)  # fmt: skip
fault("encoder", "knows_its_modules_by_depth", "FlatEncoder", by_depth=lambda self: [[self.look]])
fault("encoder", "knows_its_modules_by_depth", "ForgetfulEncoder", by_depth=lambda self: [[self.look], []])
fault(
    "encoder", "knows_its_modules_by_depth", "UpturnedEncoder",
    by_depth=lambda self: [[self.look], [self.norm, self.embeddings]],
)  # fmt: skip
fault("encoder", "does_not_see_what_is_masked", "PeekingEncoder", **but_values(peek))
fault(
    "encoder",
    "trains_every_parameter",
    "DetachedEncoder",
    seen=lambda self, rows: SoundEncoder.seen(self, rows.detach()),
)
fault(
    "encoder", "keeps_inputs_apart", "MixingEncoder", **but_values(lambda self, values, one, given: values * len(given))
)
fault(
    "encoder", "encodes_parts_together", "SeparateEncoder",
    encoded=lambda self, one, stages: part_by_part(self, one, stages, len(one.parts)),
)  # fmt: skip
fault(
    "encoder", "encodes_parts_together", "OneSidedEncoder",
    encoded=lambda self, one, stages: part_by_part(self, one, stages, 1),
)  # fmt: skip
fault("encoder", "leaves_its_input_alone", "ErasingEncoder", **but_values(erase_tokens))
fault("encoder", "keeps_little_of_masked_tokens", "LateEncoder", forward=late)
fault(
    "decoder", "answers_every_input", "TalkativeDecoder",
    asked=lambda self, given: self.places[given.key].table.expand(len(given.mask.predicted), -1, -1),
)  # fmt: skip
fault(
    "decoder", "tells_predicted_places_apart", "PlacelessDecoder",
    asked=lambda self, given: SoundDecoder.asked(self, given) * 0,
)  # fmt: skip
fault(
    "decoder", "keeps_inputs_apart", "MixingDecoder",
    forward=lambda self, given: [part * len(given) for part in SoundDecoder.forward(self, given)],
)  # fmt: skip
fault("decoder", "leaves_its_input_alone", "ErasingDecoder", **but_features(erase_latents))
fault("decoder", "knows_latents_by_layout", "MixedUpDecoder", **but_features(mix_up))


def deaf(self, prediction, target):
    return SoundLoss.error(self, torch.cat([prediction[:, :-1], prediction[:, -1:].detach()], dim=1), target)


def gambled(self, tokens, index):
    values = SoundLoss.target(self, tokens, index)
    return values * (torch.rand(values.shape) > 0.5)


def erase_target(self, prediction, target):
    error = SoundLoss.error(self, prediction, target)
    target.zero_()
    return error


def greedy(self, tokens, index):
    values = SoundLoss.target(self, tokens, index)
    return values - values.min() * 0


def secretive(self, prediction, tokens, index, statistics):
    restored = SoundLoss.restore(self, prediction, tokens, index, statistics)
    return restored if statistics is None else restored + tokens.raw(statistics).nanmean((1, 2), keepdim=True)


error, target = SoundLoss.error, SoundLoss.target
loss_faults = {
    "Infinite": (
        "gives_every_prediction_an_error",
        {"error": lambda self, prediction, wanted: error(self, prediction, wanted).div(0)},
    ),
    "Narrow": (
        "gives_every_prediction_an_error",
        {"error": lambda self, one, other: (one - other.nan_to_num().to(one.dtype)).square().mean(-1)},
    ),
    "Greedy": ("takes_no_predictions", {"target": greedy}),
    "Deaf": ("teaches_predictions", {"error": deaf}),
    "Crooked": ("prefers_what_is_right", {"error": lambda self, one, other: error(self, one, 2 * other)}),
    "Contrast": (
        "keeps_samples_apart", {"target": lambda self, *given: contrast_batch(self, target(self, *given).nan_to_num())}
    ),
    "Noisy": ("leaves_global_random_state_alone", {"target": gambled}),
    "Erasing": ("leaves_its_input_alone", {"error": erase_target}),
    "Forgetting": ("restores_what_is_right", {"restore": lambda self, prediction, *_: prediction}),
    "Secretive": ("says_whether_it_needs_statistics", {"restore": secretive}),
    "Peeking": (
        "guesses_from_visible_tokens",
        {
            "baseline": lambda self, tokens, mask: (
                tokens.values().nan_to_num().mean(1, keepdim=True).expand(-1, mask.predicted.shape[1], -1)
            )
        },
    ),
}  # fmt: skip
for name, (check, changes) in loss_faults.items():
    fault("loss", check, f"{name}Loss", **changes)


class LearnedTargetLoss(nn.Module, TaughtLoss):
    """Learns what is to be predicted, which is soon nothing."""

    def __init__(self, config, teacher):
        nn.Module.__init__(self)
        TaughtLoss.__init__(self, config, teacher)
        self.scale = nn.Parameter(torch.ones(1))

    def target(self, tokens, index, latents):
        return super().target(tokens, index, latents) * self.scale


class HoldingLoss(TaughtLoss):
    """Holds the teacher."""

    def __init__(self, config, teacher):
        super().__init__(config, teacher)
        self.teacher = teacher


class FirstLoss(TaughtLoss):
    """Takes the latents of the first tokens for those of the predicted ones."""

    def target(self, tokens, index, latents):
        return latents.values[:, : index.shape[1]]


FAULTS += [
    ("loss", "gives_every_token_its_target", FirstLoss),
    ("loss", "gives_every_token_its_target", LearnedTargetLoss),
    ("loss", "keeps_sizes_of_the_teacher", HoldingLoss),
]


def lost(self, index):
    raise BadSample("lost")


def shared_place(self, index):
    self.place = index
    time.sleep(1e-4)
    return SoundSource.load(self, self.place)


load = SoundSource.load
source_faults = {
    "Empty": ("has_samples", {"__len__": lambda self: 0}),
    "Bad": ("has_samples", {"load": lost}),
    "Streaming": ("numbers_its_samples_for_good", {"load": lambda self, index: load(self, counted(self) % 20)}),
    "Nameless": ("names_its_samples", {"describe": lambda self, index: "a sample"}),
    "Unclassed": (
        "names_its_samples",
        {"label": lambda self, index: str(index), "classes": property(lambda self: {"label": ("1", "0")})},
    ),
    "Numbered": ("names_its_samples", {"label": lambda self, index: index}),
    "Twofold": (
        "names_its_samples",
        {"label": lambda self, index: "a", "classes": property(lambda self: {"label": ("a", "a")})},
    ),
    "Plural": (
        "names_its_samples",
        {
            "several": ("label",),
            "labels": lambda self, index: {"label": "a"},
            "classes": property(lambda self: {"label": ("a",)}),
        },
    ),
    "Locked": ("can_be_pickled", {"__init__": with_attribute("lock", threading.Lock)}),
    "Shared": ("serves_several_threads", {"load": shared_place}),
    "Gambling": (
        "leaves_global_random_state_alone", {"load": lambda self, index: load(self, index) + random.randrange(100)}
    ),
    # twenty names of a set have an order of their own in every process
    "Unordered": (
        "is_the_same_in_another_process",
        {"load": lambda self, index: sorted({f"name {number}" for number in range(20)}, key=hash)[index]},
    ),
    "Renumbered": (
        "is_the_same_in_another_process",
        {"classes": property(lambda self: {"label": tuple(sorted({f"name {n}" for n in range(20)}, key=hash))})},
    ),
    "Learning": ("holds_no_weights", {"__init__": with_attribute("scale", idle)}),
    "Halved": ("gives_every_part", {"pairs_parts": True, "load": lambda self, index: {"left": load(self, index)}}),
    "Renaming": (
        "gives_every_part", {"pairs_parts": True, "load": lambda self, index: {"left": load(self, index), "rite": None}}
    ),
    "Hollow": ("gives_every_part", {"pairs_parts": True, "load": lambda self, index: {"left": None, "right": None}}),
    "Undivided": ("gives_every_part", {"pairs_parts": True}),
}  # fmt: skip
for name, (check, changes) in source_faults.items():
    fault("source", check, f"{name}Source", **changes)


def incomplete(self, state):
    found = SoundFormat.read(self, state)
    lost = next(key for key in found.state if key.startswith("encoder."))
    unused = {f"sound.{lost}": "not wanted", **found.unused}
    kept = {key: tensor for key, tensor in found.state.items() if key != lost}
    return ForeignWeights(found.settings, kept, {key: found.origin[key] for key in kept}, unused=unused)


def consume(self, state):
    found = SoundFormat.read(self, dict(state))
    state.pop("sound.mmmask.settings")
    return found


def losing(self, state):
    found = SoundFormat.read(self, state)
    return ForeignWeights(found.settings, found.state, found.origin)


def scaled(self, settings, state):
    return SoundFormat.write(self, settings, {key: 2 * tensor for key, tensor in state.items()})


fault("format", "recognizes_nothing_in_nothing", "EagerFormat", recognizes=classmethod(lambda cls, keys: True))
fault("format", "recognizes_its_example", "ShyFormat", recognizes=classmethod(lambda cls, keys: False))
fault("format", "is_not_taken_for_another", "SecondFormat", plain=True)
fault("format", "accounts_for_every_key", "LosingFormat", read=losing)
fault("format", "accounts_for_every_key", "IncompleteFormat", read=incomplete)
fault("format", "reads_the_same_every_time", "ConsumingFormat", read=consume)
fault("format", "reads_what_it_writes", "ScalingFormat", write=scaled)


def uneven(self, content, view, target):
    return torch.stack([SoundAugmentation.__call__(self, frame, view, target) for frame in content])


def dotted(self, content, view, target):
    if view.place is None:
        return content
    return content * (torch.rand(content.shape[-2:], generator=view.place) > 0.1).to(content.dtype)


def ungrouped(self, groups):
    return torch.optim.SGD([part for group in groups for part in group["params"]], lr=0.1)


def misspelt():
    @hookimpl
    def step_finished(self, run):
        pass

    return step_finished


def undercount(self, plan, latents):
    return {
        name: LossTerm(term.sum, term.count - 1) for name, term in SoundObjective.losses(self, plan, latents).items()
    }


augment = SoundAugmentation.__call__
fault(
    "pool",
    "gives_a_vector_per_sample",
    "NarrowPool",
    forward=lambda self, latents: SoundPool.forward(self, latents)[:, 1:],
)
fault("pool", "trains_every_parameter", "IdlePool", __init__=with_attribute("idle", idle))
fault(
    "augmentation", "keeps_the_dtype", "FloatingAugmentation", __call__=lambda self, *given: augment(self, *given) / 2
)
fault(
    "augmentation", "changes_nothing_without_randomness", "RestlessAugmentation",
    __call__=lambda self, *given: augment(self, *given)[..., ::2],
)  # fmt: skip
fault("augmentation", "stays_in_step", "DottedAugmentation", __call__=dotted)
fault("augmentation", "changes_all_frames_alike", "UnevenAugmentation", __call__=uneven)
fault("augmentation", "can_be_pickled", "LockedAugmentation", __init__=with_attribute("lock", threading.Lock))
fault(
    "augmentation", "leaves_global_random_state_alone", "GamblingAugmentation",
    __call__=lambda self, *given: augment(self, *given).roll(random.randrange(5), dims=-1),
)  # fmt: skip
fault("optimizer", "keeps_its_groups", "UngroupedOptimizer", build=ungrouped)
fault(
    "optimizer", "goes_down", "ClimbingOptimizer",
    build=lambda self, groups: torch.optim.SGD(list(groups), lr=0.0, maximize=True),
)  # fmt: skip


class AmnesicSGD(torch.optim.SGD):
    def load_state_dict(self, state):
        pass


fault(
    "optimizer", "goes_on_from_its_state", "AmnesicOptimizer",
    build=lambda self, groups: AmnesicSGD(list(groups), lr=0.0, momentum=0.9),
)  # fmt: skip
fault("evaluator", "gives_figures", "NanEvaluator", figures=lambda self: {"mean": float("nan")})
fault("evaluator", "evaluates_the_same_again", "GamblingEvaluator", figures=lambda self: {"mean": random.random()})
fault("evaluator", "merges_processes", "SelfishEvaluator", merge=nothing)
fault("callback", "implements_hooks", "IdleCallback", step_ended=None)
fault("callback", "implements_hooks", "MisspeltCallback", step_finished=misspelt())
fault("callback", "goes_on_from_its_state", "AmnesicCallback", load_state_dict=nothing)
fault("callback", "goes_on_from_its_state", "ClingingCallback", state_dict=lambda self: {"lock": threading.Lock()})
fault("objective", "sums_what_it_counts", "UndercountingObjective", losses=undercount)
fault(
    "objective", "names_its_targets", "UnweightedObjective", weights=lambda self, stream: {f"{stream}/class": 1.0}
)  # fmt: skip
fault(
    "objective", "names_its_targets", "RenamingObjective",
    losses=lambda self, *given: {"class": SoundObjective.losses(self, *given)["stream"]},
    weights=lambda self, stream: {"class": 1.0},
)  # fmt: skip
fault("objective", "trains_every_parameter", "IdleObjective", __init__=with_attribute("idle", idle))


@pytest.fixture(scope="module")
def given(signals):
    """Arguments that the checks of a kind take besides settings."""
    model = build_model(experiment_from_data(signals.signal_data()))
    encoded = torch.tensor(list(json.dumps(settings_of(model)).encode()), dtype=torch.uint8)
    state = {"mmmask.settings": encoded, **model.state_dict()}

    def for_kind(kind, component):
        if kind == "evaluator":
            return {"model": model}
        if getattr(component, "pairs_parts", False):
            return {"extensions": {"left": (), "right": ()}}
        if kind != "format":
            return {}
        plain = getattr(component, "plain", False)
        return {"state": state if plain else {f"sound.{key}": tensor for key, tensor in state.items()}}

    return for_kind


def method(check):
    """Examiner of the promise: kinds share some methods."""
    return getattr(check.case, check.name, check.name)


CHECKS = {(kind, check.name): check for kind in INTERFACES for check in testing.checks(kind)}


class FrozenEncoder(SoundEncoder):
    """Has an embedding that is not trained."""

    def __init__(self, config, embeddings):
        super().__init__(config, embeddings)
        self.embeddings.requires_grad_(False)


class LikelihoodLoss(SoundLoss):
    """Negative log-likelihood of a normal distribution, which may lie below zero."""

    def error(self, prediction, target):
        return super().error(prediction, target) - 5


class GappyPreparation(SoundPreparation):
    def prepare(self, decoded, view):
        sample = super().prepare(decoded, view).double()
        return torch.where(torch.arange(self.length) % 7 == 0, torch.nan, 300 * sample - 50)


class GappyModality(SoundModality):
    """Signals around 5, with missing values."""

    worker_side = GappyPreparation

    @property
    def spec(self):
        return TokenSpec((4,), 2, mean=(5.0, 5.0), std=(2.0, 2.0), gaps=True)

    def tokenize(self, batch):
        return Tokens(patchify(batch, (4,)), self.grid(batch.shape), self.spec)


@dataclass(frozen=True)
class RichLatents(Latents):
    layers: torch.Tensor | None = None


class RichEncoder(SoundEncoder):
    """Gives more than latents."""

    def encoded(self, one, stages):
        found = super().encoded(one, stages)
        return RichLatents(found.values, found.index, stages=found.stages, layers=found.values * 2)


class RichDecoder(SoundDecoder):
    """Looks at more than latents."""

    def answer(self, one):
        return self.norm(self.look(self.asked(one), one.latents.layers))


@pytest.fixture
def rich_encoder():
    """An encoder and its decoder agree on a subclass of `Latents`."""
    registry = components().registry("encoder")
    registry.register("rich", RichEncoder, supplier="tests")
    yield {"name": "rich"}
    registry.unregister("rich")


def test_a_decoder_is_given_the_latents_of_its_encoder(rich_encoder):
    testing.check_decoder(RichDecoder, encoder=rich_encoder)


NOT_OF_ALL = "trains_every_parameter", "gives_every_part", "keeps_sizes_of_the_teacher"
SOUND_CASES = [(kind, component, check) for kind, component in SOUND.items() for check in testing.checks(kind)]
ALLOWED = [
    ("masker", LearnedMasker), ("encoder", FrozenEncoder), ("loss", LikelihoodLoss), ("loss", TaughtLoss),
    ("modality", GappyModality), ("source", PairsSource),
]  # fmt: skip
SOUND_CASES += [(kind, component, check) for kind, component in ALLOWED for check in testing.checks(kind)]


@pytest.mark.parametrize(
    ("kind", "component", "check"), SOUND_CASES, ids=lambda part: getattr(part, "__name__", str(part))
)
def test_a_sound_component_keeps_every_promise(kind, component, check, given):
    try:
        check(component, **given(kind, component))
    except testing.NotApplicable:
        assert component in (SoundAugmentation, TaughtLoss) or check.name in NOT_OF_ALL


@pytest.mark.parametrize(("kind", "name", "component"), FAULTS, ids=lambda part: getattr(part, "__name__", part))
def test_a_fault_is_found(kind, name, component, given):
    check = CHECKS[kind, name]
    with pytest.raises(testing.PromiseBroken) as raised:
        check(component, **given(kind, component))
    first, expected, came = str(raised.value).split("\n")
    assert first == f"{kind} {component.__name__!r}: {check.promise}"
    assert re.fullmatch("expected: .+", expected)
    assert re.fullmatch("came: .+", came)


def test_every_check_has_a_fault_that_it_finds():
    planted = {method(CHECKS[kind, name]) for kind, name, _ in FAULTS}
    assert [key for key, check in CHECKS.items() if method(check) not in planted] == []
