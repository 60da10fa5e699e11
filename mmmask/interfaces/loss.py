"""Loss: what is predicted about a token, and how far off a prediction is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from mmmask.interfaces.component import Component
from mmmask.interfaces.tokens import Mask, Tokens, TokenSpec


class Loss(Component):
    """Owns the target. The core owns heads, reduction and the streams' weights.

    Where the spec has `gaps`, some values or ids of the tokens may be missing (`TokenSpec.missing`): no target,
    statistic or error depends on them, and a token without any present one has the error 0.

    A loss with weights of its own (a tokeniser, say) is a `torch.nn.Module` too, and moves and saves with the model.

    A loss of a teacher's latents says so in `Config.needs_teacher`. It is built with `teacher`, the teacher's encoder,
    and keeps its sizes only; its `target` takes a third argument, the `Latents` of all tokens with the stages it asks
    for.
    """

    class Config(Component.Config):
        needs_teacher: ClassVar[bool] = False
        """Whether targets are made of the latents of `model.teacher`; a property where other settings tell."""

    @abstractmethod
    def prediction_dim(self, spec: TokenSpec) -> int:
        """Number of outputs of the head per token."""

    @abstractmethod
    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        """(batch, predicted, dim) what should have been predicted for the tokens `index` (batch, predicted)."""

    @abstractmethod
    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(batch, predicted) error of each token, float32 or wider."""

    @property
    def stages(self) -> Sequence[int]:
        """Numbers of the teacher's stages whose outputs are wanted as `Latents.stages`."""
        return ()

    def baseline(self, tokens: Tokens, mask: Mask) -> Tensor | None:
        """The simplest prediction (batch, predicted, dim), which a model should beat; None where there is none.

        Made of visible tokens alone, of any sample of the batch. Where predictions are values, the modality has a
        baseline for them, and this is not needed.
        """
        return None

    @property
    def needs_statistics(self) -> bool:
        """Whether `restore` depends on the token statistics it is given."""
        return False

    def restore(self, prediction: Tensor, tokens: Tokens, index: Tensor, statistics: Tensor | None) -> Tensor:
        """Turns predictions into content in the unit of the source, for pictures and PSNR.

        Args:
            prediction: (batch, predicted, dim).
            index: (batch, predicted) the tokens predicted.
            statistics: (batch, k) the tokens from which the statistics of the predicted ones are estimated, that
                is the visible ones; None takes their true statistics, which a model cannot know.

        Returns:
            (batch, predicted, content_dim).

        Raises:
            NotImplementedError: this loss does not predict content.
        """
        raise NotImplementedError(f"{type(self).__name__} does not predict content")
