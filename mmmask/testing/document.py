"""The page on interfaces, made of their docstrings and of the promises: `python -m mmmask.testing.document`."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from mmmask.testing import checks
from mmmask.testing.check import Case, Check

HEAD = """# The interfaces, and what they promise

What a plugin may supply: what each kind is for, its methods, and what the rest of mmmask relies on. Made of the
docstrings by `python -m mmmask.testing.document > docs/interfaces.md`. How to write a plugin: [plugins.md](plugins.md);
more about maskers: [maskers.md](maskers.md).

Every promise is a sentence of `mmmask.testing`, which checks it; each kind promises what stands under its name, and:

{shared}

```python
import mmmask
from mmmask import testing

for check in testing.checks("masker"):
    print(check.name, "-", check.promise)
testing.check_masker("random", mask_ratio=0.75)  # all of them; a broken one raises testing.PromiseBroken
```

## The data that flows

{data}
"""


def page() -> str:
    """The page as Markdown."""
    from mmmask.components import INTERFACES
    from mmmask.interfaces import tokens

    shared = [check for check in checks("masker") if hasattr(Case, check.name)]
    head = HEAD.format(shared=_promises(shared), data=inspect.cleandoc(tokens.__doc__ or ""))
    flowing = [
        tokens.TokenSpec, tokens.Tokens, tokens.Mask, tokens.Part, tokens.EncoderInput, tokens.Latents,
        tokens.DecoderInput,
    ]  # fmt: skip
    sections = [head, *(f"### {one.__name__}\n\n{_text(one.__doc__)}\n" for one in flowing)]
    for kind in INTERFACES:
        own = [check for check in checks(kind) if not hasattr(Case, check.name)]
        interface, also = own[0].case.interface, own[0].case.also
        sections.append(f"## {kind.capitalize()}\n\n{_text(interface.__doc__)}\n\n{_members(interface)}\n")
        sections += [f"### {one.__name__}\n\n{_text(one.__doc__)}\n\n{_members(one)}\n" for one in also]
        sections.append(f"Promises:\n\n{_promises(own)}\n")
    return "\n".join(sections)


def _members(interface: type[Any]) -> str:
    lines = []
    for name, member in vars(interface).items():
        function = inspect.unwrap(getattr(member, "fget", None) or getattr(member, "__func__", member))
        if name.startswith("_") and name != "__call__" or not inspect.isfunction(function):
            continue
        arguments = ", ".join(list(inspect.signature(function).parameters)[1:])
        called = f"`{name}`" if isinstance(member, property) else f"`{name}({arguments})`"
        must = "" if name in interface.__abstractmethods__ else " (has a default)"
        first = _text(function.__doc__).split("\n\n")[0].replace("\n", " ")
        line = f"- {called}{must}: {first}" if first else f"- {called}{must}"
        lines.append(textwrap.fill(line, 120, subsequent_indent="  ", break_on_hyphens=False))
    return "\n".join(lines)


def _promises(checks: list[Check]) -> str:
    return "\n".join(f"- {check.promise}" for check in checks)


def _text(docstring: str | None) -> str:
    """A docstring as Markdown: its sections are lists."""
    return "\n".join(_lines(inspect.cleandoc(docstring or "")))


def _lines(text: str) -> Iterator[str]:
    within = False
    for line in text.split("\n"):
        if re.fullmatch(r"(Args|Attributes|Raises|Returns):", line):
            within = True
            yield f"{line}\n"
        elif within and (entry := re.fullmatch(r"    (\w[\w, ]*): (.*)", line)):
            yield f"- `{entry[1]}`: {entry[2]}"
        else:
            within = within and (not line or line.startswith(" "))
            yield f"  {line.strip()}" if within and line else line


if __name__ == "__main__":
    print(page(), end="")
