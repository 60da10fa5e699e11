"""Published checkpoints: their names, licences and addresses, and fetching one, here from this machine."""

import http.server
import re
import threading
from functools import partial

import pytest
import torch

import mmmask
from mmmask.components import components
from mmmask.interop.published import published

FORMATS = {
    "convmae", "huggingface_videomae", "huggingface_vitmae", "mae", "mae_st", "omnimae", "simmim", "videomae",
    "videomaev2",
}  # fmt: skip
SMALL = (
    "model.encoder.width=16", "model.encoder.depth=1", "model.encoder.num_heads=2", "model.decoder.width=16",
    "model.decoder.depth=1", "model.decoder.num_heads=2",
)  # fmt: skip
OURS = [part for part in published().values() if part.format in FORMATS]


def test_every_system_is_there_and_its_format_registered():
    assert {part.format for part in OURS} == FORMATS
    assert {entry.name for entry in components().registry("format")} >= FORMATS


def test_names_are_sorted_and_well_formed():
    names = [part.name for part in OURS]
    assert names == sorted(set(names))
    for part in OURS:
        system, size, stage = part.name.split("/")
        assert system == part.format
        assert re.fullmatch(r"(vit|swin|conv_vit)_(small|base|large|huge|giant)", size)
        assert re.fullmatch(r"(pretrain|finetune|distill|visualize)(_[a-z0-9]+)*", stage)


@pytest.mark.parametrize("part", OURS, ids=lambda part: part.name)
def test_licence_description_and_address(part):
    assert part.licence.strip()
    assert part.description.strip()
    assert re.fullmatch(r"https://[\w.-]+(/[\w.-]+)+", part.address)
    assert part.by_hand == ("drive.google.com" in part.address)
    config = components().get("format", part.format).Config
    config.model_validate({"name": part.format, **part.options})


def test_encoders_alone_load_without_being_told(monkeypatch, tmp_path):
    from mmmask.interop import load, save

    experiment = mmmask.load_experiment("mae/vit_base", ["model.encoder.size=tiny", "model.encoder.depth=1"])
    save(mmmask.build_model(experiment), tmp_path / "encoder.safetensors", "timm_vit")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    class Plugin:
        @mmmask.hookimpl
        def publish_checkpoints(self, publish):
            address = str(tmp_path / "encoder.safetensors")
            publish("test/alone/pretrain", address, "mae", "of a test", encoder_alone=True, options={"num_heads": 3})

    plugin = Plugin()
    components().manager.register(plugin)
    try:
        assert (
            load("test/alone/pretrain").encode({"images": torch.zeros(1, 3, 224, 224)})["images"].values.shape[2] == 192
        )
        assert published()["test/alone/pretrain"].encoder_alone
    finally:
        components().manager.unregister(plugin)


def test_addresses_are_of_one_file_each():
    assert len({part.address for part in OURS}) == len(OURS)


def test_encoders_alone_say_how_to_load_them():
    alone = {part.name for part in OURS if part.encoder_alone}
    assert alone == {f"mae/vit_{size}/pretrain" for size in ("base", "large", "huge")}


@pytest.mark.parametrize(
    ("name", "meant"),
    [("mae/vit_base/pretrian", "mae/vit_base/pretrain"), ("omnimae/vit_bas/pretrain", "omnimae/vit_base/pretrain")],
)
def test_a_name_nobody_has_suggests_the_closest(name, meant):
    with pytest.raises(
        mmmask.interop.InteropError, match=f"no checkpoint is published as that. Did you mean '{meant}'"
    ):
        mmmask.interop.load(name)


def test_what_only_people_can_download_says_where():
    part = published()["videomae/vit_base/pretrain_k400_1600e"]
    with pytest.raises(mmmask.interop.InteropError) as caught:
        mmmask.interop.load(part.name)
    for said in (part.name, part.licence, part.address, "format=videomae"):
        assert said in str(caught.value)


class CountingHandler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.fetched.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path):
    """A tiny checkpoint on a server of this machine, published as test/tiny/pretrain: (model, paths asked for)."""
    model = mmmask.build_model(mmmask.load_experiment("quickstart", SMALL))
    mmmask.interop.save(model, tmp_path / "served" / "tiny.safetensors")
    handler = partial(CountingHandler, directory=tmp_path / "served")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.fetched = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    class Plugin:
        @mmmask.hookimpl
        def publish_checkpoints(self, publish):
            address = f"http://127.0.0.1:{server.server_address[1]}"
            publish("test/tiny/pretrain", f"{address}/tiny.safetensors", "mmmask", "the licence of a test")
            publish("test/gone/pretrain", f"{address}/gone.safetensors", "mmmask", "the licence of a test")

    plugin = Plugin()
    components().manager.register(plugin)
    yield model, server.fetched
    components().manager.unregister(plugin)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # which licences were shown
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "downloads"))  # iopath's
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


def test_a_name_is_fetched_once_and_its_licence_shown_once(served, own_caches, capsys):
    model, fetched = served
    for _ in range(3):
        loaded = mmmask.interop.load("test/tiny/pretrain")
        assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in model.state_dict().items())
    assert fetched == ["/tiny.safetensors"]
    shown = capsys.readouterr().err
    assert shown.count("mmmask: the weights' licence is the licence of a test, not mmmask's\n") == 1
    assert shown.count("mmmask: test/tiny/pretrain: http://127.0.0.1:") == 1


def test_a_file_that_is_gone_is_one_line(served, own_caches):
    with pytest.raises(mmmask.interop.InteropError, match=r"gone\.safetensors: HTTP Error 404") as caught:
        mmmask.interop.load("test/gone/pretrain")
    assert "\n" not in str(caught.value)
    caught.value.__cause__.close()  # urllib's answer, which holds a socket
