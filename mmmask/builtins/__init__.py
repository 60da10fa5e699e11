"""Components that need only a token grid, or only files, and the shipped experiments; through anybody's hooks."""

from pathlib import Path

from mmmask.hooks import PublishExperiment, Register, hookimpl


@hookimpl
def register_components(register: Register) -> None:
    """Names the built-in components."""
    here = "mmmask.builtins"
    register("masker", "random", f"{here}.maskers:RandomMasker", "tokens at random, an exact number in every sample")
    register("masker", "tube", f"{here}.maskers:TubeMasker", "the same cells masked in every frame")
    register("masker", "causal", f"{here}.maskers:CausalMasker", "the last tokens in raster order")
    register("masker", "frame", f"{here}.maskers:FrameMasker", "whole frames, at random")
    register("masker", "unit", f"{here}.maskers:UnitMasker", "units of several tokens, at random, as in SimMIM")
    register("masker", "block", f"{here}.maskers:BlockMasker", "rectangles, as in BEiT, with an exact number of tokens")
    register("masker", "grid", f"{here}.maskers:GridMasker", "all but one token of every cell of a regular grid")
    running_cell = f"{here}.maskers:RunningCellMasker"
    register(
        "masker", "running_cell", running_cell, "2 x 2 cells whose pattern moves from frame to frame, as in VideoMAE V2"
    )
    register("positions", "flat_sinusoid", f"{here}.positions:FlatSinusoid", "fixed sines over the flat token index")
    register("positions", "sincos_2d", f"{here}.positions:SinCos2d", "fixed sines of column and row, as in MAE")
    register("positions", "learned", f"{here}.positions:LearnedPositions", "a learned vector per token")
    separable = f"{here}.positions:LearnedSeparablePositions"
    register("positions", "learned_separable", separable, "learned vectors of place and frame, added, as in MAE-ST")
    register("positions", "relative_bias", f"{here}.positions:RelativeBias", "learned attention bias per offset")
    register("encoder", "vit", f"{here}.vit:ViTEncoder", "plain Vision Transformer over the visible tokens")
    register("encoder", "swin", f"{here}.swin:SwinEncoder", "Swin Transformer, windows in stages, over all tokens")
    conv_vit = f"{here}.conv_vit:ConvViTEncoder"
    register("encoder", "conv_vit", conv_vit, "masked convolutions in stages, then a ViT over the visible tokens")
    register("decoder", "transformer", f"{here}.transformer_decoder:TransformerDecoder", "a few blocks over all tokens")
    register(
        "decoder", "in_place", f"{here}.in_place_decoder:InPlaceDecoder", "answers from masked tokens' own latents"
    )
    register("loss", "pixels", f"{here}.pixels:PixelLoss", "error of the values a token holds, normalised or not")
    register("loss", "cross_entropy", f"{here}.cross_entropy:CrossEntropyLoss", "which id a token is, in nats")
    register("pool", "mean", f"{here}.pools:MeanPool", "the mean over all tokens")
    register("pool", "prefix", f"{here}.pools:PrefixPool", "the first prefix token (cls)")
    register("pool", "first", f"{here}.pools:FirstPool", "the first token")
    register("format", "mmmask", "mmmask.interop.own_format:OwnFormat", "mmmask's own weights, with their settings")
    register("source", "folder", f"{here}.sources:FolderSource", "every file below a folder, nested or flat")
    register("source", "list", f"{here}.sources:ListSource", "a file with one `path` or `path,label` a line")
    register("source", "glob", f"{here}.sources:GlobSource", "every file that matches a pattern")
    register("objective", "masked", f"{here}.objectives.masked:MaskedObjective", "predict masked tokens")
    register("optimizer", "adamw", f"{here}.optimizers:AdamW", "Adam with decoupled weight decay")
    reconstruction = f"{here}.evaluators.reconstruction:ReconstructionEvaluator"
    register("evaluator", "reconstruction", reconstruction, "held-out loss and PSNR, against the simplest guess")
    register("callback", "tensorboard", f"{here}.callbacks.tensorboard:TensorBoard", "TensorBoard events")


@hookimpl
def publish_experiments(publish: PublishExperiment) -> None:
    """Names the experiments that come with mmmask, such as `omnimae/vit_base`."""
    package = Path(__file__).parents[1]
    # a wheel holds them inside the package, a checkout beside it
    folder = next(f for f in (package / "configs", package.parent / "configs") if f.is_dir())
    for path in sorted(folder.rglob("*.yaml")):
        publish(path.relative_to(folder).with_suffix("").as_posix(), path)
