"""Published checkpoints by name: where their authors put them, under which licence, with which figures.

Addresses, licences and figures are those that the systems' own pages state; no file is kept here. Figures are
accuracies in percent. Nothing here imports torch: `mmmask list` reads this.
"""

from __future__ import annotations

from typing import NamedTuple

from mmmask.hooks import Publish

DRIVE = "https://drive.google.com/file/d/{}/view"
HUB = "https://huggingface.co/{}"
CC_BY_NC = "CC-BY-NC 4.0"


class System(NamedTuple):
    """The checkpoints of one system; its format has its name.

    Attributes:
        name: the first part of every name.
        licence: of the weights, as found.
        address: of a file, with {} for what differs.
        files: (the rest of its name, what differs in its address, description).
        by_hand: whether the host hands out files to people only.
        options: of the format, which these files need.
        encoder_alone: whether the decoder is not in the files.
    """

    name: str
    licence: str
    address: str
    files: tuple[tuple[str, str, str], ...]
    by_hand: bool = False
    options: dict[str, object] = {}
    encoder_alone: bool = False


OMNIMAE = System(
    "omnimae",
    CC_BY_NC,
    "https://dl.fbaipublicfiles.com/omnivore/omnimae_ckpts/{}.torch",
    (
        ("vit_base/pretrain", "vitb_pretrain", "ImageNet-1k and SSv2 jointly, 1600 epochs"),
        ("vit_base/finetune_in1k", "vitb_in1k_ft", "ImageNet-1k top-1 83.0"),
        ("vit_base/finetune_ssv2", "vitb_ssv2_ft", "SSv2 top-1 69.5"),
        ("vit_large/pretrain", "vitl_pretrain", "ImageNet-1k and SSv2 jointly, 1600 epochs"),
        ("vit_large/finetune_in1k", "vitl_in1k_ft", "ImageNet-1k top-1 85.1"),
        ("vit_large/finetune_ssv2", "vitl_ssv2_ft", "SSv2 top-1 74.2"),
        ("vit_huge/pretrain", "vith_pretrain", "ImageNet-1k and SSv2 jointly, 1600 epochs"),
        ("vit_huge/finetune_in1k", "vith_in1k_ft", "ImageNet-1k top-1 86.5"),
        ("vit_huge/finetune_ssv2", "vith_ssv2_ft", "SSv2 top-1 75.3"),
    ),
)

MAE = System(
    "mae",
    CC_BY_NC,
    "https://dl.fbaipublicfiles.com/mae/{}.pth",
    (
        ("vit_base/pretrain_full", "pretrain/mae_pretrain_vit_base_full", "ImageNet-1k; with the decoder"),
        ("vit_base/finetune", "finetune/mae_finetuned_vit_base", "ImageNet-1k top-1 83.66"),
        ("vit_large/pretrain_full", "pretrain/mae_pretrain_vit_large_full", "ImageNet-1k; with the decoder"),
        ("vit_large/finetune", "finetune/mae_finetuned_vit_large", "ImageNet-1k top-1 85.95"),
        ("vit_huge/pretrain_full", "pretrain/mae_pretrain_vit_huge_full", "ImageNet-1k; with the decoder"),
        ("vit_huge/finetune", "finetune/mae_finetuned_vit_huge", "ImageNet-1k top-1 86.93"),
    ),
)

MAE_ENCODERS = System(
    "mae",
    CC_BY_NC,
    "https://dl.fbaipublicfiles.com/mae/{}.pth",
    (
        ("vit_base/pretrain", "pretrain/mae_pretrain_vit_base", "ImageNet-1k, 1600 epochs; the encoder alone"),
        ("vit_large/pretrain", "pretrain/mae_pretrain_vit_large", "ImageNet-1k, 1600 epochs; the encoder alone"),
        ("vit_huge/pretrain", "pretrain/mae_pretrain_vit_huge", "ImageNet-1k, 1600 epochs; the encoder alone"),
    ),
    encoder_alone=True,
)

MAE_VISUALIZE = System(
    "mae",
    CC_BY_NC,
    "https://dl.fbaipublicfiles.com/mae/visualize/mae_visualize_{}.pth",
    tuple(
        (f"{size}/visualize", size, "ImageNet-1k; with the decoder, which predicts pixels as they are: for pictures")
        for size in ("vit_base", "vit_large", "vit_huge")
    ),
    options={"normalize": "none"},
)

MAE_ST = System(
    "mae_st",
    CC_BY_NC,
    "https://dl.fbaipublicfiles.com/video-mae/pretrain/mae_pretrain_{}.pth",
    tuple(
        (f"{size}/pretrain_k{classes}", f"{size}_k{classes}", f"Kinetics-{classes}, 1600 effective epochs")
        for size in ("vit_large", "vit_huge")
        for classes in (400, 600, 700)
    ),
)

