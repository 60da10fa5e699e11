"""torch.compile, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from mmmask_registry import MmmaskError

MOST_GRAPHS = 64
"""Graphs of one kind of stage: a stage of another width and every other shape, grad mode and dtype has its own."""


class TooManyGraphs(MmmaskError):
    """Too many different input shapes of the compiled stages."""


def compile_stages(stages: Iterable[nn.Module], **options: Any) -> None:  # noqa: ANN401 - as nn.Module.compile
    """Compiles each stage in place: one graph per shape, whatever the depth.

    Shapes are never symbolic: dynamo keeps its history of shapes per code object, which all stages of a class share, so
    that the decoder's blocks would look like the encoder's with other shapes (pytorch/pytorch#114516). When there have
    been `MOST_GRAPHS`, the next shape is an error; dynamo would go on uncompiled without a word.

    Args:
        stages: of encoders and decoders. What lies between them has little to gain and stays as it is.
        options: of `torch.compile`, such as `backend`.
    """
    for stage in stages:
        stage.compile(**{"dynamic": False, **options})
        compiled = stage._compiled_call_impl
        assert compiled is not None
        stage._compiled_call_impl = _limited(compiled, type(stage).__name__)


def _limited(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The call with dynamo's limit as an error of ours."""
    # not with the module: the compiler takes seconds to import
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit

    def limited(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the stage takes
        with config.patch(fail_on_recompile_limit_hit=True, recompile_limit=MOST_GRAPHS):
            try:
                return call(*arguments, **named)
            except FailOnRecompileLimitHit as error:
                given = [tuple(part.shape) if isinstance(part, Tensor) else part for part in arguments]
                shapes = ", ".join(str(part) for part in given if part is not None)
                raise TooManyGraphs(
                    f"training.compile: {name} has been compiled for {MOST_GRAPHS} shapes, and now comes {shapes}: "
                    "let mask ratios, sizes and batches vary in fewer steps, or set training.compile=false"
                ) from error

    return limited
