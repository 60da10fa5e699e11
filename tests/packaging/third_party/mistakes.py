"""Mistakes in a plugin that pyright must find: those that the comments name, on their lines, and no others."""

from __future__ import annotations

from mmmask.hooks import Register, hookimpl
from mmmask.interfaces import Grid, MaskContext, Masker, Modality, TokenSpec


class TellingMasker(Masker):
    def scores(self, context: MaskContext) -> str:  # reportIncompatibleMethodOverride
        return context.grid  # reportReturnType

    def num_masked(self, grid: Grid, step: int) -> int:
        return grid.total  # reportAttributeAccessIssue


class UncountedMasker(Masker):
    def scores(self, context: MaskContext):
        return context.noise("batch")  # reportArgumentType


class AskingMasker(Masker):
    def scores(self, context: MaskContext, more: int):  # reportIncompatibleMethodOverride
        raise NotImplementedError

    def num_masked(self, grid: Grid, step: int) -> int:
        return 0


masker = UncountedMasker(Masker.Config())  # reportAbstractUsage
modality = Modality(Modality.Config())  # reportAbstractUsage
spec = TokenSpec("4", channels=1)  # reportArgumentType


@hookimpl
def register_components(register: Register) -> None:
    register("masker", "telling", TellingMasker)
    register("masker", "telling", "acme:TellingMasker", description=1)  # reportArgumentType
    register("masker")  # reportCallIssue
