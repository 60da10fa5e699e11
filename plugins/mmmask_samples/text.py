"""The texts of the sample corpus: made from a small grammar, labelled by their kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from mmmask.interfaces import CorpusPart

Choice = TypeVar("Choice")

SIZES = (3000, 5000)  # bytes of a file, least and most, the last paragraph whole

NAMES = {
    "she": ("Anna", "Zoë", "Mira", "Inès", "Łucja", "Ruth"),
    "he": ("Tom", "José", "Jürgen", "Omar", "Søren", "Ben"),
}
ANIMALS = ("goat", "cat", "horse", "duck", "dog", "hen")
PLACES = ("barn", "garden", "kitchen", "village", "field", "school")
COLOURS = ("black", "white", "brown", "grey", "spotted")
# singular and plural of what subjects do
VERBS = (("sleeps", "sleep"), ("waits", "wait"), ("sings", "sing"), ("runs", "run"), ("plays", "play"))
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
MONTHS = ("January", "March", "May", "July", "September", "November")
RHYMES = (
    ("cat", "hat", "mat", "rat"),
    ("moon", "spoon", "tune", "June"),
    ("day", "hay", "way", "clay"),
    ("tree", "bee", "sea", "key"),
    ("night", "light", "kite", "white"),
    ("stone", "bone", "phone", "throne"),
)


def _person(generator: np.random.Generator) -> tuple[str, str]:
    """Name and pronoun."""
    pronoun = "she" if generator.random() < 0.5 else "he"
    return _one(generator, NAMES[pronoun]), pronoun


def _one(generator: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    return choices[int(generator.integers(len(choices)))]


def _story(generator: np.random.Generator) -> str:
    """A person, named again and again, and animals whose number rules the verbs."""
    name, pronoun = _person(generator)
    count, animal, colour = int(generator.integers(1, 9)), _one(generator, ANIMALS), _one(generator, COLOURS)
    place, other = _one(generator, PLACES), _one(generator, PLACES)
    verb, second = _one(generator, VERBS), _one(generator, VERBS)
    several = count > 1
    animals = f"{animal}s" if several else animal
    return (
        f"{name} has {NUMBERS[count]} {colour} {animals}. The {animals} {verb[several]} in the {place} while {pronoun} "
        f"{second[0]} in the {other}. Every morning {name} goes to the {place} and calls the {animals}. "
        f"{'They' if several else 'It'} {'come' if several else 'comes'} to {name} at once. {pronoun.capitalize()} is "
        f"happy, and the {colour} {animals} {'are' if several else 'is'} happy too.\n"
    )


def _arithmetic(generator: np.random.Generator) -> str:
    """A line such as `12 + 7 = 19`, in numbers or in words."""
    first, second = sorted((int(number) for number in generator.integers(0, 50, 2)), reverse=True)
    match int(generator.integers(4)):
        case 0:
            return f"{first} + {second} = {first + second}"
        case 1:
            return f"{first} - {second} = {first - second}"
        case 2:
            return f"{first % 13} x {second % 13} = {(first % 13) * (second % 13)}"
        case _:
            first, second = first % 7, second % 6
            return f"{NUMBERS[first]} plus {NUMBERS[second]} is {NUMBERS[first + second]}"


def _counting(generator: np.random.Generator) -> str:
    """Numbers at equal distances, upwards or down."""
    step, start = int(generator.integers(1, 8)), int(generator.integers(0, 40))
    numbers = range(start, start + 10 * step, step)
    return ", ".join(map(str, numbers if generator.random() < 0.5 else reversed(numbers)))


def _rhyme(generator: np.random.Generator) -> str:
    """Two lines that rhyme."""
    family = _one(generator, RHYMES)
    first, second = (family[number] for number in generator.permutation(len(family))[:2])
    name, pronoun = _person(generator)
    colour, animal = _one(generator, COLOURS), _one(generator, ANIMALS)
    return f"{name} saw a {colour} {animal} beside the {first},\nand {pronoun} dreamt all night about the {second}.\n"


def _dialogue(generator: np.random.Generator) -> str:
    """Questions, and answers in the words of the question."""
    (asker, _), (answerer, _) = _person(generator), _person(generator)
    animal, place, colour = _one(generator, ANIMALS), _one(generator, PLACES), _one(generator, COLOURS)
    return (
        f"{asker}: Where is the {colour} {animal}?\n{answerer}: The {colour} {animal} is in the {place}, {asker}.\n"
        f"{asker}: In the {place}? Thank you, {answerer}!\n"
    )


def _record(generator: np.random.Generator) -> str:
    """Fields of a form that follow from each other."""
    name, pronoun = _person(generator)
    age, day = int(generator.integers(5, 90)), int(generator.integers(1, 29))
    month, place, warmth = _one(generator, MONTHS), _one(generator, PLACES), int(generator.integers(-9, 30))
    return (
        f"name: {name}\npronoun: {pronoun}\nborn: {day} {month} {2024 - age}\nage in 2024: {age}\n"
        f"mail: {name.lower()}@{place}.example\ntemperature: {warmth} °C\nfreezing: {'yes' if warmth < 0 else 'no'}\n"
    )


PARAGRAPHS: dict[str, Callable[[np.random.Generator], str]] = {
    "arithmetic": _arithmetic,
    "counting": _counting,
    "dialogue": _dialogue,
    "records": _record,
    "rhymes": _rhyme,
    "stories": _story,
}


def _write_text(path: Path, kind: str, generator: np.random.Generator) -> dict[str, str]:
    size = generator.integers(SIZES[0], SIZES[1] + 1)
    text = b""
    while len(text) < size:
        text += PARAGRAPHS[kind](generator).encode() + b"\n"
    path.write_bytes(text)
    return {}


PART = CorpusPart("text", tuple(PARAGRAPHS), ".txt", {"train": 40, "held_out": 6}, _write_text)
