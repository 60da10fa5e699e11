"""Makes golden_SYSTEM.pt of a full golden file: `python trim_golden.py SYSTEM FULL.pt`.

A full file holds what an official implementation computes on a CPU in float32, at a tiny size with seeded random
weights: weights, inputs, masks, latents, predictions, losses and gradients. Kept is what the tests compare: of
predictions those of predicted tokens, every fourth number; of gradients all norms, and every fourth number of a few
tensors. Nothing is rounded; tensors that are equal are stored once.
"""

import sys
from pathlib import Path

import torch

STRIDE = 4
# what no key tells: options of the format, for tiny models
HEADS = {"num_heads": 4, "decoder_num_heads": 4}
OPTIONS = {
    "omnimae": HEADS | {"size": 32, "num_frames": 8},
    "mae": HEADS,
    "mae_st": HEADS | {"num_frames": 8},
    "videomae": HEADS | {"size": 32, "num_frames": 16},
    "videomaev2": HEADS | {"size": 32, "num_frames": 8, "format": "videomaev2"},
    "simmim": {"num_heads": 4},
    "convmae": HEADS,
    "multimae": HEADS,
}
PATCH = {"vit": 16, "swin": 32}  # SimMIM's: pixels of a token
NORMALIZED = {"mae": "token", "mae_st": "token", "convmae": "token", "videomae": "channel", "videomaev2": "channel"}


def trim(system: str, full: dict) -> dict:
    """{cases: pretraining, classified: fine-tuned}, each with its weights, options and results."""
    cases = {name: pretrained(system, full, case) for name, case in full["cases"].items()}
    fine_tuned = full.get("finetune", {})
    if system == "omnimae":  # the third case is void: its table happens to be as long as the tokens are many
        common = {key: fine_tuned[key] for key in ("state_dict", "labels")}
        tuned = {name: common | fine_tuned["cases"][name] for name in ("image", "video")}
    else:
        tuned = {"only": fine_tuned} if "state_dict" in fine_tuned else fine_tuned
    classified = {name: classifier(system, case) for name, case in tuned.items()}
    tables = full.get("pos_table", {})
    return shared({"stride": STRIDE, "meta": full["meta"], "tables": tables, "cases": cases, "classified": classified})


def pretrained(system: str, full: dict, case: dict) -> dict:
    """One pretraining case."""
    if system == "multimae":
        return aligned(full["state_dict"], case)
    weights = full["state_dict_swin" if case["mask"].shape[1] == 256 else "state_dict"]
    if case.get("sep_pos_embed") is False:
        weights = {key: tensor for key, tensor in weights.items() if "pos_embed" not in key}
    weights = weights | case.get("state_dict_override", {}) | case.get("state_dict_extra", {})
    normalized = case.get("norm_pix_loss", case.get("normlize_target"))
    options = dict(OPTIONS[system])
    if normalized is not None:
        options["normalize"] = NORMALIZED[system] if normalized else "none"
    stream, samples = stream_of(case)
    masked, latents = case["mask"], case.get("encoder_out_token_order", case["encoder_out"])
    if system == "simmim":
        kind = "swin" if masked.shape[1] == 256 else "vit"
        if kind == "swin":  # a token is a unit of 8 x 8 patches
            masked = case["mask_grid"][:, ::8, ::8].flatten(1).bool()
        predictions = patches(case["decoder_pred"], PATCH[kind])
    else:
        predictions = case["decoder_pred"]
    asked = ~case["decode_mask"] if "decode_mask" in case else masked
    if predictions.shape[1] == masked.shape[1]:
        predictions = predictions[asked].unflatten(0, (len(masked), -1))
    prefix = latents.shape[1] - (masked.shape[1] if system == "simmim" else int((~masked[0]).sum()))
    return {
        "weights": weights,
        "options": options,
        "stream": stream,
        "inputs": samples,
        "masked": masked,
        "asked": asked,
        "latents": latents[:, prefix:].clone(),
        "prefix": latents[:, :prefix].clone(),
        "predictions": predictions[..., ::STRIDE].clone(),
        **losses_and_gradients(case),
    }


def aligned(weights: dict, case: dict) -> dict:
    """One pretraining case of aligned parts: inputs and masks by part, predictions by target, of all tokens."""
    latents, inputs = case["encoder_out_token_order"], case["inputs"]
    sides = {"semseg": 4}
    return {
        "weights": weights,
        "options": OPTIONS["multimae"],
        "stream": "scenes",
        "inputs": inputs | {"semseg": inputs["semseg"].unsqueeze(1)},
        "depth_standardized": case["depth_standardized"],
        "masked": case["mask"],
        "asked": case["mask"],
        "latents": latents[:, :-1].clone(),
        "prefix": latents[:, -1:].clone(),
        "predictions": {
            target: patches(image, sides.get(target, 16))[..., ::STRIDE].clone()
            for target, image in case["decoder_pred"].items()
        },
        **losses_and_gradients(case),
    }


def losses_and_gradients(case: dict) -> dict:
    gradients = case["grads"]
    return {
        "loss": case["loss"],
        "losses": case.get("losses", {}),
        "loss_float64": case["loss_float64"],
        "gradient_norms": gradients["l2_norm"],
        "gradients": {key: tensor.flatten()[::STRIDE].clone() for key, tensor in gradients["full"].items()},
        "noise": gradients["noise_level"],
    }


def classifier(system: str, case: dict) -> dict:
    """One fine-tuned case."""
    stream, samples = stream_of(case)
    options = {key: value for key, value in OPTIONS[system].items() if key != "decoder_num_heads"}
    return {
        "weights": case["state_dict"],
        "options": options,
        "stream": stream,
        "inputs": samples,
        "features": case["features"],
        "logits": case["logits"],
        "labels": case.get("labels"),
        "loss": case.get("ce_loss"),
        "gradient_norms": case.get("grads", {}).get("l2_norm", {}),
        "noise": case.get("grads", {}).get("noise_level", []),
    }


def stream_of(case: dict) -> tuple[str, torch.Tensor]:
    ((kind, samples),) = case["inputs"].items()
    return f"{kind}s", samples


def patches(images: torch.Tensor, side: int) -> torch.Tensor:
    """(batch, channels, height, width) -> (batch, tokens, side * side * channels), channel fastest."""
    cells = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (batch, channels, rows, side, columns, side)
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def shared(value, seen=None):
    """The same, with one tensor in the place of all that are equal."""
    seen = {} if seen is None else seen
    if isinstance(value, dict):
        return {key: shared(part, seen) for key, part in value.items()}
    if isinstance(value, list):
        return [shared(part, seen) for part in value]
    if not isinstance(value, torch.Tensor):
        return value
    key = (value.dtype, value.shape, value.numpy().tobytes())
    return seen.setdefault(key, value.clone())


if __name__ == "__main__":
    name, source = sys.argv[1:]
    target = Path(__file__).with_name(f"golden_{name}.pt")
    torch.save(trim(name, torch.load(source, weights_only=True)), target)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")
