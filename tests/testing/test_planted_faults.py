"""Every check finds the fault that it is there for, in a component that is sound but for that; sound ones pass all."""

import json
import random
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ConfigDict, Field, PrivateAttr, field_serializer
from torch import nn

from mmmask import testing
from mmmask.components import INTERFACES
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import (
    PLAIN,
    BadSample,
    Decoder,
    Encoder,
    ForeignWeights,
    Format,
    Latents,
    Loss,
    Masker,
    Modality,
    Positions,
    Preparation,
    Source,
    SourceFile,
    Tokens,
    TokenSpec,
    Written,
    gather_rows,
    patchify,
    unpatchify,
)
from mmmask.interop.own_format import OwnFormat
from mmmask.model.build import build_model, settings_of

FAULTS = {}
"""{(kind, check): components that break the promise}"""


def breaks(kind, *checks):
    """Marks a component as the one that these checks must find."""

    def plant(component):
        for check in checks:
            FAULTS.setdefault((kind, check), []).append(component)
        return component

    return plant


class SoundMasker(Masker):
    """Masks tokens at random."""

    class Config(Masker.Config):
        mask_ratio: float = Field(default=0.5, ge=0, lt=1, description="share that is masked")

    def scores(self, context):
        return context.noise((context.batch, torch.Size(context.grid).numel()))

    def num_masked(self, grid, step):
        return int(torch.Size(grid).numel() * self.config.mask_ratio)


@breaks("masker", "leaves_no_method_out")
class HalfAMasker(Masker):
    """Cannot count."""

    def scores(self, context): ...


@breaks("masker", "says_what_it_is")
class SilentMasker(SoundMasker):
    pass


@breaks("masker", "describes_every_setting")
class PuzzlingMasker(SoundMasker):
    """Has a setting that nobody knows."""

    class Config(SoundMasker.Config):
        strength: int = 3


@breaks("masker", "keeps_settings_strict")
class TolerantMasker(SoundMasker):
    """Takes any setting."""

    class Config(SoundMasker.Config):
        model_config = ConfigDict(extra="ignore")


@breaks("masker", "keeps_settings_strict")
class WaveringMasker(SoundMasker):
    """Changes its settings."""

    class Config(SoundMasker.Config):
        model_config = ConfigDict(frozen=False)


@breaks("masker", "writes_settings_that_read_the_same")
class ForgetfulMasker(SoundMasker):
    """Writes other settings than it has."""

    class Config(SoundMasker.Config):
        mask_ratio: float = Field(default=0.5, ge=0, lt=1, description="share that is masked")

        @field_serializer("mask_ratio")
        def _halved(self, ratio):
            return ratio / 2


@breaks("masker", "pickles_settings")
class ClingingMasker(SoundMasker):
    """Its settings hold a lock."""

    class Config(SoundMasker.Config):
        _lock: Any = PrivateAttr(default_factory=threading.Lock)


@breaks("masker", "hides_an_exact_number")
class ShortMasker(SoundMasker):
    """Scores one token too few."""

    def scores(self, context):
        return super().scores(context)[:, 1:]


@breaks("masker", "hides_an_exact_number")
class BoundlessMasker(SoundMasker):
    """Masks less than nothing."""

    def num_masked(self, grid, step):
        return -1


@breaks("masker", "hides_an_exact_number")
class DoubtfulMasker(SoundMasker):
    """Counts in halves."""

    def num_masked(self, grid, step):
        return torch.Size(grid).numel() * self.config.mask_ratio


@breaks("masker", "hides_an_exact_number")
class UnrankedMasker(SoundMasker):
    """Scores with what is no number."""

    def scores(self, context):
        return super().scores(context) * torch.nan


@breaks("masker", "hides_an_exact_number")
class ChoosyMasker(SoundMasker):
    """Takes no grid at all, so that nothing could be examined."""

    def num_masked(self, grid, step):
        from mmmask import MmmaskError

        raise MmmaskError("not this grid")


@breaks("masker", "is_a_function_of_its_noise")
class CountingMasker(SoundMasker):
    """Remembers how often it was asked."""

    def scores(self, context):
        self.asked = getattr(self, "asked", 0) + 1
        return super().scores(context).roll(self.asked, dims=1)


