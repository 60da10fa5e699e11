"""The text modality: ids and back, settings, pieces of texts, its worker side."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pydantic import ValidationError

import mmmask
from mmmask.components import components
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import PLAIN, BadSample, SourceFile, View
from mmmask.interfaces.component import validate_strictly
from mmmask_text.modality import TextModality


def text(**settings):
    return TextModality(validate_strictly(TextModality.Config, {"name": "text", **settings}))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def prepared(preparation, loaded, seed=None):
    view = PLAIN if seed is None else View(generator(seed))
    return preparation.prepare(preparation.decode(loaded, view), view)


def test_found_by_name():
    assert components().get("modality", "text") is TextModality


def test_a_token_is_a_byte():
    modality = text(length=5)
    sample = prepared(modality.preparation, "héllo")
    assert sample.dtype == torch.int64
    assert sample.tolist() == [list("héll".encode())]
    tokens = modality.tokenize(sample.unsqueeze(0))
    assert tokens.content.shape == (1, 5, 1)
    assert tokens.grid == modality.grid(modality.sample_shape) == (5,)
    assert tokens.spec.vocab_size == 256
    assert torch.equal(modality.detokenize(tokens.content, tokens.grid), sample.unsqueeze(0))


@pytest.mark.parametrize("shape", [(1, 5), (2, 2, 5), (1, 1, 6), (1, 1, 0), (1, 1, 1, 5)])
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="expected ids|length allows 1 to 5"):
        text(length=5).tokenize(torch.zeros(shape, dtype=torch.int64))


def test_shorter_texts_can_be_encoded():
    model = mmmask.build_model(experiment())
    latents = model.encode({"text": torch.randint(256, (3, 1, 7))})["text"]
    assert latents.values.shape == (3, 7, 16)
    with pytest.raises(mmmask.MmmaskError, match="a text of 33 tokens: the modality's length allows 1 to 32"):
        model.encode({"text": torch.randint(256, (3, 1, 33))})


def test_a_random_piece_or_the_beginning():
    letters = bytes(range(1, 101))
    preparation = text(length=40).preparation
    assert prepared(preparation, letters).tolist() == [list(letters[:40])]
    starts = set()
    for seed in range(400):
        piece = prepared(preparation, letters, seed)[0]
        assert torch.equal(piece, prepared(preparation, letters, seed)[0])
        assert piece.diff().eq(1).all()
        starts.add(int(piece[0]))
    assert min(starts) == 1
    assert max(starts) == 61
    assert len(starts) > 55


def test_the_whole_text_where_it_has_just_the_length():
    assert prepared(text(length=3).preparation, b"abc", 1).tolist() == [[97, 98, 99]]


def test_files_bytes_and_strings_are_the_same(tmp_path):
    (tmp_path / "a.md").write_bytes("Zoë\r\n".encode())
    preparation = text(length=6).preparation
    for loaded in ("Zoë\r\n", "Zoë\r\n".encode(), SourceFile(str(tmp_path / "a.md"))):
        assert prepared(preparation, loaded).tolist() == [[90, 111, 0xC3, 0xAB, 13, 10]]


def test_bytes_that_are_no_utf8_stay():
    assert prepared(text(length=4).preparation, b"\xff\xc3a\x80").tolist() == [[0xFF, 0xC3, 97, 0x80]]
    assert prepared(text(length=1).preparation, "\ud800").tolist() == [[ord("?")]]


def test_what_cannot_be_used(tmp_path):
    preparation = text(length=10, max_bytes=20).preparation
    (tmp_path / "long.txt").write_bytes(b"x" * 21)
    (tmp_path / "wide.txt").write_text("some words of text", encoding="utf-16")
    for loaded, message in [
        (b"abc", r"a text of 3 tokens, and a sample has length 10: set a smaller length, or join .* text_files"),
        (b"", "the text is empty"),
        (SourceFile(str(tmp_path / "long.txt")), "more than max_bytes = 20 bytes: .* the source text_files"),
        (SourceFile(str(tmp_path / "gone.txt")), "FileNotFoundError"),
        (SourceFile(str(tmp_path)), "IsADirectoryError"),
        (SourceFile(str(tmp_path / "wide.txt")), "more than max_bytes"),
        (b"hello\0world", "a zero byte: no text, or not in UTF-8"),
        (12, "expected a file, bytes or a str, got int"),
    ]:
        with pytest.raises(BadSample, match=message):
            prepared(preparation, loaded)
    with pytest.raises(BadSample, match="not in UTF-8"):
        prepared(text(length=2).preparation, SourceFile(str(tmp_path / "wide.txt")))
    assert prepared(preparation, b"x" * 20).shape == (1, 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"length": 0}, "greater than 0"), ({"max_bytes": 0}, "greater than 0"), ({"vocabulry": "x"}, "vocabulry")],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValidationError, match=message):
        text(**settings)


def test_the_worker_side_can_be_sent_to_a_worker():
    preparation = text(length=8).preparation
    copy = pickle.loads(pickle.dumps(preparation))
    assert copy == preparation
    assert torch.equal(prepared(copy, b"abcdefghijk", 3), prepared(preparation, b"abcdefghijk", 3))


def experiment(**modality):
    return experiment_from_data(
        {
            "model": {
                "encoder": {"name": "vit", "width": 16, "depth": 1, "num_heads": 2},
                "decoder": {"name": "transformer", "width": 16, "depth": 1, "num_heads": 2},
            },
            "streams": {
                "text": {
                    "modality": {"name": "text", "length": 32, **modality},
                    "masker": {"name": "span"},
                    "loss": {"name": "cross_entropy"},
                    "batch_size": 4,
                }
            },
        }
    )


def test_gradients_reach_the_vectors_of_what_is_visible_and_no_others():
    model = mmmask.build_model(experiment())
    batch = torch.full((2, 1, 32), 65)
    batch[:, :, ::2] = 66
    output = model({"text": batch})
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    table = model.encoder.embeddings["text_bytes"].weight
    assert table.shape == (256, 16)
    assert table.grad.abs().sum(1).nonzero().flatten().tolist() == [65, 66]
    assert 0.9 < table.detach().std() < 1.1
    assert output.streams["text"].predictions.shape == (2, 4, 256)


def test_streams_of_bytes_share_embedding_and_head():
    data = experiment().to_data()
    data["streams"]["short"] = data["streams"]["text"] | {"modality": {"name": "text", "length": 8}}
    model = mmmask.build_model(experiment_from_data(data))
    assert list(model.encoder.embeddings) == list(model.objectives["masked"].heads) == ["text_bytes"]


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers")

    def tokenizer(words):
        made = tokenizers.Tokenizer(
            tokenizers.models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
        )
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        return made

    def save(*words, change=lambda made: None):
        made = tokenizer(["[UNK]", *words])
        change(made)
        path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
        made.save(str(path))
        return str(path)

    return save


@pytest.fixture(scope="module")
def path(save):
    return save("the", "cat", "sat", "on", "mat")


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory):
    """A vocabulary of bytes and of what lies next to each other most often."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(["the cat sat on the mat, and the Zoë sat on the cat. "] * 20, trainer)
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    made.save(str(path))
    return str(path)


