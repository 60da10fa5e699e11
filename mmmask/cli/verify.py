"""`mmmask verify KIND NAME`."""

from __future__ import annotations

import argparse

from mmmask.cli.arguments import add_plugin
from mmmask.components import components
from mmmask_registry import MmmaskError, did_you_mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """KIND NAME [key=value ...]."""
    parser.add_argument("kind", metavar="KIND", help="masker, decoder, ...")
    parser.add_argument("name", metavar="NAME", help="a registered name (mmmask list KIND)")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings of the component; small sizes make this quick"
    )
    add_plugin(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints what came of every promise of the interface; exit code 1 where one is broken."""
    kind, name = arguments.kind, arguments.name
    component = components().get(kind, name)
    from pydantic import ValidationError

    from mmmask import testing
    from mmmask.experiment.compose import apply_overrides

    settings = apply_overrides({}, arguments.settings)
    kept = broken = 0
    try:
        for promise, outcome in testing.promises(kind, name, settings):
            if outcome is None:
                kept += 1
                print(f"kept    {promise}")
            elif isinstance(outcome, str):
                broken += 1
                print(f"BROKEN  {promise}\n        {outcome}")
            else:
                print(f"-       {promise} Nothing to look at: {outcome}")
    except ValidationError as error:
        known = [key for key in component.Config.model_fields if key != "name"]
        lines = []
        for detail in error.errors():
            problem, place = detail["msg"], detail["loc"]
            if detail["type"] == "extra_forbidden":
                hint = did_you_mean(str(place[-1]), known)
                problem = f"no setting of that name.{hint} Known: {', '.join(known) or 'none'}"
            lines.append(f"{kind} {name}: {'.'.join(map(str, place))}: {problem}")
        raise MmmaskError("\n".join(lines)) from error
    print(f"{kind} {name}: {kept} promises kept, {broken} broken")
    return 1 if broken else 0
