"""Class maps: ids are those of the file, an ignored pixel is the id after the last and counts nowhere."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mmmask.builtins.losses.cross_entropy import CrossEntropyLoss
from mmmask.interfaces import PLAIN, BadSample, Mask, SourceFile
from mmmask.interfaces.component import validate_strictly
from mmmask.model.tokenizing import tokenize
from mmmask_labels.modality import LabelsModality
from mmmask_registry import MmmaskError

STORED = np.random.default_rng(0).integers(0, 10, (24, 32), dtype=np.uint8)


def make(**settings):
    config = {"name": "labels", "size": 16, "patch_size": [4, 4], "classes": 10, "augment": [], **settings}
    return LabelsModality(validate_strictly(LabelsModality.Config, config))


def decoded(loaded, **settings):
    return make(**settings).preparation.decode(loaded, PLAIN)


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return SourceFile.of_bytes("map.png", file.getvalue())


def packed_png(rows, bits):
    """A grey PNG of few bits, which Pillow reads but does not write."""
    height, width = rows.shape
    written = "".join(f"{number:0{bits}b}" for number in rows.ravel())
    lines = [written[n : n + width * bits] for n in range(0, len(written), width * bits)]
    packed = b"".join(b"\0" + int(line, 2).to_bytes(width * bits // 8, "big") for line in lines)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(packed)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return SourceFile.of_bytes("map.png", b"\x89PNG\r\n\x1a\n" + body)


def test_files_keep_their_numbers():
    grey = Image.fromarray(STORED)
    palette = Image.fromarray(STORED, "L").convert("P")
    palette.putdata(STORED.ravel().tolist())
    palette.putpalette([(7 * n) % 256 for n in range(768)])
    array = io.BytesIO()
    np.save(array, STORED.astype(np.int64))
    files = [png(grey), png(palette), png(Image.fromarray(STORED.astype(np.uint16)))]
    for file in [*files, SourceFile.of_bytes("map.npy", array.getvalue()), STORED]:
        found = decoded(file)
        assert found.dtype == torch.uint8
        np.testing.assert_array_equal(found[0], STORED)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_of_grey_are_numbers_too(bits):
    rows = np.random.default_rng(0).integers(0, 2**bits, (8, 16))
    np.testing.assert_array_equal(decoded(packed_png(rows, bits), classes=16)[0], rows)


def test_many_classes_need_wider_ids():
    assert decoded(STORED.astype(np.int32) + 290, classes=300).dtype == torch.int32


def test_ignored_pixels_are_the_id_after_the_last():
    stored = STORED.astype(np.int16)
    stored[0, :3] = -1
    assert (decoded(stored, ignore=-1) == 10).sum() == 3
    assert (decoded(np.where(stored < 0, 255, stored).astype(np.uint8), ignore=255) == 10).sum() == 3
    # one of the classes may be the one
    assert set(decoded(STORED, ignore=3).unique().tolist()) == {0, 1, 2, 4, 5, 6, 7, 8, 9, 10}


@pytest.mark.parametrize(
    ("array", "settings", "problem"),
    [
        (STORED, {"classes": 8}, r"pixels are of no class, such as \d: classes are 0 to 7$"),
        (STORED, {"classes": 9, "ignore": 255}, "such as 9: classes are 0 to 8, and 255 is ignored"),
        (STORED / 2, {}, "integers, not float64"),
    ],
)
def test_other_numbers_are_bad_samples(array, settings, problem):
    with pytest.raises(BadSample, match=problem):
        decoded(array, **settings)


def test_names_may_stand_for_the_number_of_classes():
    assert make(classes=["wall", "floor"]).spec.vocab_size == 2


def test_resizing_makes_no_new_classes():
    modality = make(size=[12, 20])
    sample = modality.preparation.prepare(modality.preparation.decode(STORED * 9 // 9, PLAIN), PLAIN)
    assert sample.shape == (1, 12, 20)
    halved = np.kron(STORED, np.ones((2, 2), np.uint8))
    preparation = make(size=[24, 32]).preparation
    assert torch.equal(preparation.prepare(preparation.decode(halved, PLAIN), PLAIN)[0], torch.tensor(STORED))


def test_ignored_pixels_count_nowhere():
    modality = make(classes=3, ignore=9, size=8)
    ids = torch.randint(0, 3, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    ids[0, 0, :4, :4] = 3  # a whole token
    ids[0, 0, 4:6, :4] = 3  # half of one
    tokens = tokenize({"a": modality}, "a", ids)
    assert tokens.valid.tolist() == [[False, True, True, True], [True] * 4]
    loss = CrossEntropyLoss(CrossEntropyLoss.Config(name="cross_entropy"))
    index = torch.arange(4).expand(2, -1)
    prediction = torch.randn(2, 4, loss.prediction_dim(modality.spec), generator=torch.Generator().manual_seed(1))
    error = loss.error(prediction, loss.target(tokens, index))
    assert error[0, 0] == 0
    logits, truth = prediction[0, 2].view(16, 3), tokens.content[0, 2].long()
    by_hand = [-float(logits[n].log_softmax(0)[truth[n]]) for n in range(16) if truth[n] < 3]
    assert len(by_hand) == 8
    assert float(error[0, 2]) == pytest.approx(sum(by_hand) / 8, rel=1e-5)
    mask = Mask(index, index[:, :1], torch.ones(2, 1), torch.zeros(2, 4).bool())
    guess = loss.baseline(tokens, mask)[0, 0].view(16, 3)
    counts = torch.bincount(tokens.content[tokens.valid].flatten().long(), minlength=4)[:3] + 1
    torch.testing.assert_close(guess[0], (counts / counts.sum()).log())


def test_the_id_after_the_last_is_only_for_maps_with_ignored_pixels():
    ids = torch.full((1, 1, 16, 16), 10, dtype=torch.uint8)
    with pytest.raises(MmmaskError, match=r"ids 10 to 10 do not fit a vocab_size of 10 \(0 to 9\)"):
        tokenize({"a": make()}, "a", ids)
    assert not tokenize({"a": make(ignore=255)}, "a", ids).valid.any()


def test_the_embedding_is_a_convolution_of_class_vectors():
    modality = make(class_width=6)
    embedding = modality.build_embedding(20)
    ids = modality.preparation.decode(STORED, PLAIN)[None, :, :16, :16]
    found = embedding(modality.tokenize(ids).values())
    weight = embedding.proj.weight.view(20, 4, 4, 6).permute(0, 3, 1, 2)
    vectors = embedding.class_emb(ids[:, 0].long()).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.conv2d(vectors, weight, embedding.proj.bias, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    ignoring = make(ignore=255, class_width=6).build_embedding(20)
    nothing = ignoring(torch.full((1, 1, 16), 10))
    torch.testing.assert_close(nothing[0, 0], ignoring.proj.bias)


def test_pictures_have_a_colour_for_every_class():
    modality = make(classes=40, ignore=255)
    drawn = modality.preparation.show(torch.arange(48).clamp(max=40).view(1, 6, 8))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 41
    assert drawn[5, 7].tolist() == [128, 128, 128]


def test_equal_logits_cost_the_logarithm_of_the_classes():
    modality = make(ignore=255)
    tokens = modality.tokenize(torch.randint(0, 11, (1, 1, 16, 16)))
    loss = CrossEntropyLoss(CrossEntropyLoss.Config(name="cross_entropy"))
    index = torch.arange(16).unsqueeze(0)
    error = loss.error(torch.zeros(1, 16, 160), loss.target(tokens, index))
    torch.testing.assert_close(error, torch.full((1, 16), math.log(10)))
