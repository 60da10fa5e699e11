"""Options that several formats have: what no key of a file tells."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Size = Annotated[int, Field(gt=0, description="height and width in pixels")]
FilesSize = Annotated[int | None, Field(gt=0, description="height and width in pixels; null: the file's")]
NumFrames = Annotated[int, Field(gt=0, description="frames of a clip")]
NumHeads = Annotated[int | None, Field(gt=0, description="attention heads; null: told from the width")]
DecoderNumHeads = Annotated[int, Field(gt=0, description="attention heads of the decoder")]
MaskRatio = Annotated[float, Field(ge=0, lt=1, description="share of the tokens that is masked")]
NormalizedTokens = Annotated[
    Literal["token", "none"],
    Field(description="whether the decoder was trained on normalised patches (norm_pix_loss); no key tells"),
]
NormEpsilon = Annotated[float, Field(gt=0, description="epsilon of the LayerNorms")]
