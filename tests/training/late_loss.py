"""A plugin file with a loss whose own weight takes part from the third step on."""

import torch
from torch import nn

import mmmask
from mmmask.builtins.losses.pixels import PixelLoss


class LateLoss(PixelLoss, nn.Module):
    """Pixels, scaled by a weight that has no gradient at first."""

    def __init__(self, config):
        nn.Module.__init__(self)
        super().__init__(config)
        self.scale = nn.Parameter(torch.zeros(1))
        self.takes_part = False

    def error(self, prediction, target):
        error = super().error(prediction, target)
        return error * (1 + self.scale) if self.takes_part else error


class ScalarLoss(LateLoss):
    """The same with a weight of no dimension."""

    def __init__(self, config):
        super().__init__(config)
        self.scale = nn.Parameter(torch.zeros(()))


@mmmask.hookimpl
def optimizer_stepped(run):
    run.model.objective("long").loss_of["long"].takes_part = run.step >= 2


@mmmask.hookimpl
def register_components(register):
    register("loss", "late", LateLoss, "a weight that comes late")
    register("loss", "scalar", ScalarLoss, "a weight that comes late and is a scalar")
