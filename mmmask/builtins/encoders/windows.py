"""Planes of patches, and attention within their square windows: Swin Transformer (Liu et al. 2021), section 3.2.

B batch, H and W rows and columns of the plane, M cells along a side of a window, C width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmmask.builtins.positions.relative import relative_index
from mmmask.builtins.positions.resizing import resize_relative_table
from mmmask.interfaces import Embedding, GridError
from mmmask.model.attention import attention


class WindowAttention(nn.Module):
    """Multi-head self-attention within each window, with a learned bias per head and offset (equation 4).

    `relative_table` ((2 M - 1)^2, heads) holds that bias; row (dy + M - 1) (2 M - 1) + dx + M - 1 is for a query dy
    rows and dx columns after its key.
    """

    no_weight_decay = ("relative_table",)

    def __init__(self, width: int, num_heads: int, window: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.relative_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_table, std=0.02)
        index = relative_index((window, window), (window, window), num_prefix=0)
        self.register_buffer("_relative_index", index.to(self.relative_table.device), persistent=False)

    def forward(self, x: Tensor, apart: Tensor | None = None) -> Tensor:
        """(B * windows, M * M, C) -> the same shape.

        Args:
            x: the windows of a sample one after the other.
            apart: (windows, M * M, M * M) bool, True where a query must not see a key; the same in every sample.
        """
        bias = self.relative_table[self.get_buffer("_relative_index")].permute(2, 0, 1)  # (heads, M * M, M * M)
        if apart is not None:
            bias = bias.masked_fill(apart.unsqueeze(1), float("-inf"))  # (windows, heads, M * M, M * M)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        return self.proj(attention(qkv, bias=bias))

    def weights_from(self, other: WindowAttention) -> dict[str, Tensor]:
        """The table resized to these windows."""
        trained, window = (other.window,) * 2, (self.window,) * 2
        return {"relative_table": resize_relative_table(other.relative_table, trained, window)}


def cut(plane: Tensor, tile: Sequence[int]) -> Tensor:
    """(B, H, W, C) -> (B, rows of tiles, columns of tiles, *tile, C), each tile of so many rows and columns."""
    return plane.unflatten(2, (-1, tile[1])).unflatten(1, (-1, tile[0])).transpose(2, 3)


def join(tiles: Tensor) -> Tensor:
    """The inverse of `cut`."""
    return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def split_windows(plane: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B * windows, M * M, C), windows and the cells within them by rows."""
    return cut(plane, (window, window)).flatten(3, 4).flatten(0, 2)


def join_windows(windows: Tensor, height: int, width: int, window: int) -> Tensor:
    """The inverse of `split_windows`, to a plane of `height` x `width` cells."""
    return join(windows.unflatten(1, (window, window)).unflatten(0, (-1, height // window, width // window)))


def across_border(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Pairs of cells that share a window only because a plane rolled back by `shift` cells wraps around.

    A window on the last rows holds some that came from the top, one on the last columns some that came from the left.

    Returns:
        (windows, M * M, M * M) bool, True where query and key are on different sides of the border.
    """
    wrapped_y = torch.arange(height, device=device) >= height - shift
    wrapped_x = torch.arange(width, device=device) >= width - shift
    wrapped = torch.stack([wrapped_y.unsqueeze(1).expand(-1, width), wrapped_x.expand(height, -1)], dim=-1)
    cells = split_windows(wrapped.unsqueeze(0), window)  # (windows, M * M, 2)
    return (cells.unsqueeze(2) != cells.unsqueeze(1)).any(dim=-1)


def check_planes(encoder: str, embeddings: Mapping[str, Embedding]) -> None:
    """Refuses tokens that do not make up a plane of values.

    Raises:
        GridError: some are ids, or their grids do not have two axes.
    """
    for key, embedding in embeddings.items():
        if embedding.spec.vocab_size is not None:
            raise GridError(f"embeddings.{key}: {encoder} embeds values, not ids: choose another encoder")
        if len(embedding.spec.patch_size) != 2:
            raise GridError(
                f"embeddings.{key}: {encoder} takes grids of two axes, not {len(embedding.spec.patch_size)}: choose "
                "another encoder, or a patch_size of two numbers"
            )
