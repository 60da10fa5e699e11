"""Names that an experiment can use. Experiments and checkpoints name it, so nothing here is renamed or taken away.

A new component adds its name.
"""

from mmmask.components import components

NAMES = {
    "modality": ["audio", "depth", "image", "labels", "text", "video"],
    "source": ["aligned", "arrays", "folder", "glob", "json_lines", "list", "parquet", "shards", "table", "text_files"],
    "masker": [
        "attention",
        "block",
        "budget",
        "causal",
        "frame",
        "grid",
        "learned",
        "random",
        "running_cell",
        "span",
        "time_frequency_bands",
        "tube",
        "unit",
    ],
    "positions": ["flat_sinusoid", "learned", "learned_separable", "relative_bias", "sincos_2d"],
    "encoder": ["conv_vit", "swin", "vit"],
    "decoder": ["cross_attention", "in_place", "transformer"],
    "loss": ["codebook", "cross_entropy", "depth", "hog", "latents", "pixels"],
    "objective": ["classification", "contrastive", "masked"],
    "pool": ["attentive", "first", "mean", "prefix"],
    "optimizer": ["adamw", "lars", "sgd"],
    "augmentation": [
        "centre_crop",
        "color_jitter",
        "crop",
        "erase",
        "flip",
        "pad_crop",
        "rand_augment",
        "spec_augment",
    ],
    "evaluator": ["classification", "effective_rank", "knn", "linear", "reconstruction", "retrieval"],
    "callback": ["tensorboard"],
    "format": [
        "convmae",
        "huggingface_videomae",
        "huggingface_vitmae",
        "mae",
        "mae_st",
        "mmmask",
        "multimae",
        "omnimae",
        "simmim",
        "timm_vit",
        "videomae",
        "videomaev2",
    ],
}


def test_the_names_are_these():
    registries = components().registries
    own = {
        kind: [entry.name for entry in registry if entry.supplier == "mmmask"] for kind, registry in registries.items()
    }
    assert own == NAMES