@breaks("masker", "leaves_global_random_state_alone")
class GamblingMasker(SoundMasker):
    """Draws from nobody's generator."""

    def scores(self, context):
        return torch.rand(context.batch, torch.Size(context.grid).numel())


@breaks("masker", "leaves_global_random_state_alone")
class WastefulMasker(SoundMasker):
    """Draws from nobody's generator, and does not use it."""

    def scores(self, context):
        np.random.rand()
        return super().scores(context)


@breaks("masker", "masks_every_row_by_itself")
class NeighbourlyMasker(SoundMasker):
    """Gives a row the scores of the next one."""

    def scores(self, context):
        return super().scores(context).roll(1, dims=0)


@breaks("masker", "masks_every_row_by_itself")
class ContrastMasker(SoundMasker):
    """Looks at how samples differ from the batch."""

    def scores(self, context):
        content = context.tokens.content.double()
        return (content - content.mean(0, keepdim=True)).mean(-1)


@breaks("masker", "leaves_samples_alone")
class ErasingMasker(SoundMasker):
    """Masks by erasing."""

    def scores(self, context):
        context.tokens.content.zero_()
        return super().scores(context)


@breaks("masker", "can_be_pickled")
class LockedMasker(SoundMasker):
    """Holds a lock."""

    def __init__(self, config):
        super().__init__(config)
        self.lock = threading.Lock()


@breaks("masker", "is_the_same_in_another_process")
class HashingMasker(SoundMasker):
    """Depends on how strings hash, which every process has its own way of."""

    def scores(self, context):
        return super().scores(context).roll(hash("a string") % 5, dims=1)


@breaks("masker", "holds_no_weights")
class LearningMasker(SoundMasker):
    """Holds a table that nobody would save."""

    def __init__(self, config):
        super().__init__(config)
        self.table = torch.zeros(3)


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


