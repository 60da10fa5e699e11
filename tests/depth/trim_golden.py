"""Makes golden_depth.pt of MultiMAE's full golden file: `python trim_golden.py FULL.pt`.

Kept are two depth maps, every fourth number of the standardised ones that the official implementation made of them,
its predictions for them, its mask and its loss.
"""

import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    full = torch.load(sys.argv[1], weights_only=True)
    case = full["cases"][full["primary_case"]]
    # ranks need whole maps; of what they are for, every fourth number is enough
    kept = {"meta": full["meta"], "depth": case["inputs"]["depth"].clone()}
    kept["standardized"] = case["depth_standardized"].flatten()[::4].clone()
    kept["prediction"] = case["decoder_pred"]["depth"].clone()
    kept["mask"], kept["loss"] = case["mask"]["depth"], case["losses"]["depth"]
    target = Path(__file__).with_name("golden_depth.pt")
    torch.save(kept, target)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")
