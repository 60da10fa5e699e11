"""`mmmask extract`: features of real files, by file, however they are asked for."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mmmask
from mmmask.builtins.encoders.swin import SwinEncoder
from mmmask.builtins.encoders.vit import ViTEncoder
from mmmask.cli import progress
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import PLAIN, SourceFile
from mmmask.interop import classification, model_settings
from mmmask.model.build import build_model

WIDTH = 24
SMALL = (
    f"model.encoder.width={WIDTH}", "model.encoder.depth=1", "model.encoder.num_heads=2", "model.decoder.width=16",
    "model.decoder.depth=1", "model.decoder.num_heads=2", "model.encoder.prefix_tokens=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return mmmask.build_model(mmmask.load_experiment("quickstart", SMALL)).eval()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model.safetensors"
    mmmask.interop.save(model, path)
    return path


def saved_classifier(folder, encoder, **settings):
    modalities = {"images": {"name": "image", "size": 32, "patch_size": [8, 8]}}
    data = classification(encoder, modalities, 5, **settings)
    classifier = build_model(*model_settings(data, "")).eval()
    mmmask.interop.save(classifier, folder / "tuned.safetensors")
    return classifier, folder / "tuned.safetensors"


@pytest.fixture
def tuned(tmp_path):
    return saved_classifier(
        tmp_path, {"name": "vit", "width": WIDTH, "depth": 1, "num_heads": 2}, pool="mean", norm_epsilon=1e-6
    )


def samples(model, stream, paths):
    preparation = model.modalities[stream].preparation
    return torch.stack([preparation.prepare(preparation.decode(SourceFile(str(path)), PLAIN), PLAIN) for path in paths])


def paths_of(file):
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["paths"])


def test_features_of_folders_are_the_models(cli, model, checkpoint, corpus, tmp_path):
    output = tmp_path / "new" / "features.safetensors"
    done = cli("extract", checkpoint, corpus, "-o", output, "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    images, videos = (sorted((corpus / kind).rglob(f"*.{end}")) for kind, end in (("images", "jpg"), ("videos", "mp4")))
    found, paths = load_file(output), paths_of(output)
    assert set(found) == {"images", "videos"}
    assert paths["images"][: len(images)] == [str(path) for path in images]
    assert paths["videos"] == [str(path) for path in videos]
    assert done.out.splitlines() == [
        f"format mmmask: {len(model.state_dict())} keys loaded, 0 of the file's converted, 1 unused, 0 missing",
        f"images: {len(images)} x {WIDTH}",
        f"videos: {len(videos)} x {WIDTH}",
        f"written: {output}, features of {len(images) + len(videos)} samples",
    ]
    for stream, files in (("images", images), ("videos", videos)):
        with torch.inference_mode():
            expected = model.encode({stream: samples(model, stream, files[-2:])})[stream].values.mean(dim=1)
        torch.testing.assert_close(found[stream][-2:], expected)


def test_a_real_process(checkpoint, corpus, tmp_path):
    image = next((corpus / "images").rglob("*.jpg"))
    output = tmp_path / "features.npz"
    done = subprocess.run(
        [sys.executable, "-m", "mmmask", "extract", str(checkpoint), str(image), "-o", str(output), "--device", "cpu"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    with np.load(output) as arrays:
        assert arrays["images"].shape == (1, WIDTH)
        assert arrays["images.paths"].tolist() == [str(image)]


def test_batches_threads_and_repetitions_change_nothing(cli, checkpoint, corpus, tmp_path):
    for name, size in (("a", 1), ("b", 3), ("c", 100)):
        done = cli("extract", checkpoint, corpus, "-o", tmp_path / f"{name}.safetensors", "--batch-size", size)
        assert done.code == 0, done.err
    a, b, c = (load_file(tmp_path / f"{name}.safetensors") for name in "abc")
    for key in a:
        torch.testing.assert_close(a[key], b[key])
        torch.testing.assert_close(a[key], c[key])
    assert paths_of(tmp_path / "a.safetensors") == paths_of(tmp_path / "c.safetensors")


def test_all_tokens_the_prefix_and_the_mean(cli, model, checkpoint, corpus, tmp_path):
    folder = corpus / "images" / "held_out"
    pools = ("mean", "prefix", "none")
    for pool in pools:
        assert cli("extract", checkpoint, folder, "-o", tmp_path / f"{pool}.safetensors", "--pool", pool).code == 0
    mean, prefix, tokens = (
        load_file(tmp_path / f"{pool}.safetensors")["images"] for pool in ("mean", "prefix", "none")
    )
    latents = model.encode({"images": samples(model, "images", paths_of(tmp_path / "none.safetensors")["images"])})
    torch.testing.assert_close(tokens, latents["images"].values.detach())
    torch.testing.assert_close(prefix, latents["images"].prefix[:, 0].detach())
    torch.testing.assert_close(mean, tokens.mean(dim=1))


def test_npz_holds_what_safetensors_holds(cli, checkpoint, corpus, tmp_path):
    for ending in ("safetensors", "npz"):
        assert cli("extract", checkpoint, corpus, "--maps", "-o", tmp_path / f"f.{ending}").code == 0
    tensors, paths = load_file(tmp_path / "f.safetensors"), paths_of(tmp_path / "f.safetensors")
    with np.load(tmp_path / "f.npz") as arrays:
        assert set(arrays) == {*tensors, "images.paths", "videos.paths"}
        assert all(np.array_equal(arrays[name], tensor.numpy()) for name, tensor in tensors.items())
        assert {stream: arrays[f"{stream}.paths"].tolist() for stream in paths} == paths


def test_a_fine_tuned_model_gives_what_its_head_sees_and_logits(cli, tuned, corpus, tmp_path):
    classifier, path = tuned
    folder = corpus / "images" / "held_out"
    assert cli("extract", path, folder, "-o", tmp_path / "own.safetensors").code == 0
    assert cli("extract", path, folder, "-o", tmp_path / "mean.safetensors", "--pool", "mean").code == 0
    own, mean = load_file(tmp_path / "own.safetensors"), load_file(tmp_path / "mean.safetensors")
    batch = {"images": samples(classifier, "images", paths_of(tmp_path / "own.safetensors")["images"])}
    with torch.inference_mode():
        torch.testing.assert_close(own["images"], classifier.features(batch)["images"])
        torch.testing.assert_close(own["images.logits"], classifier.logits(batch)["images"])
        torch.testing.assert_close(mean["images"], classifier.encode(batch)["images"].values.mean(dim=1))
    torch.testing.assert_close(mean["images.logits"], own["images.logits"])
    assert not torch.allclose(mean["images"], own["images"])  # no norm on what is asked for by name


def test_maps_of_an_encoder_of_several_stages(cli, corpus, tmp_path):
    encoder = {"name": "swin", "width": 16, "depths": [1, 1], "num_heads": 2, "window": 4}
    classifier, path = saved_classifier(tmp_path, encoder)
    folder = corpus / "images" / "held_out"
    done = cli("extract", path, folder, "--maps", "-o", tmp_path / "maps.safetensors")
    assert done.code == 0, done.err
    found = load_file(tmp_path / "maps.safetensors")
    batch = {"images": samples(classifier, "images", paths_of(tmp_path / "maps.safetensors")["images"])}
    with torch.inference_mode():
        expected = classifier.feature_maps(batch)["images"]
    assert len(expected) == 2
    assert set(found) == {"images", "images.logits", "images.map0", "images.map1"}
    for number, layer in enumerate(expected):
        torch.testing.assert_close(found[f"images.map{number}"], layer)
    assert found["images.map0"].shape[2:] > found["images.map1"].shape[2:]


def test_maps_of_a_plain_encoder_are_its_latents_on_a_grid(cli, model, checkpoint, tuned, corpus, tmp_path):
    stream = {"images": "images/held_out", "videos": "videos/held_out"}
    for owner, path, streams in ((model, checkpoint, ["images", "videos"]), (*tuned, ["images"])):
        output = tmp_path / f"{len(streams)}.safetensors"
        done = cli("extract", path, *(corpus / stream[name] for name in streams), "--maps", "-o", output)
        assert done.code == 0, done.err
        found = load_file(output)
        for name in streams:
            with torch.inference_mode():
                expected = owner.feature_maps({name: samples(owner, name, paths_of(output)[name])})[name]
            assert [key for key in found if key.startswith(f"{name}.map")] == [f"{name}.map0"]
            torch.testing.assert_close(found[f"{name}.map0"], expected[0])


@pytest.mark.parametrize("options", [(), ("--pool", "mean"), ("--maps",), ("--pool", "none", "--maps")])
def test_a_batch_goes_through_the_encoder_once(cli, checkpoint, tuned, corpus, tmp_path, monkeypatch, options):
    files, calls = sorted((corpus / "images").rglob("*.jpg"))[:3], counted_forwards(monkeypatch, ViTEncoder)
    for number, path in enumerate((checkpoint, tuned[1])):
        calls.clear()
        output = tmp_path / f"{number}.safetensors"
        done = cli("extract", path, *files, *options, "--batch-size", 2, "-o", output)
        assert done.code == 0, done.err
        assert calls == [2, 1]


def test_an_encoder_with_maps_of_its_own_is_asked_for_them_once_more_at_most(cli, corpus, tmp_path, monkeypatch):
    _, path = saved_classifier(tmp_path, {"name": "swin", "width": 16, "depths": [1, 1], "num_heads": 2, "window": 4})
    image, calls = next((corpus / "images").rglob("*.jpg")), counted_forwards(monkeypatch, SwinEncoder)
    assert cli("extract", path, image, "--maps", "--pool", "mean", "-o", tmp_path / "maps.safetensors").code == 0
    assert calls == [1]  # and its feature_maps


def counted_forwards(monkeypatch, encoder):
    """Samples of every forward to come of such encoders."""
    calls, forward = [], encoder.forward

    def counting(self, inputs, *stages):
        calls.append(len(inputs[0].part.tokens.content))
        return forward(self, inputs, *stages)

    monkeypatch.setattr(encoder, "forward", counting)
    return calls


@pytest.mark.parametrize(("pool", "encoder"), [("prefix", {"prefix_tokens": 1}), ("first", {}), ("mean", {})])
def test_every_head_has_its_features(cli, corpus, tmp_path, pool, encoder):
    encoder = {"name": "vit", "width": WIDTH, "depth": 1, "num_heads": 2, **encoder}
    classifier, path = saved_classifier(tmp_path, encoder, pool=pool)
    output = tmp_path / "features.safetensors"
    assert cli("extract", path, corpus / "images" / "held_out", "-o", output).code == 0
    found, batch = load_file(output), {"images": samples(classifier, "images", paths_of(output)["images"])}
    with torch.inference_mode():
        torch.testing.assert_close(found["images"], classifier.features(batch)["images"])
        torch.testing.assert_close(found["images.logits"], classifier.logits(batch)["images"])


def test_bfloat16_products_are_close_and_written_in_float32(cli, checkpoint, corpus, tmp_path):
    folder = corpus / "images" / "held_out"
    for precision in ("fp32", "bf16"):
        output = tmp_path / f"{precision}.safetensors"
        assert cli("extract", checkpoint, folder, "-o", output, "--precision", precision).code == 0
    fine, coarse = (load_file(tmp_path / f"{name}.safetensors")["images"] for name in ("fp32", "bf16"))
    assert coarse.dtype == torch.float32
    assert not torch.equal(fine, coarse)
    torch.testing.assert_close(fine, coarse, atol=0.1, rtol=0.1)


def test_a_checkpoint_in_half_precision(cli, checkpoint, corpus, tmp_path):
    half = {
        key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in load_file(checkpoint).items()
    }
    save_file(half, tmp_path / "half.safetensors")
    output = tmp_path / "features.safetensors"
    done = cli("extract", tmp_path / "half.safetensors", corpus / "images" / "held_out", "-o", output)
    assert done.code == 0, done.err
    assert load_file(output)["images"].dtype == torch.float32


def test_a_runs_folder(cli, pixel_run, corpus, tmp_path):
    output = tmp_path / "features.safetensors"
    done = cli("extract", pixel_run, corpus / "images" / "held_out", "-o", output)
    assert done.code == 0, done.err
    trained = mmmask.load_run(pixel_run).model
    with torch.inference_mode():
        latents = trained.encode({"images": samples(trained, "images", paths_of(output)["images"])})
    torch.testing.assert_close(load_file(output)["images"], latents["images"].values.mean(dim=1))


@pytest.fixture
def pictures(corpus, tmp_path):
    """Three pictures, two of them damaged, a text, and what is masked."""
    folder = tmp_path / "pictures"
    (folder / "below" / ".masked").mkdir(parents=True)
    good = next((corpus / "images").rglob("*.jpg"))
    shutil.copy(good, folder / "below" / "good.JPG")
    shutil.copy(good, folder / "below" / ".masked" / "other.jpg")
    (folder / "a.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (folder / "b.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_files_that_cannot_be_decoded_are_named_and_skipped(cli, checkpoint, pictures, tmp_path):
    output = tmp_path / "features.safetensors"
    done = cli("extract", checkpoint, pictures, pictures / "below" / "good.JPG", "-o", output)
    assert done.code == 0
    first, second = done.err.splitlines()
    assert first.startswith(f"mmmask: skipped: {pictures}/a.jpg: ")
    assert second.startswith(f"mmmask: skipped: {pictures}/b.png: ")
    assert done.out.endswith(f"written: {output}, features of 1 samples, 2 skipped\n")
    assert paths_of(output) == {"images": [f"{pictures}/below/good.JPG"]}


def test_not_one_file_can_be_decoded(cli, checkpoint, pictures, tmp_path):
    output = tmp_path / "features.safetensors"
    done = cli("extract", checkpoint, pictures / "a.jpg", pictures / "b.png", "-o", output)
    assert done.code == 2
    assert (
        done.err.splitlines()[-1]
        == f"mmmask: not one of 2 samples could be decoded; the last: {pictures}/b.png: the file is empty"
    )
    assert not output.exists()


def test_samples_that_are_not_finite_are_skipped_as_in_training(signals):
    model = mmmask.build_model(experiment_from_data(signals.signal_data()))
    features = mmmask.extract(model, source={"name": "waves", "count": 5, "nan_at": 2}, stream="long", device="cpu")
    assert features.names == {"long": [f"sample {index}" for index in (0, 1, 3, 4)]}
    assert features.skipped == ("sample 2: holds NaN or infinite values: 128 of 128",)


def test_words_with_an_equals_sign_are_options_unless_they_are_files(
    cli, mistake, checkpoint, corpus, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(next((corpus / "images").rglob("*.jpg")), "size=3.jpg")
    assert cli("extract", checkpoint, "size=3.jpg", "-o", "f.safetensors").code == 0
    assert paths_of("f.safetensors") == {"images": ["size=3.jpg"]}
    message = mistake("extract", checkpoint, "size=3.jpg", "size=4", "-o", "g.safetensors")
    assert message.startswith("format mmmask: option size: unknown key.")
    assert mistake("extract", checkpoint, "size=4", "-o", "g.safetensors") == (
        "INPUT: name at least one file or folder, or give --source or --split; size=4 is an option, as no file is "
        "called so"
    )
    for missing in ("size=4.jpg", "day=1/cat.jpg", "size=/data/"):
        assert mistake("extract", checkpoint, missing, "-o", "g.safetensors") == f"{missing}: there is no such file"
    for value in ("1.5", "1.e6", "[1,2]", "token", "size=3.jpg"):  # the last is a file, for an option that takes one
        message = mistake("extract", checkpoint, "size=3.jpg", f"stats={value}", "-o", "g.safetensors")
        assert message.startswith("format mmmask: option stats: unknown key.")


def test_inputs_that_cannot_be(mistake, checkpoint, tuned, pictures, corpus, tmp_path):
    def refused(*arguments, model=checkpoint):
        return mistake("extract", model, *arguments, "-o", tmp_path / "features.npz")

    for name in ("none.jpg", f"{'long' * 99}.jpg"):
        assert refused(tmp_path / name) == f"{tmp_path}/{name}: there is no such file"
    message = refused(pictures / "notes.txt")
    assert message.startswith(f"{pictures}/notes.txt: no stream of the model takes .txt files (images: ")
    (tmp_path / "empty").mkdir()
    message = refused(tmp_path / "empty")
    assert message.startswith(f"{tmp_path}/empty holds no files that end in .jpg")
    assert message.endswith(": it is empty.")
    message = refused(corpus / "videos" / "train", model=tuned[1])
    assert ".mp4). Convert them, or choose the modality that decodes them." in message
    assert refused(corpus, "--stream", "sounds") == "no stream is named 'sounds'. Known: images, videos."


def test_a_mistake_leaves_no_folder(mistake, checkpoint, pictures, corpus, tmp_path):
    output = tmp_path / "a" / "b" / "features.npz"
    image = next((corpus / "images").rglob("*.jpg"))
    for model, path, options in (
        (checkpoint, tmp_path / "none.jpg", ()),
        (checkpoint, pictures / "notes.txt", ()),
        (checkpoint, pictures / "a.jpg", ()),
        (tmp_path / "none.safetensors", image, ()),
        (checkpoint, image, ("--device", "nonsense")),
        (checkpoint, image, ("--pool", "prefixes")),
    ):
        assert mistake("extract", model, path, "-o", output, *options)
        assert not (tmp_path / "a").exists()


def test_a_folder_that_is_closed_is_found_before_the_work(mistake, checkpoint, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    output = tmp_path / "new" / "features.npz"
    assert mistake("extract", checkpoint, corpus, "-o", output) == (
        f"{output}: cannot be written: {tmp_path} is closed to you"
    )


def test_inputs_are_looked_for_before_the_model(mistake, tmp_path):
    assert mistake("extract", "mae/vit_base/pretrain", tmp_path / "none.jpg", "-o", tmp_path / "f.npz") == (
        f"{tmp_path}/none.jpg: there is no such file"
    )


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_where_nothing_can_be_written_there_is_nothing(cli, mistake, checkpoint, corpus, tmp_path, monkeypatch, ending):
    image, output = next((corpus / "images").rglob("*.jpg")), tmp_path / "new" / f"features.{ending}"

    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    monkeypatch.setattr(np.lib.format, "write_array", full)
    message = mistake("extract", checkpoint, image, "-o", output)
    assert message.startswith(f"{output}: cannot be written: No space left on device; ")
    assert message.endswith(" MB are free")
    assert list(output.parent.iterdir()) == []


def test_a_named_stream_takes_its_own_files_of_a_folder(cli, checkpoint, corpus, tmp_path):
    output = tmp_path / "features.safetensors"
    assert cli("extract", checkpoint, corpus, "--stream", "videos", "-o", output).code == 0
    assert set(load_file(output)) == {"videos"}


def test_options_that_cannot_be(cli, mistake, checkpoint, tuned, corpus, tmp_path):
    image = next((corpus / "images").rglob("*.jpg"))

    def refused(*options, output="features.npz", model=checkpoint):
        return mistake("extract", model, image, "-o", tmp_path / output, *options)

    assert refused("--pool", "max") == "no pool is named 'max'. Known: attentive, first, mean, none, prefix."
    assert refused("--pool", "prefix", model=tuned[1]) == (
        "pool: there is no prefix token: set encoder.prefix_tokens, or pool=mean"
    )
    assert refused("--precision", "fp8") == "no precision is named 'fp8'. Known: bf16, fp16, fp32."
    for device in ("meta", "tpu", "nonsense", "mkldnn", "hpu", "vulkan", "xla:0", ""):
        message = refused("--device", device)
        assert message.startswith(f"--device {device}: expected one of this machine's: cpu")
        assert len(message) < 120
    assert refused("--device", "cpu:x").startswith("--device cpu:x: ")
    assert refused(output="f.pt").endswith("f.pt: let the name end in .safetensors or .npz")
    (tmp_path / "mine.npz").write_bytes(b"mine")
    assert refused(output="mine.npz").endswith("mine.npz: there is a file already; nothing is overwritten")
    assert refused(output="mine.npz/new/f.npz") == (
        f"{tmp_path}/mine.npz/new/f.npz: cannot be written: {tmp_path}/mine.npz is no folder"
    )
    assert refused(output=f"{'long' * 99}.npz").endswith("long.npz: cannot be written: File name too long")
    assert refused(model="mae/vit_base/pretrian").endswith("Did you mean 'mae/vit_base/pretrain'?")
    assert cli("extract", checkpoint, image, "-o", tmp_path / "f.npz", "--batch-size", "0").code == 2


def test_without_a_terminal_there_is_a_line_now_and_then(capsys, monkeypatch):
    clock = iter([0, 4, 11, 12, 30])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.SampleProgress() as samples:
        for done in (10, 20, 30, 40):
            samples.update(done, 40)
    assert capsys.readouterr().err == "20/40 samples  0:11 left\n"


def test_on_a_terminal_there_is_a_bar(capsys, monkeypatch):
    console = progress.Console
    monkeypatch.setattr(progress, "Console", lambda **settings: console(**settings, force_terminal=True, width=80))
    with progress.SampleProgress() as samples:
        samples.update(0, 40)
        samples.update(40, 40, ["[a].jpg: no picture"])
    shown = capsys.readouterr().err
    assert "40/40" in shown
    assert "mmmask: skipped: [a].jpg: no picture" in shown


# from a source, and from a run's own samples


def test_a_source_instead_of_files(cli, checkpoint, corpus, tmp_path):
    folder = corpus / "images" / "train"
    for ending in ("safetensors", "npz"):
        done = cli(
            "extract", checkpoint, "--source", f"{{name: folder, path: {folder}}}", "--stream", "images",
            "-o", tmp_path / f"f.{ending}",
        )  # fmt: skip
        assert done.code == 0, done.err
    paths = sorted(str(path) for path in folder.rglob("*.jpg"))
    labels = [path.rsplit("/", 2)[1] for path in paths]
    with safe_open(tmp_path / "f.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["paths"]) == {"images": paths}
        assert json.loads(opened.metadata()["labels"]) == {"images": labels}
    with np.load(tmp_path / "f.npz") as arrays:
        assert arrays["images.labels"].tolist() == labels
    assert cli("extract", checkpoint, *paths, "-o", tmp_path / "files.safetensors").code == 0
    assert torch.equal(
        load_file(tmp_path / "f.safetensors")["images"], load_file(tmp_path / "files.safetensors")["images"]
    )


def test_the_samples_of_a_runs_own_experiment(cli, pixel_run, corpus, tmp_path):
    done = cli("extract", pixel_run, "--split", "source", "--stream", "images", "-o", tmp_path / "f.safetensors")
    assert done.code == 0, done.err
    assert paths_of(tmp_path / "f.safetensors") == {
        "images": sorted(str(path) for path in (corpus / "images" / "train").rglob("*.jpg"))
    }


def test_samples_that_cannot_be(mistake, checkpoint, pixel_run, corpus, tmp_path):
    def refused(*arguments, model=checkpoint):
        return mistake("extract", model, *arguments, "-o", tmp_path / "features.npz")

    source = f"{{name: folder, path: {corpus}/images}}"
    assert refused("--source", source) == "several streams could be meant (images, videos): name one with --stream"
    assert refused("--source", source, "--split", "source").startswith("inputs: give files, or a source, or a split ")
    assert refused("--source", source, corpus).startswith("inputs: give files, or a source, or a split ")
    images = ("--stream", "images")
    assert refused("--source", "foldr", *images).startswith(
        "source: no source is named 'foldr'. Did you mean 'folder'?"
    )
    assert refused("--source", "folder", *images) == "source.path: Field required"
    assert refused("--source", "{name: folder", *images).startswith("override: source: '{name: folder' is not YAML: ")
    assert refused("--source", "{name: folder, path: nowhere}", *images).startswith("source folder: nowhere")
    assert refused("--split", "held_out") == (
        "--split held_out: only a run has samples of its own; give a run's folder, or a source"
    )
    assert refused("--split", "test", model=pixel_run) == "no split is named 'test'. Known: held_out, source."
    assert refused("--split", "held_out", "--stream", "images", model=pixel_run) == (
        "streams.images.held_out: the run's experiment has none"
    )


def test_an_ending_of_two_streams_asks_for_one(cli, mistake, corpus, tmp_path):
    overrides = [*SMALL, "streams.videos=null", "streams.images.source=null", "streams.images.held_out=null"]
    data = mmmask.load_experiment("quickstart", overrides).to_data()
    data["streams"]["others"] = data["streams"]["images"]
    both = mmmask.build_model(experiment_from_data(data))
    path, image = tmp_path / "both.safetensors", next((corpus / "images").rglob("*.jpg"))
    mmmask.interop.save(both, path)
    assert mistake("extract", path, image, "-o", tmp_path / "f.npz") == (
        f"{image}: the streams images, others all take .jpg files; name one with --stream"
    )
    assert cli("extract", path, image, "--stream", "others", "-o", tmp_path / "f.npz").code == 0


def test_from_python(model, corpus, tmp_path):
    files, seen = sorted((corpus / "images" / "held_out").rglob("*.jpg")), []
    features = mmmask.extract(
        model, [corpus / "images" / "held_out"], device="cpu", pool="none",
        progress=lambda done, total, skipped: seen.append((done, total)),
    )  # fmt: skip
    assert features.names == {"images": [str(path) for path in files]}
    assert features.tensors["images"].shape[:2] == (len(files), 49)
    assert seen[0] == (0, len(files))
    assert seen[-1] == (len(files), len(files))
    assert (features.report, features.skipped) == (None, ())
    features.save(tmp_path / "f.npz")
    with pytest.raises(mmmask.MmmaskError, match="there is a file already"):
        features.save(tmp_path / "f.npz")
