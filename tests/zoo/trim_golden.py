"""Makes golden_omnimae.pt of the full golden file: `python trim_golden.py FULL.pt`.

The full file holds what the official OmniMAE (facebookresearch/omnivore) computes on a CPU in float32, at a tiny size
with seeded random weights: weights, inputs, masks, latents, predictions, losses and gradients. Kept is what the tests
compare: of predictions those of hidden tokens, every fourth number; of gradients all norms, and every fourth number
of five tensors. Nothing is rounded.
"""

import sys
from pathlib import Path

import torch

STRIDE = 4


def trim(full: dict) -> dict:
    cases = {}
    for name, case in full["cases"].items():
        mask = case["mask"]
        cases[name] = {
            "inputs": case["inputs"],
            "mask": mask,
            "encoder_out": case["encoder_out"],
            # (batch, hidden, dim / STRIDE), hidden tokens in token order
            "predictions": case["decoder_pred"][mask].unflatten(0, (len(mask), -1))[..., ::STRIDE].clone(),
            "losses": case["losses"],
            "loss_float64": case["loss_float64"],
            "gradient_norms": case["grads"]["l2_norm"],
            "gradients": {key: grad.flatten()[::STRIDE].clone() for key, grad in case["grads"]["full"].items()},
        }
    tables = ("trunk.pos_embed", "trunk.decoder.pos_embed")
    return {
        "stride": STRIDE,
        "meta": full["meta"],
        "config": full["config"],
        "state_dict": {key: value for key, value in full["state_dict"].items() if key not in tables},
        "tables": full["pos_table"],
        "cases": cases,
    }


if __name__ == "__main__":
    target = Path(__file__).with_name("golden_omnimae.pt")
    torch.save(trim(torch.load(sys.argv[1], weights_only=True)), target)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")
