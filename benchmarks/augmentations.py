"""Cost of augmentations and of test views, in CPU milliseconds of one thread.

    python benchmarks/augmentations.py augment PICTURE.jpg VIDEO.mp4 [--repetitions 60]
    python benchmarks/augmentations.py views VIDEO.mp4 [--repetitions 5]

`augment`: every augmentation alone on a picture of 224 x 224 and on a clip of 16 such frames, beside decoding and the
crop. `views`: 5 clips of a video out of one decoding, against decoding each alone, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mmmask.components import components
from mmmask.interfaces import PLAIN, Augmentation, Modality, SourceFile, Target, View, build
from mmmask.interfaces.component import validate_strictly
from mmmask.randomness import seeded_generator
from mmmask_pixels.resize import PixelResize

AUGMENTATIONS = {
    "crop": {"name": "crop"},
    "flip": {"name": "flip"},
    "pad_crop": {"name": "pad_crop"},
    "color_jitter": {"name": "color_jitter"},
    "color_jitter with hue": {"name": "color_jitter", "hue": 0.1},
    "erase": {"name": "erase", "probability": 1.0},
    "rand_augment, magnitude 9, num_ops 2": {"name": "rand_augment"},
    "the same, bilinear": {"name": "rand_augment", "interpolation": "bilinear"},
    "rand_augment, magnitude 7, num_ops 4": {"name": "rand_augment", "magnitude": 7, "num_ops": 4},
}


def _modality(name: str, **settings: object) -> Modality:
    found = components().get("modality", name)
    return found(validate_strictly(found.Config, {"name": name, "size": 224, **settings}))


def _milliseconds(call: Callable[[int], object], repetitions: int) -> float:
    seconds = []
    for number in range(repetitions):
        started = time.thread_time()
        call(number)
        seconds.append(time.thread_time() - started)
    return 1000 * statistics.mean(seconds)


def augment(picture: str, video: str, repetitions: int) -> None:
    """Prints the means over draws."""
    _augment(_modality("image"), SourceFile(picture), repetitions)
    _augment(_modality("video", clip_seconds=2.7), SourceFile(video), repetitions)


def _augment(modality: Modality, file: SourceFile, repetitions: int) -> None:
    name, preparation = modality.config.name, modality.preparation
    print(f"{name}: decode {_milliseconds(lambda _: preparation.decode(file, PLAIN), 5):.1f} ms")
    decoded = preparation.decode(file, PLAIN)
    resize = PixelResize((224, 224), "bilinear" if name == "video" else "bicubic")
    target = Target(resize.size, modality.spec, resize)
    for label, settings in AUGMENTATIONS.items():
        config = components().get("augmentation", str(settings["name"])).Config
        made = build("augmentation", validate_strictly(config, settings))
        given = decoded if label == "crop" else resize.crop(decoded)

        def run(seed: int, made: Augmentation = made, given: Tensor = given) -> Tensor:
            return made(given, View(seeded_generator("cost", seed)), target)

        print(f"{name}: {label}: {_milliseconds(run, repetitions):.2f} ms")


def views(video: str, repetitions: int, clips: int = 5) -> None:
    """Prints both medians."""
    preparation, file = _modality("video", short_side=224).preparation, SourceFile(video)
    ways: list[Callable[[int], object]] = [
        lambda _: preparation.decode_clips(file, clips),
        lambda _: [preparation.decode(file, View(index=number, of=clips)) for number in range(clips)],
    ]
    found: list[list[float]] = [[], []]
    for _ in range(repetitions):
        for way, times in zip(ways, found, strict=True):
            times.append(_milliseconds(way, 1))
    one, each = map(statistics.median, found)
    print(f"{clips} clips: one decoding {one:.0f} ms, each alone {each:.0f} ms, ratio {each / one:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["augment", "views"])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--repetitions", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    {"augment": augment, "views": views}[arguments.what](*arguments.files, repetitions=arguments.repetitions)
