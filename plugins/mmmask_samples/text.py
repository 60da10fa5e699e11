"""The texts of the sample corpus: made from a small grammar, labelled by their kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmmask.interfaces import CorpusPart

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
    return generator.choice(NAMES[pronoun]), pronoun


def stories(generator: np.random.Generator) -> str:
    """A person, named again and again, and animals whose number rules the verbs."""
    name, pronoun = _person(generator)
    count = generator.integers(1, 9)
    animal, colour, place, other = map(generator.choice, (ANIMALS, COLOURS, PLACES, PLACES))
    verb, second = generator.choice(VERBS), generator.choice(VERBS)
    several = int(count > 1)
    animals = f"{animal}s" if several else animal
    return (
        f"{name} has {NUMBERS[count]} {colour} {animals}. The {animals} {verb[several]} in the {place} while {pronoun} "
        f"{second[0]} in the {other}. Every morning {name} goes to the {place} and calls the {animals}. "
        f"{'They' if several else 'It'} {'come' if several else 'comes'} to {name} at once. {pronoun.capitalize()} is "
        f"happy, and the {colour} {animals} {'are' if several else 'is'} happy too.\n"
    )


def arithmetic(generator: np.random.Generator) -> str:
    """A line such as `12 + 7 = 19`, in numbers or in words."""
    second, first = sorted(generator.integers(0, 50, 2))
    match generator.integers(4):
        case 0:
            return f"{first} + {second} = {first + second}"
        case 1:
            return f"{first} - {second} = {first - second}"
        case 2:
            return f"{first % 13} x {second % 13} = {(first % 13) * (second % 13)}"
        case _:
            return f"{NUMBERS[first % 7]} plus {NUMBERS[second % 6]} is {NUMBERS[first % 7 + second % 6]}"


def counting(generator: np.random.Generator) -> str:
    """Numbers at equal distances, upwards or down."""
    step, start = generator.integers(1, 8), generator.integers(0, 40)
    numbers = range(start, start + 10 * step, step)
    return ", ".join(map(str, numbers if generator.random() < 0.5 else reversed(numbers)))


def rhymes(generator: np.random.Generator) -> str:
    """Two lines that rhyme."""
    first, second, *_ = generator.permutation(generator.choice(RHYMES))
    name, pronoun = _person(generator)
    colour, animal = generator.choice(COLOURS), generator.choice(ANIMALS)
    return f"{name} saw a {colour} {animal} beside the {first},\nand {pronoun} dreamt all night about the {second}.\n"


def dialogue(generator: np.random.Generator) -> str:
    """Questions, and answers in the words of the question."""
    (asker, _), (answerer, _) = _person(generator), _person(generator)
    animal, place, colour = map(generator.choice, (ANIMALS, PLACES, COLOURS))
    return (
        f"{asker}: Where is the {colour} {animal}?\n{answerer}: The {colour} {animal} is in the {place}, {asker}.\n"
        f"{asker}: In the {place}? Thank you, {answerer}!\n"
    )


def records(generator: np.random.Generator) -> str:
    """Fields of a form that follow from each other."""
    name, pronoun = _person(generator)
    age, day = generator.integers(5, 90), generator.integers(1, 29)
    month, place, warmth = generator.choice(MONTHS), generator.choice(PLACES), generator.integers(-9, 30)
    return (
        f"name: {name}\npronoun: {pronoun}\nborn: {day} {month} {2024 - age}\nage in 2024: {age}\n"
        f"mail: {name.lower()}@{place}.example\ntemperature: {warmth} °C\nfreezing: {'yes' if warmth < 0 else 'no'}\n"
    )


PARAGRAPHS: dict[str, Callable[[np.random.Generator], str]] = {
    kind.__name__: kind for kind in (arithmetic, counting, dialogue, records, rhymes, stories)
}


def _write_text(path: Path, kind: str, generator: np.random.Generator) -> dict[str, str]:
    size = generator.integers(SIZES[0], SIZES[1] + 1)
    text = b""
    while len(text) < size:
        text += PARAGRAPHS[kind](generator).encode() + b"\n"
    path.write_bytes(text)
    return {}


PART = CorpusPart("text", tuple(PARAGRAPHS), ".txt", {"train": 40, "held_out": 6}, _write_text)
