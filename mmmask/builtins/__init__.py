"""Components that need only a token grid, or only files, and the shipped experiments; through anybody's hooks."""

from pathlib import Path

from mmmask.hooks import PublishExperiment, Register, hookimpl

# kind, name, class below this package, description
COMPONENTS = (
    ("masker", "random", "maskers:RandomMasker", "tokens at random, an exact number in every sample"),
    ("masker", "tube", "maskers:TubeMasker", "the same cells masked in every frame"),
    ("masker", "causal", "maskers:CausalMasker", "the last tokens in raster order"),
    ("masker", "frame", "maskers:FrameMasker", "whole frames, at random"),
    ("masker", "unit", "maskers:UnitMasker", "units of several tokens, at random, as in SimMIM"),
    ("masker", "block", "maskers:BlockMasker", "rectangles, as in BEiT, with an exact number of tokens"),
    ("masker", "grid", "maskers:GridMasker", "all but one token of every cell of a regular grid"),
    ("masker", "running_cell", "maskers:RunningCellMasker", "2 x 2 cells, a pattern that moves, as in VideoMAE V2"),
    ("masker", "learned", "maskers:LearnedMasker", "learns where the error is high, by score function"),
    ("masker", "attention", "maskers:AttentionMasker", "tokens whose features are like the whole sample's"),
    (
        "masker",
        "budget",
        "maskers:BudgetMasker",
        "a share of all tokens, the visible ones split among aligned parts",
    ),
    ("positions", "flat_sinusoid", "positions:FlatSinusoid", "fixed sines over the flat token index"),
    ("positions", "sincos_2d", "positions:SinCos2d", "fixed sines of column and row, as in MAE"),
    ("positions", "learned", "positions:LearnedPositions", "a learned vector per token"),
    ("positions", "learned_separable", "positions:LearnedSeparablePositions", "learned place plus frame (MAE-ST)"),
    ("positions", "relative_bias", "positions:RelativeBias", "learned attention bias per offset"),
    ("encoder", "vit", "encoders.vit:ViTEncoder", "plain Vision Transformer over the visible tokens"),
    ("encoder", "swin", "encoders.swin:SwinEncoder", "Swin Transformer, windows in stages, over all tokens"),
    (
        "encoder",
        "conv_vit",
        "encoders.conv_vit:ConvViTEncoder",
        "masked convolutions in stages, then a ViT over visible tokens",
    ),
    ("decoder", "transformer", "decoders.transformer:TransformerDecoder", "a few blocks over all tokens"),
    (
        "decoder",
        "cross_attention",
        "decoders.cross_attention:CrossAttentionDecoder",
        "queries that look at the latents of all parts (MultiMAE, CrossMAE)",
    ),
    ("decoder", "in_place", "decoders.in_place:InPlaceDecoder", "answers from masked tokens' own latents"),
    ("loss", "pixels", "losses.pixels:PixelLoss", "error of the values a token holds, normalised or not"),
    ("loss", "hog", "losses.hog:HogLoss", "histograms of oriented gradients, as in MaskFeat"),
    ("loss", "cross_entropy", "losses.cross_entropy:CrossEntropyLoss", "which id a token is, in nats"),
    ("loss", "codebook", "losses.codebook:CodebookLoss", "which of the ids of a codebook made by k-means a token is"),
    ("loss", "latents", "losses.latents:LatentLoss", "error of the latents that a teacher gives a token"),
    ("pool", "mean", "pools:MeanPool", "the mean over all tokens"),
    ("pool", "prefix", "pools:PrefixPool", "the first prefix token (cls)"),
    ("pool", "first", "pools:FirstPool", "the first token"),
    ("pool", "attentive", "pools:AttentivePool", "attention over all tokens with a learned query"),
    ("source", "folder", "sources.listings:FolderSource", "every file below a folder, nested or flat"),
    ("source", "list", "sources.listings:ListSource", "a file with one `path` or `path,label` a line"),
    (
        "source",
        "table",
        "sources.table:TableSource",
        "what a CSV or JSON file names: labels of several sets, parts of recordings",
    ),
    ("source", "glob", "sources.listings:GlobSource", "every file that matches a pattern"),
    (
        "source",
        "aligned",
        "sources.aligned:AlignedSource",
        "several modalities of each sample, a source for each, by name",
    ),
    ("source", "arrays", "sources.aligned:ArraysSource", "several modalities of each sample, arrays of one .npz"),
    ("objective", "masked", "objectives.masked.objective:MaskedObjective", "predict masked tokens"),
    (
        "objective",
        "classification",
        "objectives.classification.objective:ClassificationObjective",
        "which class a sample is of",
    ),
    (
        "objective",
        "contrastive",
        "objectives.contrastive.objective:ContrastiveObjective",
        "which views are of one sample, as in SimCLR",
    ),
    ("optimizer", "adamw", "optimizers:AdamW", "Adam with decoupled weight decay"),
    ("optimizer", "sgd", "optimizers:SGD", "stochastic gradient descent with momentum"),
    ("optimizer", "lars", "optimizers:Lars", "layer-wise adaptive rates for large batches"),
    (
        "evaluator",
        "reconstruction",
        "objectives.masked.evaluator:ReconstructionEvaluator",
        "loss and PSNR, against the simplest guess",
    ),
    ("evaluator", "knn", "probes:KnnEvaluator", "classes told by the most similar training samples"),
    ("evaluator", "linear", "probes:LinearEvaluator", "classes told by logistic regression on features"),
    ("evaluator", "effective_rank", "probes:EffectiveRankEvaluator", "directions that features fill, without labels"),
    (
        "evaluator",
        "classification",
        "objectives.classification.evaluator:ClassificationEvaluator",
        "loss, accuracy, mean average precision",
    ),
    (
        "evaluator",
        "retrieval",
        "objectives.contrastive.evaluator:RetrievalEvaluator",
        "recall of one part of a sample by another",
    ),
    ("callback", "tensorboard", "callbacks:TensorBoard", "TensorBoard events"),
)


@hookimpl
def register_components(register: Register) -> None:
    """Names the built-in components."""
    for kind, name, place, description in COMPONENTS:
        register(kind, name, f"mmmask.builtins.{place}", description)
    register("format", "mmmask", "mmmask.interop.own_format:OwnFormat", "mmmask's own weights, with their settings")


@hookimpl
def publish_experiments(publish: PublishExperiment) -> None:
    """Names the experiments that come with mmmask, such as `omnimae/vit_base`."""
    package = Path(__file__).parents[1]
    # a wheel holds them inside the package, a checkout beside it
    folder = next(f for f in (package / "configs", package.parent / "configs") if f.is_dir())
    for path in sorted(folder.rglob("*.yaml")):
        publish(path.relative_to(folder).with_suffix("").as_posix(), path)
