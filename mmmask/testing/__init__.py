"""What every component must keep, as checks: run by the project over all that is registered, by plugins over theirs.

    from mmmask import testing

    @pytest.mark.parametrize("check", testing.checks("masker"), ids=str)
    def test_it_keeps_its_promises(check):
        check("centre", mask_ratio=0.5)  # a registered name, or the class itself

or all of them at once, in any test runner or none: `testing.check_masker("centre", mask_ratio=0.5)`.

Settings are those of the component. A check that finds a promise broken raises `PromiseBroken`; an optional one that
finds nothing to look at, such as pictures of a modality that draws none, raises `NotApplicable`. Nothing here needs
pytest, and `import mmmask` does not import it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from mmmask.testing import decoder, encoder, format, loss, masker, modality, positions, source
from mmmask.testing.check import Check, NotApplicable, PromiseBroken, Promises
from mmmask_registry import UnknownName

__all__ = [
    "Check",
    "NotApplicable",
    "PromiseBroken",
    "check_decoder",
    "check_encoder",
    "check_format",
    "check_loss",
    "check_masker",
    "check_modality",
    "check_positions",
    "check_source",
    "checks",
    "promises",
]

_PROMISES: dict[str, Promises] = {
    part.promises.subject.kind: part.promises
    for part in (modality, source, masker, positions, encoder, decoder, loss, format)
}


def checks(kind: str) -> list[Check]:
    """The checks of a kind of component, such as `masker`.

    Raises:
        UnknownName: there is no such kind.
    """
    if kind not in _PROMISES:
        raise UnknownName("kind of component", kind, _PROMISES)
    return list(_PROMISES[kind])


def promises(
    kind: str, name: str | type[Any], settings: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, str | NotApplicable | None]]:
    """Examines a component promise by promise: (the promise's sentence, what came of it).

    What came of it is None where the promise is kept, a text "expected ..., came ..." where it is broken, and a
    `NotApplicable` where there was nothing to look at, whose text says why.

    Args:
        kind: of component, such as `masker`.
        name: a registered name, or the class itself.
        settings: of the component, and what the checks of its kind take besides, as in `check_modality`.

    Raises:
        UnknownName: there is no such kind or component.
        pydantic.ValidationError: the settings are none of it.
    """
    for check in checks(kind):
        try:
            check(name, **(settings or {}))
        except NotApplicable as reason:
            yield check.promise, reason
        except PromiseBroken as broken:
            yield check.promise, f"expected {broken.expected}, came {broken.came}"
        else:
            yield check.promise, None


def check_modality(
    component: str | type[Any],
    loaded: Any = None,  # noqa: ANN401 - whatever a source may give
    **settings: Any,  # noqa: ANN401 - plain data
) -> None:
    """Runs all checks of a modality; no data is needed.

    Args:
        component: a registered name, or the class itself.
        loaded: what a source hands to its preparation, such as `SourceFile(path)`; without it several arrays and a
            text are tried, and where the preparation takes none of these, its decoding is not examined.
        settings: of the modality.

    Raises:
        PromiseBroken: the first promise that it does not keep.
    """
    _run("modality", component, loaded=loaded, **settings)


def check_source(
    component: str | type[Any],
    extensions: tuple[str, ...] = (),
    **settings: Any,  # noqa: ANN401 - plain data
) -> None:
    """Runs all checks of a source.

    Args:
        component: a registered name, or the class itself.
        extensions: file name endings that the stream's modality would decode.
        settings: of the source, such as `path=` of a few files.

    Raises:
        PromiseBroken: the first promise that it does not keep.
    """
    _run("source", component, extensions=extensions, **settings)


def check_masker(component: str | type[Any], **settings: Any) -> None:  # noqa: ANN401 - plain data
    """Runs all checks of a masker, on grids of one to four axes; it must take one of them.

    Args:
        component: a registered name, or the class itself.
        settings: of the masker; if it has a `mask_ratio`, other ratios are tried as well.

    Raises:
        PromiseBroken: the first promise that it does not keep.
    """
    _run("masker", component, **settings)


def check_positions(component: str | type[Any], **settings: Any) -> None:  # noqa: ANN401 - plain data
    """Runs all checks of positions, on grids of one to three axes; they must take one of them.

    Args:
        component: a registered name, or the class itself.
        settings: of the positions.

    Raises:
        PromiseBroken: the first promise that they do not keep.
    """
    _run("positions", component, **settings)


def check_encoder(
    component: str | type[Any],
    modality: str | dict[str, Any] | None = None,
    **settings: Any,  # noqa: ANN401 - plain data
) -> None:
    """Runs all checks of an encoder, before a small transformer decoder where a whole model is needed.

    Args:
        component: a registered name, or the class itself.
        modality: an experiment's block `modality`; by default synthetic samples of several grids, of which the
            encoder must take one.
        settings: of the encoder; a small width and depth make this quick.

    Raises:
        PromiseBroken: the first promise that it does not keep.
    """
    _run("encoder", component, modality=modality, **settings)


def check_decoder(
    component: str | type[Any],
    modality: str | dict[str, Any] | None = None,
    encoder: dict[str, Any] | None = None,
    **settings: Any,  # noqa: ANN401 - plain data
) -> None:
    """Runs all checks of a decoder.

    Args:
        component: a registered name, or the class itself.
        modality: an experiment's block `modality`; by default synthetic samples of several grids, of which the
            decoder must take one.
        encoder: an experiment's block `encoder`; by default small ViTs, one that leaves masked tokens out and one that
            keeps them, of which the decoder must take one.
        settings: of the decoder; a small width and depth make this quick.

    Raises:
        PromiseBroken: the first promise that it does not keep.
    """
    _run("decoder", component, modality=modality, encoder=encoder, **settings)


def check_loss(
    component: str | type[Any],
    modality: str | dict[str, Any] | None = None,
    **settings: Any,  # noqa: ANN401 - plain data
) -> None:
    """Runs all checks of a loss.

    Args:
        component: a registered name, or the class itself.
        modality: an experiment's block `modality`, whose tokens are predicted; by default synthetic numbers and ids,
            of which the loss must take some.
        settings: of the loss.

    Raises:
        PromiseBroken: the first promise that it does not keep.
    """
    _run("loss", component, modality=modality, **settings)


def check_format(
    component: str | type[Any],
    state: Mapping[str, Tensor] | None = None,
    **options: Any,  # noqa: ANN401 - plain data
) -> None:
    """Runs all checks of a format.

    Args:
        component: a registered name, or the class itself.
        state: an example of a state dict in this format, small.
        options: what its keys do not tell, as for `mmmask.interop.load`.

    Raises:
        PromiseBroken: the first promise that it does not keep.
    """
    _run("format", component, state=state, **options)


def _run(kind: str, component: str | type[Any], **settings: Any) -> None:  # noqa: ANN401 - plain data
    for check in checks(kind):
        try:
            check(component, **settings)
        except NotApplicable:
            continue