VIDEOMAE = System(
    "videomae",
    "CC-BY-NC 4.0 (MIT until April 2022)",
    DRIVE,
    (
        ("vit_small/pretrain_k400_1600e", "1nU-H1u3eJ-VuyCveU7v-WIOcAVxs5Hww", "Kinetics-400, 1600 epochs"),
        ("vit_small/finetune_k400_1600e", "1ygjLRm1kvs9mwGsP3lLxUExhRo6TWnrx", "Kinetics-400 top-1 79.0"),
        ("vit_small/pretrain_ssv2_2400e", "1p_I1aaONOeUvRmRQw1UT3-L2H8XJClHu", "SSv2, 2400 epochs"),
        ("vit_small/finetune_ssv2_2400e", "1ajlMrT06jiiM-5YjNI2X_UFyzsuYbbtZ", "SSv2 top-1 66.8"),
        ("vit_base/pretrain_k400_800e", "1JfrhN144Hdg7we213H1WxwR3lGYOlmIn", "Kinetics-400, 800 epochs"),
        ("vit_base/finetune_k400_800e", "18EEgdXY9347yK3Yb28O-GxFMbk41F6Ne", "Kinetics-400 top-1 80.0"),
        ("vit_base/pretrain_k400_1600e", "1tEhLyskjb755TJ65ptsrafUG2llSwQE1", "Kinetics-400, 1600 epochs"),
        ("vit_base/finetune_k400_1600e", "1MzwteHH-1yuMnFb8vRBQDvngV1Zl-d3z", "Kinetics-400 top-1 81.5"),
        ("vit_base/pretrain_ssv2_800e", "181hLvyrrPW2IOGA46fkxdJk0tNLIgdB2", "SSv2, 800 epochs"),
        ("vit_base/finetune_ssv2_800e", "1xZCiaPF4w7lYmLt5o1D5tIZyDdLtJAvH", "SSv2 top-1 69.6"),
        ("vit_base/pretrain_ssv2_2400e", "1I18dY_7rSalGL8fPWV82c0-foRUDzJJk", "SSv2, 2400 epochs"),
        ("vit_base/finetune_ssv2_2400e", "1dt_59tBIyzdZd5Ecr22lTtzs_64MOZkT", "SSv2 top-1 70.8"),
        ("vit_base/pretrain_ucf101_3200e", "1BHev4meNgKM0o_8DMRbuzAsKSP3IpQ3o", "UCF101, 3200 epochs"),
        ("vit_base/finetune_ucf101_3200e", "1MSyon6fPpKz7oqD6WDGPFK4k_Rbyb6fw", "UCF101 top-1 91.3"),
        ("vit_large/pretrain_k400_1600e", "1qLOXWb_MGEvaI7tvuAe94CV7S2HXRwT3", "Kinetics-400, 1600 epochs"),
        ("vit_large/finetune_k400_1600e", "1jX1CiqxSkCfc94y8FRW1YGHy-GNvHCuD", "Kinetics-400 top-1 85.2"),
        ("vit_huge/pretrain_k400_1600e", "1AJQR1Rsi2N1pDn9tLyJ8DQrUREiBA1bO", "Kinetics-400, 1600 epochs"),
        ("vit_huge/finetune_k400_1600e", "104ouJZxSVPSAm0LwJXd6IzjdA_RGLqZi", "Kinetics-400 top-1 86.6"),
    ),
    by_hand=True,
)

VIDEOMAE_V2 = System(
    "videomaev2",
    "unclear (the hub's tags: Apache-2.0, CC-BY-NC 4.0)",
    HUB,
    (
        (
            "vit_small/distill_k710",
            "OpenGVLab/VideoMAE2/resolve/main/distill/vit_s_k710_dl_from_giant.pth",
            "distilled from the giant; Kinetics-710 top-1 77.6",
        ),
        (
            "vit_base/distill_k710",
            "OpenGVLab/VideoMAE2/resolve/main/distill/vit_b_k710_dl_from_giant.pth",
            "distilled from the giant; Kinetics-710 top-1 81.5",
        ),
        (
            "vit_giant/pretrain",
            "OpenGVLab/InternVideoMAE_models/resolve/main/mae-g/vit_g_hybrid_pt_1200e.pth",
            "UnlabeledHybrid, 1200 epochs",
        ),
        (
            "vit_giant/finetune_k710",
            "OpenGVLab/InternVideoMAE_models/resolve/main/mae-g/vit_g_hybrid_pt_1200e_k710_ft.pth",
            "Kinetics-710 top-1 83.8",
        ),
        (
            "vit_giant/finetune_ssv2",
            "OpenGVLab/InternVideoMAE_models/resolve/main/mae-g/vit_g_hybrid_pt_1200e_ssv2_ft.pth",
            "SSv2 top-1 77.0",
        ),
    ),
)

