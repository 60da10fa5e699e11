"""A training step against transformers' ViTMAE and VideoMAE at equal shapes and ratios, interleaved in one run.

    pip install -e '.[compare]' && python benchmarks/transformers_peers.py [--precision fp32,bf16] [--samples 32,8]

Both sides do forward, loss, backward and a fused AdamW step on the same number of samples with ViT-B and the peer's own
decoder; the peer gets normalised float32 pixels, ours uint8 that it normalises itself. Printed: the median seconds of
each side and the median of the ratios pair by pair (above 1: ours is faster).
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

from mmmask.experiment import Experiment, experiment_from_data
from mmmask.model.precision import autocast, find_device
from mmmask.profiling.bench import StepBench, timed


def experiment(modality: dict, masker: dict, decoder: dict, prefix_tokens: int) -> Experiment:
    """ViT-B on one stream, with a peer's decoder."""
    return experiment_from_data(
        {
            "model": {
                "encoder": {"name": "vit", "size": "base", "prefix_tokens": prefix_tokens},
                "decoder": {"name": "transformer", "positions_at": "decoder", **decoder},
            },
            "streams": {"samples": {"modality": modality, "masker": masker, "loss": {"name": "pixels"}}},
        }
    )


def vit_mae(batch: int) -> tuple[Experiment, nn.Module, Callable[[nn.Module, Tensor], Tensor], tuple[int, ...]]:
    """MAE: 75 % masked, decoder 512 x 8 x 16."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    ours = experiment(
        {"name": "image", "size": 224, "patch_size": [16, 16]},
        {"name": "random", "mask_ratio": 0.75},
        {"width": 512, "depth": 8, "num_heads": 16},
        prefix_tokens=1,
    )
    theirs = ViTMAEForPreTraining(ViTMAEConfig(norm_pix_loss=True, mask_ratio=0.75))
    return ours, theirs, lambda model, pixels: model(pixels).loss, (batch, 3, 224, 224)


def video_mae(batch: int) -> tuple[Experiment, nn.Module, Callable[[nn.Module, Tensor], Tensor], tuple[int, ...]]:
    """VideoMAE: tubes of 90 % masked, decoder 384 x 4 x 6."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    ours = experiment(
        {"name": "video", "size": 224, "num_frames": 16, "patch_size": [2, 16, 16]},
        {"name": "tube", "mask_ratio": 0.9},
        {"width": 384, "depth": 4, "num_heads": 6},
        prefix_tokens=0,
    )
    theirs = VideoMAEForPreTraining(
        VideoMAEConfig(decoder_hidden_size=384, decoder_num_hidden_layers=4, decoder_num_attention_heads=6,
                       decoder_intermediate_size=1536, norm_pix_loss=True)
    )  # fmt: skip
    masked = torch.zeros(batch, 196, dtype=torch.bool)
    for row in masked:
        row[torch.randperm(196)[:176]] = True
    mask = masked.repeat(1, 8)
    return ours, theirs, lambda model, pixels: model(pixels, bool_masked_pos=mask.to(pixels.device)).loss, (
        batch, 16, 3, 224, 224,
    )  # fmt: skip


def compare(name: str, precision: str, batch: int, repetitions: int, device: torch.device) -> None:
    """Prints one line of the table."""
    ours, peer, forward, shape = {"ViTMAE": vit_mae, "VideoMAE": video_mae}[name](batch)
    bench = StepBench(ours, {"samples": batch}, precision, device)
    peer = peer.to(device).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4, fused=True)
    pixels = torch.randn(shape, device=device)

    def peer_step() -> None:
        with autocast(device, precision):
            loss = forward(peer, pixels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    pairs = [
        (timed(lambda: bench.step(("samples",)), device), timed(peer_step, device)) for _ in range(repetitions + 1)
    ][1:]
    mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(their / my for my, their in pairs)
    print(f"{name:10} {precision:5} {batch:4} samples   ours {mine:7.3f} s   theirs {theirs:7.3f} s   {ratio:5.2f} x")


def main() -> None:
    """Runs both peers at both precisions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--precision", default="fp32,bf16")
    parser.add_argument("--device")
    parser.add_argument("--samples", help="images and clips (default 32,8, on a GPU 256,64)")
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    images, clips = map(int, (arguments.samples or ("256,64" if device.type == "cuda" else "32,8")).split(","))
    for precision in arguments.precision.split(","):
        compare("ViTMAE", precision, images, arguments.repetitions, device)
        compare("VideoMAE", precision, clips, arguments.repetitions, device)


if __name__ == "__main__":
    main()
