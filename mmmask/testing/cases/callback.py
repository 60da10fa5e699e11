"""Promises of a callback."""

from __future__ import annotations

import io

import pluggy
import torch
from torch import Tensor

from mmmask import hooks
from mmmask.interfaces import Callback
from mmmask.testing import expect
from mmmask.testing.check import Case


class CallbackCase(Case):
    """A callback outside of any run."""

    kind, interface = "callback", Callback

    def implements_hooks(self) -> None:
        """It implements one hook or more, each by its name and with arguments that the hook has."""
        manager = pluggy.PluginManager("mmmask")
        manager.add_hookspecs(hooks)
        manager.register(self.component)  # refuses arguments that a hook does not have
        manager.check_pending()
        expect.that(manager.get_hookcallers(self.component), "a method marked with @mmmask.hookimpl", "none")

    def goes_on_from_its_state(self) -> None:
        """It takes over the state of a checkpoint, which holds plain data and tensors."""
        state = self.component.state_dict()
        other = expect.changed(state, lambda part: part if isinstance(part, bool) else part + 1, (Tensor, int, float))
        file = io.BytesIO()
        torch.save(other, file)
        file.seek(0)
        self.component.load_state_dict(torch.load(file, weights_only=True))
        found = self.component.state_dict()
        same = expect.fingerprint(found) == expect.fingerprint(other)
        expect.that(same, f"the state that it was given: {other}", found)
