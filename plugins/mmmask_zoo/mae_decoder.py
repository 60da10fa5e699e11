"""MAE's decoder under its published names, which MAE-ST and ConvMAE took over."""

from __future__ import annotations

from typing import Any

from mmmask_zoo.conversion import Conversion

PREDICTOR = "decoder_pred"
"""The head, which predicts the numbers of a token."""


def take_mae_decoder(conversion: Conversion, head: str, num_heads: int, depth: int = 8) -> dict[str, Any]:
    """The decoder but for its positions, and the head, as far as the file has them.

    Args:
        head: mmmask's key of the head.
        num_heads: attention heads.
        depth: of the published decoder.

    Returns:
        Its settings but for its positions; of a file without it, those of the published one.

    Raises:
        InteropError: the file has a part of it, and not what tells its sizes.
    """
    own = "objectives.masked.decoders.shared"
    conversion.flatten("mask_token", f"{own}.mask_token")
    conversion.take_linear("decoder_embed", f"{own}.embed")
    conversion.take_blocks("decoder_blocks", f"{own}.blocks")
    conversion.take_linear("decoder_norm", f"{own}.norm")
    conversion.take_linear(PREDICTOR, head)
    width = 512
    if conversion.has("decoder_embed.", "decoder_blocks."):
        width = conversion.shape("decoder_embed.weight", "decoder width, width")[0]
        depth = conversion.depth("decoder_blocks")
    return {
        "name": "transformer",
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "positions_at": "decoder",
    }