class TestVocabularies:
    """Files of the library tokenizers."""

    def test_ids_are_its_tokens(self, path):
        modality = text(length=4, tokenizer=path)
        assert modality.spec.vocab_size == 6
        assert prepared(modality.preparation, "the cat sat on the mat").tolist() == [[1, 2, 3, 4]]
        assert prepared(modality.preparation, "the dog sat down ").tolist() == [[1, 0, 3, 0]]
        with pytest.raises(BadSample, match="a text of 3 tokens, and a sample has length 4"):
            prepared(modality.preparation, "the cat sat")

    def test_equal_vocabularies_share_their_embedding(self, save, path):
        def cut_and_filled(made):
            made.enable_truncation(2)
            made.enable_padding(length=9)

        same = save("the", "cat", "sat", "on", "mat", change=cut_and_filled)
        other = save("the", "cat", "sat", "on", "rug")
        keys = [text(tokenizer=name).embedding for name in (path, same, other)]
        assert keys[0] == keys[1] != keys[2]
        assert keys[0].isidentifier()
        assert keys[0] != text().embedding
        assert prepared(text(length=6, tokenizer=same).preparation, "the cat sat on the mat").shape == (1, 6)

    def test_added_tokens_have_ids_too(self, save):
        path = save("the", change=lambda made: made.add_special_tokens(["[HIDE]", "[END]"]))
        assert text(tokenizer=path).spec.vocab_size == 4
        assert prepared(text(length=2, tokenizer=path).preparation, "the [END]").tolist() == [[1, 3]]

    def test_a_window_may_cut_characters(self, byte_pairs):
        preparation = text(length=1, tokenizer=byte_pairs).preparation
        whole = "über Zoë €"
        for text_bytes, kept in [
            (whole.encode(), whole),
            (whole.encode()[1:], whole[1:]),
            (whole.encode()[:-1], whole[:-1]),
            (whole.encode()[1:-2], whole[1:-1]),
            (b"a\xffb", "a\ufffdb"),
        ]:
            ids, wanted = (preparation.decode(part, PLAIN) for part in (text_bytes, kept))
            assert torch.equal(ids, wanted), kept

    def test_it_is_opened_again_elsewhere(self, path):
        preparation = text(length=3, tokenizer=path).preparation
        copy = pickle.loads(pickle.dumps(preparation))
        assert len(pickle.dumps(preparation)) < 500
        assert torch.equal(
            prepared(copy, "the cat sat on the mat", 1), prepared(preparation, "the cat sat on the mat", 1)
        )

    def test_it_serves_several_threads(self, byte_pairs):
        preparation = text(length=40, tokenizer=byte_pairs).preparation
        texts = [f"the cat sat on the mat {number} times, " * 20 for number in range(40)]
        alone = [prepared(preparation, loaded, 1) for loaded in texts]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda loaded: prepared(preparation, loaded, 1), texts))
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))

    def test_a_model_trains_on_it(self, path):
        model = mmmask.build_model(experiment(tokenizer=path))
        output = model({"text": torch.randint(6, (2, 1, 32))})
        output.loss.backward()
        assert output.streams["text"].predictions.shape[-1] == 6
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_a_file_that_is_none(self, tmp_path):
        (tmp_path / "other.json").write_text('{"a": 1}')
        for name in ("other.json", "missing.json"):
            with pytest.raises(mmmask.MmmaskError, match=rf"tokenizer .*{name} cannot be read .* tokenizer.json"):
                mmmask.build_model(experiment(tokenizer=str(tmp_path / name)))

    def test_without_the_library_the_extra_is_named(self, monkeypatch, path):
        from mmmask_text.decoding import open_vocabulary

        open_vocabulary.cache_clear()
        monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
        with pytest.raises(mmmask.MmmaskError, match=r"pip install 'mmmask\[text\]'"):
            text(tokenizer=path).spec  # noqa: B018
        assert text().spec.vocab_size == 256
        open_vocabulary.cache_clear()


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.tensor([[[3, 256]]]), r"ids 3 to 256 do not fit a vocab_size of 256 \(0 to 255\)"),
        (torch.tensor([[[-1, 7]]]), r"ids -1 to 7 do not fit"),
        (torch.zeros(1, 1, 4), "ids must be integers, not torch.float32"),
    ],
)
def test_ids_that_the_vocabulary_does_not_have_are_refused(samples, message):
    from mmmask.model.tokenizing import tokenize

    with pytest.raises(mmmask.MmmaskError, match=f"streams.text: {message}"):
        tokenize({"text": text(length=8)}, "text", samples)
