"""What every callback promises."""

from __future__ import annotations

import io
from typing import Any

import pluggy
import torch

from mmmask import hooks
from mmmask.interfaces import Callback
from mmmask.testing.check import Case, expect, promise
from mmmask.testing.compare import fingerprint


class CallbackCase(Case):
    """A callback outside of any run."""

    kind, interface = "callback", Callback

    @promise
    def implements_hooks(self) -> None:
        """It implements one hook or more, each by its name and with arguments that the hook has."""
        manager = pluggy.PluginManager("mmmask")
        manager.add_hookspecs(hooks)
        manager.register(self.component)  # refuses arguments that a hook does not have
        manager.check_pending()
        expect(bool(manager.get_hookcallers(self.component)), "a method marked with @mmmask.hookimpl", "none")

    @promise
    def goes_on_from_its_state(self) -> None:
        """It takes over the state of a checkpoint, which holds plain data and tensors."""
        file, other = io.BytesIO(), _other(self.component.state_dict())
        torch.save(other, file)
        file.seek(0)
        self.component.load_state_dict(torch.load(file, weights_only=True))
        found = self.component.state_dict()
        expect(fingerprint(found) == fingerprint(other), f"the state that it was given: {other}", found)


def _other(state: Any) -> Any:  # noqa: ANN401 - plain data and tensors
    """A state with other numbers."""
    match state:
        case dict():
            return {key: _other(part) for key, part in state.items()}
        case list() | tuple():
            return type(state)(_other(part) for part in state)
        case bool() | str() | None:
            return state
    return state + 1