SIMMIM = System(
    "simmim",
    "not stated (tags of copies: Apache-2.0, MIT)",
    DRIVE,
    (
        ("swin_base/pretrain_100e", "1Wcbr66JL26FF30Kip9fZa_0lXrDAKP-d", "ImageNet-1k at 192 pixels, 100 epochs"),
        ("swin_base/pretrain_800e", "15zENvGjHlM71uKQ3d2FbljWPubtrPtjl", "ImageNet-1k at 192 pixels, 800 epochs"),
        ("swin_large/pretrain_800e", "1qDxrTl2YUDB0505_4QrU5LU2R1kKmcBP", "ImageNet-1k at 192 pixels, 800 epochs"),
        ("vit_base/pretrain_800e", "1dJn6GYkwMIcoP3zqOEyW1_iQfpBi8UOw", "ImageNet-1k at 224 pixels, 800 epochs"),
        ("vit_base/finetune", "1fKgDYd0tRgyHyTnyB1CleYxjo0Gn5tEB", "ImageNet-1k top-1 83.8"),
    ),
    by_hand=True,
)

# the fine-tuned file is not here: how it pools its features is not known, and the format refuses it
CONVMAE = System(
    "convmae",
    "MIT",
    DRIVE,
    (("conv_vit_base/pretrain", "1AEPivXw0A0b_m5EwEi6fg2pOAoDr8C31", "ImageNet-1k, 1600 epochs"),),
    by_hand=True,
)

# A revision stands for `main` where the page that lists the file was of that revision.
HUGGINGFACE_VITMAE = System(
    "huggingface_vitmae",
    "CC-BY-NC 4.0 (origin; the hub's tag says Apache-2.0)",
    HUB,
    (
        (
            "vit_base/pretrain",
            "facebook/vit-mae-base/resolve/main/pytorch_model.bin",
            "ImageNet-1k; MAE's, with the decoder",
        ),
        (
            "vit_large/pretrain",
            "facebook/vit-mae-large/resolve/main/pytorch_model.bin",
            "ImageNet-1k; MAE's, with the decoder",
        ),
        (
            "vit_huge/pretrain",
            "facebook/vit-mae-huge/resolve/main/pytorch_model.bin",
            "ImageNet-1k; MAE's, with the decoder",
        ),
    ),
)

HUGGINGFACE_VIDEOMAE = System(
    "huggingface_videomae",
    CC_BY_NC,
    f"{HUB.format('MCG-NJU')}/{{}}",
    (
        (
            "vit_base/pretrain_k400_800e",
            "videomae-base-short/resolve/9fa00797f9e861e08e49069f5039d60e02b37122/model.safetensors",
            "Kinetics-400, 800 epochs",
        ),
        (
            "vit_base/pretrain_k400_1600e",
            "videomae-base/resolve/main/model.safetensors",
            "Kinetics-400, 1600 epochs",
        ),
        ("vit_base/pretrain_ssv2_2400e", "videomae-base-ssv2/resolve/main/model.safetensors", "SSv2, 2400 epochs"),
        (
            "vit_base/finetune_k400",
            "videomae-base-finetuned-kinetics/resolve/main/model.safetensors",
            "fine-tuned on Kinetics-400",
        ),
        (
            "vit_base/finetune_ssv2",
            "videomae-base-finetuned-ssv2/resolve/main/pytorch_model.bin",
            "fine-tuned on SSv2",
        ),
        (
            "vit_large/pretrain_k400_1600e",
            "videomae-large/resolve/main/model.safetensors",
            "Kinetics-400, 1600 epochs",
        ),
        (
            "vit_large/finetune_k400",
            "videomae-large-finetuned-kinetics/resolve/0f6adcd5f6902900aa0281f9daacfe52bb3c4ad4/model.safetensors",
            "fine-tuned on Kinetics-400",
        ),
        (
            "vit_huge/finetune_k400",
            "videomae-huge-finetuned-kinetics/resolve/fb1e058bba7d50fb2be1a6823721ec35d6740834/pytorch_model.bin",
            "fine-tuned on Kinetics-400",
        ),
    ),
)

SYSTEMS = (
    OMNIMAE, MAE, MAE_ENCODERS, MAE_VISUALIZE, MAE_ST, VIDEOMAE, VIDEOMAE_V2, SIMMIM, CONVMAE, HUGGINGFACE_VITMAE,
    HUGGINGFACE_VIDEOMAE,
)  # fmt: skip


def publish_all(publish: Publish) -> None:
    """Names every checkpoint as `system/size/stage`."""
    for system in SYSTEMS:
        for name, file, description in system.files:
            publish(
                f"{system.name}/{name}",
                system.address.format(file),
                system.name,
                system.licence,
                description,
                by_hand=system.by_hand,
                encoder_alone=system.encoder_alone,
                options=system.options,
            )