@breaks("modality", "has_sizes_that_agree")
class FlatModality(SoundModality):
    """Names another grid than its tokens have."""

    def tokenize(self, batch):
        tokens = super().tokenize(batch)
        return replace(tokens, grid=(2, tokens.grid[0] // 2))

    def detokenize(self, content, grid):
        return super().detokenize(content, (grid[0] * grid[1],))


@breaks("modality", "detokenizes_what_it_tokenizes")
class MirroredModality(SoundModality):
    """Comes back the wrong way round."""

    def detokenize(self, content, grid):
        return super().detokenize(content, grid).flip(-1)


@breaks("modality", "detokenizes_what_it_tokenizes")
class FloatingModality(SoundModality):
    """Turns bytes into floating point."""

    def tokenize(self, batch):
        tokens = super().tokenize(batch)
        return replace(tokens, content=tokens.content.float())


@breaks("modality", "only_rearranges")
class DimmedModality(SoundModality):
    """Changes the numbers on the way, and changes them back."""

    def tokenize(self, batch):
        tokens = super().tokenize(batch)
        return replace(tokens, content=tokens.content + 1)

    def detokenize(self, content, grid):
        return super().detokenize(content - 1, grid)


@breaks("modality", "tokenizes_every_sample_by_itself")
class ContrastModality(SoundModality):
    """Subtracts the first sample of the batch."""

    def tokenize(self, batch):
        return super().tokenize(batch - batch[:1])


@breaks("modality", "refuses_samples_of_another_size")
class CroppingModality(SoundModality):
    """Leaves out what does not fit."""

    def tokenize(self, batch):
        return super().tokenize(batch[..., : batch.shape[-1] // 4 * 4])


@breaks("modality", "refuses_samples_of_another_size")
class AssertingModality(SoundModality):
    """Refuses with an error that nobody reports."""

    def tokenize(self, batch):
        assert batch.dim() == 3
        assert batch.shape[-1] % 4 == 0
        return super().tokenize(batch)


class SharingEmbedding(nn.Linear):
    def forward(self, values):
        return super().forward(values - values.mean(1, keepdim=True))


@breaks("modality", "embeds_every_token_by_itself")
class SharingModality(SoundModality):
    """Embeds a token's difference from the others."""

    def build_embedding(self, width):
        return SharingEmbedding(8, width)


@breaks("modality", "holds_no_weights")
class LearningModality(SoundModality):
    """Holds a table that nobody would save."""

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Linear(3, 3)


@breaks("modality", "guesses_from_visible_tokens")
class PeekingModality(SoundModality):
    """Guesses the mean of all tokens, masked ones too."""

    def baseline(self, tokens, mask):
        return tokens.raw().mean(1, keepdim=True).expand(-1, mask.predicted.shape[1], -1)


class GreyPreparation(SoundPreparation):
    def show(self, sample):
        return super().show(sample)[..., 0]


@breaks("modality", "draws_pictures")
class GreyModality(SoundModality):
    """Draws pictures without colours."""

    worker_side = GreyPreparation


class HoardingPreparation(SoundPreparation):
    def __init__(self, length):
        super().__init__(length)
        self.window = torch.ones(length)


@breaks("modality", "prepares_without_tensors")
class HoardingModality(SoundModality):
    """Sends tensors to the workers."""

    worker_side = HoardingPreparation


class ShoutingPreparation(SoundPreparation):
    extensions = (".SIGNAL",)


@breaks("modality", "names_endings_in_lower_case")
class ShoutingModality(SoundModality):
    """Names an ending in capitals."""

    worker_side = ShoutingPreparation


class OpenPreparation(SoundPreparation):
    def __init__(self, length):
        super().__init__(length)
        self.change = lambda sample: sample


@breaks("modality", "pickles_its_worker_side")
class OpenModality(SoundModality):
    """Holds a function without a name."""

    worker_side = OpenPreparation


class LongPreparation(SoundPreparation):
    def prepare(self, decoded, view):
        return decoded if view.place is not None else super().prepare(decoded, view)


@breaks("modality", "prepares_samples_that_fit")
class LongModality(SoundModality):
    """Does not cut what it trains on."""

    worker_side = LongPreparation


class CountingPreparation(SoundPreparation):
    prepared = 0

    def prepare(self, decoded, view):
        self.prepared += 1
        return super().prepare(decoded.roll(self.prepared, dims=1), view)


@breaks("modality", "prepares_from_its_generator_alone")
class CountingModality(SoundModality):
    """Depends on how many samples it prepared before."""

    worker_side = CountingPreparation


class GamblingPreparation(SoundPreparation):
    def prepare(self, decoded, view):
        return super().prepare(decoded.roll(random.randrange(40), dims=1), view)


@breaks("modality", "prepares_without_global_random_state")
class GamblingModality(SoundModality):
    """Draws from nobody's generator."""

    worker_side = GamblingPreparation


class SharedPreparation(SoundPreparation):
    def decode(self, loaded, view):
        self.turn = 0 if view.place is None else int(torch.randint(40, (), generator=view.place))
        time.sleep(1e-4)
        return loaded

    def prepare(self, decoded, view):
        return super().prepare(decoded.roll(self.turn, dims=1), PLAIN)


@breaks("modality", "prepares_in_several_threads")
class SharedModality(SoundModality):
    """Keeps what belongs to one sample where all threads see it."""

    worker_side = SharedPreparation


class StrictPreparation(SoundPreparation):
    def decode(self, loaded, view):
        if isinstance(loaded, SourceFile) and not loaded.read():
            raise OSError("an empty file")
        return super().decode(loaded, view)


@breaks("modality", "calls_broken_files_bad_samples")
class StrictModality(SoundModality):
    """Ends the run over an empty file."""

    worker_side = StrictPreparation


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


@breaks("positions", "fits_every_grid")
class FirstGridPositions(SoundPositions):
    """Knows the first grid only."""

    def forward(self, grid):
        return super().forward(self.grids[0])


@breaks("positions", "fits_every_grid")
class SilentPositions(SoundPositions):
    """Have nothing to say."""

    def forward(self, grid):
        return None

    def bias(self, grid, rows):
        return None


@breaks("positions", "biases_some_as_among_all")
class MixedPositions(SoundPositions):
    """Takes queries for keys, but only where tokens are left out."""

    def bias(self, grid, rows):
        bias = super().bias(grid, rows)
        return bias if rows is None else bias.transpose(2, 3)


@breaks("positions", "tells_places_apart")
class EqualPositions(SoundPositions):
    """Places the first two tokens at one place."""

    def forward(self, grid):
        table = super().forward(grid)
        return torch.cat([table[:1], table[:1], table[2:]])

    def bias(self, grid, rows):
        return None


@breaks("positions", "trains_every_parameter")
class IdlePositions(SoundPositions):
    """Has a parameter that it does not use."""

    def __init__(self, config, width, grids, num_prefix=0, heads=0):
        super().__init__(config, width, grids, num_prefix, heads)
        self.idle = nn.Parameter(torch.ones(3))


@breaks("positions", "follows_the_models_dtype")
class SinglePositions(SoundPositions):
    """Stays float32."""

    def forward(self, grid):
        return super().forward(grid).float()


@breaks("positions", "is_the_same_every_time")
class NoisyPositions(SoundPositions):
    """Adds noise."""

    def forward(self, grid):
        table = super().forward(grid)
        return table + 0.1 * torch.randn(table.shape, dtype=table.dtype)


@breaks("positions", "has_the_weights_of_its_seed")
class UnseededPositions(SoundPositions):
    """Has a seed that nobody chose."""

    def __init__(self, config, width, grids, num_prefix=0, heads=0):
        super().__init__(config, width, grids, num_prefix, heads)
        for table in self.tables.values():
            table.data.normal_(generator=unseeded())


@breaks("positions", "can_be_evaluated_first")
class CachedPositions(SoundPositions):
    """Keeps what it computed first, whoever asked."""

    def forward(self, grid):
        self.kept = getattr(self, "kept", {})
        if grid not in self.kept:
            self.kept[grid] = super().forward(grid).detach() * 2
        return self.kept[grid]


def unseeded():
    generator = torch.Generator()
    generator.seed()
    return generator


class Places(nn.Module):
    """A learned vector per token of the largest grid."""

    def __init__(self, width, embedding):
        super().__init__()
        self.table = nn.Parameter(torch.randn(torch.Size(embedding.grids[0]).numel(), width))


class SoundEncoder(Encoder):
    """Attention over the visible tokens, once."""

    class Config(Encoder.Config):
        width: int = Field(default=16, gt=0, description="width of a token")

    def __init__(self, config, embeddings):
        super().__init__(config, embeddings)
        width = config.width
        self.embeddings = nn.ModuleDict({key: part.build(width) for key, part in embeddings.items()})
        self.places = nn.ModuleDict({key: Places(width, part) for key, part in embeddings.items()})
        self.look = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)

    @property
    def width(self):
        return self.config.width

    @property
    def stages(self):
        return [self.look]

    def forward(self, inputs, stages=()):
        return [Latents(self.norm(self.seen(self.embed(group))), group.mask.visible) for group in inputs]

    def seen(self, rows):
        return rows + self.look(rows, rows, rows, need_weights=False)[0]

    def embed(self, group):
        visible = group.mask.visible
        return (
            self.embeddings[group.part.key](group.part.tokens.values(visible))
            + self.places[group.part.key].table[visible]
        )


def but_values(change):
    """An encoder's forward whose latents are changed by `change(self, values, group, inputs)`."""

    def forward(self, inputs, stages=()):
        return [
            Latents(change(self, latents.values, group, inputs), latents.index)
            for latents, group in zip(SoundEncoder.forward(self, inputs), inputs, strict=True)
        ]

    return forward


@breaks("encoder", "gives_every_group_its_latents")
class NarrowEncoder(SoundEncoder):
    """Gives less than its width."""

    forward = but_values(lambda self, values, group, inputs: values[..., 1:])


@breaks("encoder", "gives_every_group_its_latents")
class LosingEncoder(SoundEncoder):
    """Loses the last visible token."""

    def forward(self, inputs, stages=()):
        return [Latents(part.values[:, :-1], part.index[:, :-1]) for part in super().forward(inputs)]


@breaks("encoder", "gives_every_token_where_nothing_is_masked")
class FlatMapsEncoder(SoundEncoder):
    """Does not lay its maps out."""

    def feature_maps(self, inputs):
        return [[latents.values] for latents in self(inputs)]


@breaks("encoder", "does_not_see_what_is_masked")
class PeekingEncoder(SoundEncoder):
    """Adds the mean of all tokens."""

    @but_values
    def forward(self, values, group, inputs):
        return values + self.embeddings[group.part.key](group.part.tokens.values()).mean(1, keepdim=True)


@breaks("encoder", "trains_every_parameter")
class IdleEncoder(SoundEncoder):
    """Has a parameter that it does not use."""

    def __init__(self, config, embeddings):
        super().__init__(config, embeddings)
        self.idle = nn.Parameter(torch.ones(3))


@breaks("encoder", "trains_every_parameter")
class DetachedEncoder(SoundEncoder):
    """Does not let gradients through to its embedding."""

    def seen(self, rows):
        return super().seen(rows.detach())


@breaks("encoder", "keeps_samples_apart")
class ContrastEncoder(SoundEncoder):
    """Subtracts what the samples of a batch have in common."""

    forward = but_values(lambda self, values, group, inputs: values - values.mean(0, keepdim=True))


@breaks("encoder", "keeps_groups_apart")
class MixingEncoder(SoundEncoder):
    """Tells every group how many there are."""

    forward = but_values(lambda self, values, group, inputs: values * len(inputs))


@breaks("encoder", "leaves_its_input_alone")
class ErasingEncoder(SoundEncoder):
    """Uses the memory of its tokens again."""

    @but_values
    def forward(self, values, group, inputs):
        group.part.tokens.content.zero_()
        return values


@breaks("encoder", "draws_no_global_randomness")
class DroppingEncoder(SoundEncoder):
    """Leaves some numbers out in training."""

    forward = but_values(lambda self, values, group, inputs: nn.functional.dropout(values, 0.1, self.training))


@breaks("encoder", "has_the_weights_of_its_seed")
class UnseededEncoder(SoundEncoder):
    """Has a seed that nobody chose."""

    def __init__(self, config, embeddings):
        super().__init__(config, embeddings)
        self.look.in_proj_weight.data.normal_(generator=unseeded())


@breaks("encoder", "works_in_float64")
class SingleEncoder(SoundEncoder):
    """Gives float32, whatever it computes in."""

    forward = but_values(lambda self, values, group, inputs: values.float())


@breaks("encoder", "can_be_evaluated_first")
class CachingEncoder(SoundEncoder):
    """Keeps what it computed first, whoever asked."""

    @but_values
    def forward(self, values, group, inputs):
        self.kept = getattr(self, "kept", None)
        if self.kept is None:
            self.kept = torch.ones(self.width, dtype=values.dtype) * 2
        return values * self.kept


@breaks("encoder", "compiles_once")
class CountingEncoder(SoundEncoder):
    """Has a number of its own for every step."""

    @but_values
    def forward(self, values, group, inputs):
        self.step = getattr(self, "step", 0) + 1
        return values + self.step - self.step


@breaks("encoder", "keeps_little_of_masked_tokens")
class LateEncoder(SoundEncoder):
    """Looks at all tokens, and leaves masked ones out at the end."""

    def forward(self, inputs, stages=()):
        every = [self.embeddings[group.part.key](group.part.tokens.values()) for group in inputs]
        return [
            Latents(gather_rows(self.norm(self.seen(rows)), group.mask.visible), group.mask.visible)
            for rows, group in zip(every, inputs, strict=True)
        ]


class SoundDecoder(Decoder):
    """Every predicted token looks at the latents once."""

    def __init__(self, config, embeddings, latent_width):
        super().__init__(config, embeddings, latent_width)
        self.places = nn.ModuleDict({key: Places(latent_width, part) for key, part in embeddings.items()})
        self.look = nn.MultiheadAttention(latent_width, 2, batch_first=True)
        self.norm = nn.LayerNorm(latent_width)

    @property
    def width(self):
        return self.norm.weight.shape[0]

    @property
    def stages(self):
        return [self.look]

    def forward(self, queries):
        return [self.answer(query) for query in queries]

    def answer(self, query):
        asked = self.asked(query)
        seen = query.latents.values
        return self.norm(asked + self.look(asked, seen, seen, need_weights=False)[0])

    def asked(self, query):
        return self.places[query.key].table[query.mask.predicted]


@breaks("decoder", "answers_every_query")
class TalkativeDecoder(SoundDecoder):
    """Answers for all tokens."""

    def asked(self, query):
        return self.places[query.key].table.expand(len(query.mask.predicted), -1, -1)


@breaks("decoder", "tells_predicted_places_apart")
class PlacelessDecoder(SoundDecoder):
    """Does not know which token it is asked for."""

    def asked(self, query):
        return super().asked(query) * 0


@breaks("decoder", "trains_every_parameter")
class IdleDecoder(SoundDecoder):
    """Has a parameter that it does not use."""

    def __init__(self, config, embeddings, latent_width):
        super().__init__(config, embeddings, latent_width)
        self.idle = nn.Parameter(torch.ones(3))


@breaks("decoder", "keeps_samples_apart")
class ContrastDecoder(SoundDecoder):
    """Subtracts what the samples of a batch have in common."""

    def answer(self, query):
        features = super().answer(query)
        return features - features.mean(0, keepdim=True)


@breaks("decoder", "keeps_queries_apart")
class MixingDecoder(SoundDecoder):
    """Tells every query how many there are."""

    def forward(self, queries):
        return [features * len(queries) for features in super().forward(queries)]


@breaks("decoder", "leaves_its_input_alone")
class ErasingDecoder(SoundDecoder):
    """Uses the memory of the latents again."""

    def answer(self, query):
        features = super().answer(query)
        query.latents.values.data.zero_()
        return features


@breaks("decoder", "draws_no_global_randomness")
class DroppingDecoder(SoundDecoder):
    """Leaves some numbers out in training."""

    def answer(self, query):
        return nn.functional.dropout(super().answer(query), 0.1, self.training)


@breaks("decoder", "has_the_weights_of_its_seed")
class UnseededDecoder(SoundDecoder):
    """Has a seed that nobody chose."""

    def __init__(self, config, embeddings, latent_width):
        super().__init__(config, embeddings, latent_width)
        self.look.in_proj_weight.data.normal_(generator=unseeded())


@breaks("decoder", "works_in_float64")
class SingleDecoder(SoundDecoder):
    """Makes its queries in float32."""

    def asked(self, query):
        return super().asked(query).float()


@breaks("decoder", "can_be_evaluated_first")
class CachingDecoder(SoundDecoder):
    """Keeps what it computed first, whoever asked."""

    def answer(self, query):
        self.kept = getattr(self, "kept", None)
        if self.kept is None:
            self.kept = torch.ones(self.width, dtype=query.latents.values.dtype) * 2
        return super().answer(query) * self.kept


@breaks("decoder", "compiles_once")
class CountingDecoder(SoundDecoder):
    """Has a number of its own for every step."""

    def answer(self, query):
        self.step = getattr(self, "step", 0) + 1
        return super().answer(query) + self.step - self.step


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
        return (prediction.float() - target).square().mean(-1)

    def restore(self, prediction, tokens, index, statistics):
        return Tokens(prediction, tokens.grid, tokens.spec, normalized=True).raw()

    def baseline(self, tokens, mask):
        return tokens.values(mask.visible).mean(1, keepdim=True).expand(-1, mask.predicted.shape[1], -1)


@breaks("loss", "gives_every_prediction_an_error")
class NegativeLoss(SoundLoss):
    """Has errors below zero."""

    def error(self, prediction, target):
        return super().error(prediction, target) - 1


@breaks("loss", "gives_every_prediction_an_error")
class NarrowLoss(SoundLoss):
    """Computes in the predictions' own precision."""

    def error(self, prediction, target):
        return (prediction - target.to(prediction.dtype)).square().mean(-1)


@breaks("loss", "takes_no_predictions")
class GreedyLoss(SoundLoss):
    """Needs something to be predicted."""

    def target(self, tokens, index):
        values = super().target(tokens, index)
        return values - values.min() * 0


@breaks("loss", "teaches_predictions")
class DeafLoss(SoundLoss):
    """Does not tell the last token how wrong it is."""

    def error(self, prediction, target):
        return super().error(torch.cat([prediction[:, :-1], prediction[:, -1:].detach()], dim=1), target)


@breaks("loss", "prefers_what_is_right")
class CrookedLoss(SoundLoss):
    """Wants everything twice as large."""

    def error(self, prediction, target):
        return super().error(prediction, 2 * target)


@breaks("loss", "aims_at_the_sample_alone")
class ContrastLoss(SoundLoss):
    """Aims at what the samples of a batch do not have in common."""

    def target(self, tokens, index):
        values = super().target(tokens, index)
        return values - values.mean(0, keepdim=True)


@breaks("loss", "aims_at_the_sample_alone")
class NoisyLoss(SoundLoss):
    """Aims at one number of two, at random."""

    def target(self, tokens, index):
        values = super().target(tokens, index)
        return values * (torch.rand(values.shape) > 0.5)


@breaks("loss", "leaves_its_input_alone")
class ErasingLoss(SoundLoss):
    """Uses the memory of the target again."""

    def error(self, prediction, target):
        error = super().error(prediction, target)
        target.zero_()
        return error


@breaks("loss", "restores_what_is_right")
class ForgettingLoss(SoundLoss):
    """Does not go back to the unit of the source."""

    def restore(self, prediction, tokens, index, statistics):
        return prediction


@breaks("loss", "says_whether_it_needs_statistics")
class SecretiveLoss(SoundLoss):
    """Restores the mean of the tokens it is given, and does not say so."""

    def restore(self, prediction, tokens, index, statistics):
        restored = super().restore(prediction, tokens, index, statistics)
        return restored if statistics is None else restored + tokens.raw(statistics).mean((1, 2), keepdim=True)


@breaks("loss", "guesses_from_visible_tokens")
class PeekingLoss(SoundLoss):
    """Guesses the mean of all tokens, masked ones too."""

    def baseline(self, tokens, mask):
        return tokens.values().mean(1, keepdim=True).expand(-1, mask.predicted.shape[1], -1)


class SoundSource(Source):
    """Numbers."""

    class Config(Source.Config):
        count: int = Field(default=20, ge=0, description="how many there are")

    def __len__(self):
        return self.config.count

    def load(self, index):
        return torch.full((2, 70), index, dtype=torch.uint8)


@breaks("source", "has_samples")
class EmptySource(SoundSource):
    """Has nothing."""

    def __len__(self):
        return 0


@breaks("source", "has_samples")
class BadSource(SoundSource):
    """Has nothing that could be used."""

    def load(self, index):
        raise BadSample("lost")


@breaks("source", "numbers_its_samples_for_good")
class StreamingSource(SoundSource):
    """Gives what comes next, whatever it is asked for."""

    def load(self, index):
        self.next = getattr(self, "next", -1) + 1
        return super().load(self.next % 20)


@breaks("source", "names_its_samples")
class NamelessSource(SoundSource):
    """Calls all samples the same."""

    def describe(self, index):
        return "a sample"


@breaks("source", "names_its_samples")
class NumberedSource(SoundSource):
    """Has labels that are no texts."""

    def label(self, index):
        return index


@breaks("source", "can_be_pickled")
class LockedSource(SoundSource):
    """Holds a lock."""

    def __init__(self, config, extensions=()):
        super().__init__(config, extensions)
        self.lock = threading.Lock()


@breaks("source", "serves_several_threads")
class SharedSource(SoundSource):
    """Has one place in its file for all threads."""

    def load(self, index):
        self.place = index
        time.sleep(1e-4)
        return super().load(self.place)


@breaks("source", "leaves_global_random_state_alone")
class GamblingSource(SoundSource):
    """Turns its samples at random."""

    def load(self, index):
        return super().load(index) + random.randrange(100)


@breaks("source", "is_the_same_in_another_process")
class UnorderedSource(SoundSource):
    """Numbers the names of a set."""

    def load(self, index):
        return sorted({f"name {number}" for number in range(20)}, key=hash)[index]


@breaks("source", "holds_no_weights")
class LearningSource(SoundSource):
    """Holds weights that nobody would save."""

    def __init__(self, config, extensions=()):
        super().__init__(config, extensions)
        self.scale = nn.Parameter(torch.ones(3))


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


@breaks("format", "recognizes_nothing_in_nothing")
class EagerFormat(SoundFormat):
    """Recognises everything."""

    @classmethod
    def recognizes(cls, keys):
        return True


@breaks("format", "recognizes_its_example")
class ShyFormat(SoundFormat):
    """Recognises nothing."""

    @classmethod
    def recognizes(cls, keys):
        return False


@breaks("format", "is_not_taken_for_another")
class SecondFormat(SoundFormat):
    """Has the layout of a registered one."""

    plain = True


@breaks("format", "accounts_for_every_key")
class LosingFormat(SoundFormat):
    """Says nothing of what it does not use."""

    def read(self, state):
        found = super().read(state)
        return ForeignWeights(found.settings, found.state, found.origin)


@breaks("format", "accounts_for_every_key")
class IncompleteFormat(SoundFormat):
    """Leaves a weight as the model was built."""

    def read(self, state):
        found = super().read(state)
        lost = next(key for key in found.state if key.startswith("encoder."))
        unused = {f"sound.{lost}": "not wanted", **found.unused}
        kept = {key: tensor for key, tensor in found.state.items() if key != lost}
        return ForeignWeights(found.settings, kept, {key: found.origin[key] for key in kept}, unused=unused)


@breaks("format", "reads_the_same_every_time")
class ConsumingFormat(SoundFormat):
    """Takes out of the file's weights what it has read."""

    def read(self, state):
        found = super().read(dict(state))
        state.pop("sound.mmmask.settings")
        return found


@breaks("format", "reads_what_it_writes")
class ScalingFormat(SoundFormat):
    """Writes weights in another unit than it reads."""

    def write(self, settings, state):
        return super().write(settings, {key: 2 * tensor for key, tensor in state.items()})


SOUND = {
    "masker": SoundMasker,
    "modality": SoundModality,
    "positions": SoundPositions,
    "encoder": SoundEncoder,
    "decoder": SoundDecoder,
    "loss": SoundLoss,
    "source": SoundSource,
    "format": SoundFormat,
}
COMMON = {check.name for check in testing.checks("masker")} & {check.name for check in testing.checks("loss")}


def named(kind, name):
    (check,) = (check for check in testing.checks(kind) if check.name == name)
    return check


@pytest.fixture(scope="module")
def given(signals):
    """What the checks of a kind take besides settings."""
    data = signals.signal_data()
    model = build_model(experiment_from_data(data))
    encoded = torch.tensor(list(json.dumps(settings_of(model)).encode()), dtype=torch.uint8)
    state = {"mmmask.settings": encoded, **model.state_dict()}

    def for_kind(kind, component):
        if kind != "format":
            return {}
        plain = getattr(component, "plain", False)
        return {"state": state if plain else {f"sound.{key}": tensor for key, tensor in state.items()}}

    return for_kind


def sound_cases():
    return [(kind, check) for kind in INTERFACES for check in testing.checks(kind)]


@pytest.mark.parametrize(("kind", "check"), sound_cases(), ids=str)
def test_a_sound_component_keeps_every_promise(kind, check, given):
    check(SOUND[kind], **given(kind, SOUND[kind]))  # none of the optional ones is left out either


@pytest.mark.parametrize(
    ("kind", "name", "component"),
    [(kind, name, component) for (kind, name), components in FAULTS.items() for component in components],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_a_fault_is_found(kind, name, component, given):
    check = named(kind, name)
    with pytest.raises(testing.PromiseBroken) as raised:
        check(component, **given(kind, component))
    broken = raised.value
    assert broken.promise == check.promise
    assert component.__name__ in broken.component
    first, expected, came = str(broken).split("\n")
    assert first == f"{kind} {component.__name__!r}: {check.promise}"
    assert expected.startswith("expected: ")
    assert len(expected) > len("expected: ")
    assert came.startswith("came: ")
    assert len(came) > len("came: ")


@pytest.mark.parametrize("kind", INTERFACES)
def test_every_check_has_a_fault_that_it_finds(kind):
    planted = {name for of, name in FAULTS if of == kind}
    planted |= {name for _, name in FAULTS} & COMMON  # the same function for every kind
    assert {check.name for check in testing.checks(kind)} - planted == set()


def test_every_fault_is_one_of_a_check():
    assert set(FAULTS) <= {(kind, check.name) for kind in INTERFACES for check in testing.checks(kind)}
