"""`mmmask verify KIND NAME`."""

from __future__ import annotations

import argparse

from mmmask.cli.arguments import add_plugin, load_plugins
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
    load_plugins(arguments)
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
        problems = [
            f"no setting of that name.{did_you_mean(str(detail['loc'][-1]), known)} Known: {', '.join(known) or 'none'}"
            if detail["type"] == "extra_forbidden"
            else detail["msg"]
            for detail in error.errors()
        ]
        places = [".".join(map(str, detail["loc"])) for detail in error.errors()]
        lines = [f"{kind} {name}: {place}: {problem}" for place, problem in zip(places, problems, strict=True)]
        raise MmmaskError("\n".join(lines)) from error
    print(f"{kind} {name}: {kept} promises kept, {broken} broken")
    return 1 if broken else 0
