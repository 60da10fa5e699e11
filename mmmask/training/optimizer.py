"""Parameter groups and peak learning rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from mmmask.experiment.settings import Experiment
from mmmask.interfaces import Encoder, Optimizer
from mmmask.model.model import Model


def parameter_groups(model: Model, settings: Optimizer.Config) -> list[dict[str, Any]]:
    """Two groups: what decays, and what does not; with `layer_decay` two for each depth.

    Biases, all parameters of a LayerNorm and what a module names in `no_weight_decay` do not decay; everything else
    does, the mask token too (OmniMAE's released configuration). Frozen parameters are in no group.

    With `layer_decay` what lies before the encoder's stages has layer 0, stage i layer i + 1, the final norm and all
    outside of the encoder, such as heads, layer depth + 1. The rate is multiplied by layer_decay^(depth + 1 - layer)
    (BEiT, MAE), or once more with `scale_head` (OmniMAE's release).
    """
    exempt = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias" or isinstance(module, nn.LayerNorm) or name in getattr(module, "no_weight_decay", ())
    }
    layers = {} if settings.layer_decay is None else _layers(model.encoder)
    last = len(model.encoder.stages) + 1
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {(last, False): [], (last, True): []} if not layers else {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            place = layers.get(id(parameter), last), id(parameter) in exempt
            groups.setdefault(place, []).append(parameter)
    power = last + settings.scale_head
    return [
        {
            "params": parameters,
            "lr_scale": 1.0 if settings.layer_decay is None else settings.layer_decay ** (power - layer),
            "weight_decay": 0.0 if kept else settings.weight_decay,
        }
        for (layer, kept), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _layers(encoder: Encoder) -> dict[int, int]:
    """{identity of a parameter of the encoder: its layer}."""
    found = {id(parameter): 0 for parameter in encoder.parameters()}
    for layer, modules in enumerate(encoder.by_depth(), 1):
        found |= {id(parameter): layer for module in modules for parameter in module.parameters()}
    return found


def peak_learning_rate(experiment: Experiment) -> float:
    """The absolute rate, or the base rate times (global batch / 256), the linear rule of Goyal et al. 2017.

    The global batch is what one step trains on: the sum of the streams', with `alternate` mixing the largest.
    """
    settings = experiment.training.optimizer
    if settings.learning_rate is not None:
        return settings.learning_rate
    sizes = [stream.batch_size for stream in experiment.streams.values()]
    batch = sum(sizes) if experiment.training.mixing != "alternate" else max(sizes)
    return settings.base_learning_rate * batch / 256
