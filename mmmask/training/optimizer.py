"""Parameter groups and peak learning rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from mmmask.experiment.settings import Experiment


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: what decays, and what does not.

    Biases, all parameters of a LayerNorm and what a module names in `no_weight_decay` do not decay; everything else
    does, the mask token too (OmniMAE's released configuration). Frozen parameters are in no group.
    """
    exempt = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias" or isinstance(module, nn.LayerNorm) or name in getattr(module, "no_weight_decay", ())
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if id(parameter) not in exempt]
    kept = [parameter for parameter in trained if id(parameter) in exempt]
    return [
        {"params": decayed, "lr_scale": 1.0, "weight_decay": weight_decay},
        {"params": kept, "lr_scale": 1.0, "weight_decay": 0.0},
    ]


def peak_learning_rate(experiment: Experiment) -> float:
    """The absolute rate, or the base rate times (global batch / 256), the linear rule of Goyal et al. 2017.

    The global batch is what one step trains on: the sum of the streams' with `joint` mixing, the largest with
    `alternate`.
    """
    settings = experiment.training.optimizer
    if settings.learning_rate is not None:
        return settings.learning_rate
    sizes = [stream.batch_size for stream in experiment.streams.values()]
    batch = sum(sizes) if experiment.training.mixing == "joint" else max(sizes)
    return settings.base_learning_rate * batch / 256
