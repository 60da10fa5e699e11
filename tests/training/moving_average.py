"""A plugin file with a callback that keeps an average of the weights, sharded where they are."""

import torch

import mmmask


class MovingAverage(mmmask.Callback):
    def __init__(self, config):
        super().__init__(config)
        self.average = {}

    @mmmask.hookimpl
    def run_started(self, run):
        for name, parameter in run.model.named_parameters():
            restored = self.average.get(name, parameter)
            self.average[name] = restored.detach().to(parameter.device, copy=True)

    @mmmask.hookimpl
    @torch.no_grad()
    def optimizer_stepped(self, run):
        parameters = [parameter.detach() for parameter in run.model.parameters()]
        torch._foreach_lerp_(list(self.average.values()), parameters, 0.3)

    def state_dict(self):
        return {"average": self.average}

    def load_state_dict(self, state):
        self.average = state["average"]


@mmmask.hookimpl
def register_components(register):
    register("callback", "moving_average", MovingAverage, "exponential moving average of the weights")
