"""Clips decoded by mmmask_video (PyAV) and by torchcodec, on the CPU or by NVDEC: rates, and whether they are equal.

    python benchmarks/video_decoders.py VIDEOS [--device cuda] [--repetitions 5]

Prints a Markdown table: of every file of the folder, clips of 16 frames over 2.7 s per second, the same ones by both
in turn; and the largest and the mean difference of a pixel's value. Both have one decoder thread; indexes are built
anew for every clip, as a file is read once an epoch.

torchcodec needs the shared libraries of FFmpeg 4 to 8 (`apt install ffmpeg`). Its wheels are for CUDA from 0.13 on;
`pip install --no-deps torchcodec==0.12.0` runs beside a torch for CPUs.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

from mmmask.interfaces import BadSample
from mmmask_video.decoding import decode_clips

FRAMES, CLIP_SECONDS = 16, 2.7


def main() -> None:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| file | mmmask_video | torchcodec | ratio | largest difference | mean |\n|---|---|---|---|---|---|")
    for path in sorted(path for path in arguments.videos.rglob("*") if path.is_file()):
        try:
            print(_row(path, arguments.device, arguments.repetitions), flush=True)
        except (BadSample, RuntimeError) as error:
            print(f"| {path.name} | {str(error).splitlines()[0]} | | | | |", flush=True)


def _row(path: Path, device: str, repetitions: int) -> str:
    draws, seconds, largest, mean = random.Random(0), [], 0, []
    for repetition in range(repetitions + 1):  # the first warms up
        chosen = _chosen(path, draws.random())
        ways = [partial(_ours, path, chosen), partial(_torchcodec, path, chosen, device)]
        found = [_timed(way) for way in (ways if repetition % 2 else reversed(ways))]
        (ours, ours_seconds), (theirs, their_seconds) = found if repetition % 2 else reversed(found)
        difference = (ours.int() - theirs.cpu().int()).abs()
        largest = max(largest, int(difference.max()))
        mean.append(float(difference.float().mean()))
        if repetition:
            seconds.append((ours_seconds, their_seconds))
    ours_seconds, their_seconds = (statistics.median(side) for side in zip(*seconds, strict=True))
    ratio = statistics.median(theirs / ours for ours, theirs in seconds)
    rates = f"{1 / ours_seconds:.1f} /s | {1 / their_seconds:.1f} /s | {ratio:.2f}"
    return f"| {path.name} | {rates} | {largest} | {statistics.mean(mean):.3f} |"


def _chosen(path: Path, share: float) -> list[int]:
    """Numbers of the frames of a clip that begins at a share of what the video leaves for beginnings."""
    decoder = VideoDecoder(str(path))
    count, rate = decoder.metadata.num_frames or 0, decoder.metadata.average_fps or 25.0
    span = min(int(CLIP_SECONDS * rate), count - 1)
    first = int(share * (count - span))
    return [first + number * span // FRAMES for number in range(FRAMES)]


def _ours(path: Path, chosen: Sequence[int]) -> Tensor:
    (clip,) = decode_clips(
        str(path), lambda times, end: [chosen], torch.from_numpy, channels=3, max_pixels=2**26, max_frames=10**6
    )
    return torch.stack(clip)


def _torchcodec(path: Path, chosen: Sequence[int], device: str) -> Tensor:
    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, device=device)
    return decoder.get_frames_at(list(chosen)).data


def _timed(way: Callable[[], Tensor]) -> tuple[Tensor, float]:
    started = time.perf_counter()
    found = way()
    if found.is_cuda:
        torch.cuda.synchronize(found.device)
    return found, time.perf_counter() - started


if __name__ == "__main__":
    main()
