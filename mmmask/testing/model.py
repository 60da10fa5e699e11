"""What checks of encoders and decoders share: a small model around one of them, weights, compiling, memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmmask.builtins.objectives.masked import MaskedObjective
from mmmask.components import components
from mmmask.experiment.settings import stream_settings
from mmmask.interfaces import Component, Decoder, Encoder, EncoderInput, Mask, ObjectiveContext, Part, Tokens, build
from mmmask.interfaces.component import validate_strictly
from mmmask.model.model import Model
from mmmask.randomness import derive_seed
from mmmask.testing.check import expect
from mmmask.testing.comparison import expect_close
from mmmask.testing.synthetic import Scene

SMALL_ENCODER = {"name": "vit", "width": 32, "depth": 1, "num_heads": 2}
SMALL_DECODER = {"name": "transformer", "width": 16, "depth": 1, "num_heads": 2}
BATCH = 3


def chosen(kind: str, block: dict[str, Any]) -> Component.Config:
    """The settings of an experiment's block `{name: ..., ...}`."""
    return validate_strictly(components().get(kind, block["name"]).Config, block)


@contextmanager
def weights_of(seed: int) -> Iterator[None]:
    """Modules built within have the weights of a seed; global random state is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("weights", seed))
        yield


def small_decoder(scene: Scene, latent_width: int) -> Decoder:
    """A decoder for an encoder that is examined."""
    return build("decoder", chosen("decoder", SMALL_DECODER), embeddings=scene.embeddings, latent_width=latent_width)


def group(scene: Scene, tokens: Tokens, mask: Mask) -> EncoderInput:
    """A stream's samples on their way into an encoder."""
    return EncoderInput((Part(scene.key, tokens),), mask)


def small_model(scene: Scene, encoder: Encoder, decoder: Decoder) -> Model:
    """A model of one stream that predicts the scene's numbers or ids."""
    loss = {"name": "cross_entropy"} if scene.holds_ids else {"name": "pixels", "normalize": "none"}
    data = {"modality": scene.modality.config, "masker": {"name": "random", "mask_ratio": 0.5}, "loss": loss}
    settings = stream_settings(MaskedObjective).model_construct(
        objective="masked", masker=chosen("masker", data["masker"]), loss=chosen("loss", loss)
    )
    context = ObjectiveContext({"stream": scene.modality}, scene.embeddings, encoder, chosen("decoder", SMALL_DECODER))
    objective = MaskedObjective({"stream": settings}, context)
    objective.decoders["shared"] = decoder
    objective.heads[scene.key] = nn.Linear(
        decoder.width, objective.loss_of["stream"].prediction_dim(scene.modality.spec)
    )
    return Model({"stream": scene.modality}, encoder, {"masked": objective}, {"stream": 1.0})


def expect_gradients(part: nn.Module, loss: Tensor, where: object) -> None:
    """The loss gives every parameter that is trained a finite gradient that is not zero.

    Raises:
        Unmet: it does not.
    """
    part.zero_grad()
    loss.backward()
    trained = {name: parameter.grad for name, parameter in part.named_parameters() if parameter.requires_grad}
    none = [name for name, gradient in trained.items() if gradient is None]
    expect(not none, f"{where}: a gradient for every parameter", f"none for {', '.join(none)}")
    zero = [name for name, gradient in trained.items() if gradient is not None and not gradient.any()]
    expect(not zero, f"{where}: a gradient for every parameter", f"zero for {', '.join(zero)}")
    wrong = [name for name, gradient in trained.items() if gradient is not None and not gradient.isfinite().all()]
    expect(not wrong, f"{where}: finite gradients", f"not those of {', '.join(wrong)}")


def randomize(part: nn.Module) -> None:
    """Every weight is drawn anew, so that what starts at zero tells something too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(std=0.2, generator=generator)


def expect_equal_weights(parts: Sequence[nn.Module], where: object) -> None:
    """Two modules of one seed hold the same.

    Raises:
        Unmet: they do not.
    """
    first, second = (part.state_dict() for part in parts)
    expect(list(first) == list(second), f"{where}: the same keys in both", "others")
    different = [key for key in first if not torch.equal(first[key], second[key])]
    expect(not different, f"{where}: the same weights from the same seed", f"others in {', '.join(different)}")


def expect_one_graph(
    part: nn.Module, step: Callable[[int], list[Tensor]], where: object, steps: Sequence[int] = (0, 1, 2)
) -> None:
    """Compiles a module in place: all steps give what they gave before, and those after the first compile nothing.

    Raises:
        Unmet: they do not.
    """
    plain = [step(number) for number in steps]
    # what was compiled of other modules with the same code would count as compiled again
    torch._dynamo.reset()
    try:
        part.compile(backend="eager", dynamic=False)  # shapes stay, and symbolic ones take longer to trace
        compiled = _compiled_steps(step, steps, where)
    finally:
        torch._dynamo.reset()
    for number, before, after in zip(steps, plain, compiled, strict=True):
        for found, wanted in zip(after, before, strict=True):
            expect_close(found, wanted, f"{where}: step {number}, compiled")


def _compiled_steps(step: Callable[[int], list[Tensor]], steps: Sequence[int], where: object) -> list[list[Tensor]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, of which a component knows nothing
        compiled = [step(steps[0])]
        torch.compiler.set_stance("fail_on_recompile")
        try:
            compiled += [step(number) for number in steps[1:]]
        except RuntimeError as error:
            if "recompile" not in str(error):
                raise
            expect(False, f"{where}: later steps run what the first one compiled", error)
        finally:
            torch.compiler.set_stance("default")
    return compiled


def bytes_kept(run: Callable[[], object], part: nn.Module) -> int:
    """Memory that a forward keeps for its backward, without parameters and buffers."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*part.parameters(), *part.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result  # until now it kept what was saved, so that no two had one address
    return sum(kept.values())
