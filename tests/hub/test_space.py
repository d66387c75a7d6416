"""A demo Space: what is written, what it answers, and its page in a browser."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, BertModel, TimmWrapperConfig, TimmWrapperModel

from xmodal_hf import AudioTextDualEncoder, ImageTextDualEncoder
from xmodal_hf.evaluation.embed import DualEncoderEmbedder
from xmodal_hf.features import FeatureError
from xmodal_hf.hub.arguments import CardArguments, PublishArguments, SpaceArguments, check_publishing
from xmodal_hf.hub.model_card import CardSources, render_card
from xmodal_hf.hub.remote_code import write_remote_code
from xmodal_hf.hub.space import stage_space
from xmodal_hf.hub.staging import stage_checkpoint
from xmodal_hf.options import parse_arguments
from xmodal_hf.training.arguments import PairArguments
from xmodal_hf.training.feature_arguments import FeatureArguments
from xmodal_hf.training.feature_extraction import run_extraction

SCRIPT = Path(__file__).parents[2] / "docs" / "screenshot_space.py"
NUM_ITEMS = 15


PUBLISH = Path(__file__).parents[2] / "training_scripts" / "publish_model.py"


def load_module(path: Path) -> ModuleType:
    """Import a file as a module of its own name."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Captioned pictures of random colours; the first is large, the last has an alpha channel."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows = []
    for number in range(NUM_ITEMS):
        colour = (*generator.integers(0, 256, 3).tolist(), 255)
        size = (1000, 600) if number == 0 else (20, 24)
        Image.new(
            "RGBA" if number == NUM_ITEMS - 1 else "RGB", size, colour[: 4 if number == NUM_ITEMS - 1 else 3]
        ).save(folder / f"{number}.png")
        rows.append({"file": f"{number}.png", "captions": [f"colour {number}", "another name"]})
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Captioned tones of half a second at 8 kHz."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    rows = []
    for number in range(NUM_ITEMS):
        soundfile.write(folder / f"{number}.wav", 0.5 * np.sin(np.arange(4000) * (number + 1) / 20), 8000)
        rows.append({"file": f"{number}.wav", "caption": f"tone {number}"})
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def image_space(image_text_folder: Path, pictures: Path) -> Path:
    """A Space in the folder of an image-text model that could be published."""
    write_remote_code(image_text_folder)
    arguments = SpaceArguments(gallery=str(pictures), gallery_size=NUM_ITEMS)
    return stage_space(image_text_folder, image_text_folder / "space", "..", arguments)


@pytest.fixture
def audio_space(audio_text_folder: Path, sounds: Path) -> Path:
    """A Space in the folder of an audio-text model that could be published."""
    write_remote_code(audio_text_folder)
    arguments = SpaceArguments(gallery=str(sounds), gallery_size=NUM_ITEMS)
    return stage_space(audio_text_folder, audio_text_folder / "space", "..", arguments)


def demo_of(space: Path) -> Any:
    """Return what the Space computes with."""
    return load_module(space / "search.py").Demo(space)


def test_what_is_written(image_space: Path, image_text_model: ImageTextDualEncoder) -> None:
    names = {
        "README.md",
        "app.py",
        "search.py",
        "requirements.txt",
        "space.json",
        "gallery.json",
        "gallery.safetensors",
        *("errors.py", "formats.py", "local_files.py", "pictures.py"),  # that decode images
    }
    assert {path.name for path in image_space.iterdir()} == names | {"gallery"}
    entries = json.loads((image_space / "gallery.json").read_text(encoding="utf-8"))
    assert [entry["caption"] for entry in entries] == [f"colour {number}" for number in range(NUM_ITEMS)]
    assert sorted(path.name for path in (image_space / "gallery").iterdir()) == [
        f"{n:04}.webp" for n in range(NUM_ITEMS)
    ]
    with Image.open(image_space / entries[0]["file"]) as large:
        assert max(large.size) == 480
    embeds = load_file(image_space / "gallery.safetensors")["embeds"]
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(NUM_ITEMS))
    assert embeds.shape == (NUM_ITEMS, image_text_model.config.projection_dim)


def test_a_gallery_comes_from_its_feature_store(
    image_text_folder: Path, image_space: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = FeatureArguments(model=str(image_text_folder), output_dir=str(tmp_path / "store"))
    run_extraction(features, PairArguments(dataset=[str(pictures)]))
    monkeypatch.setattr(DualEncoderEmbedder, "encode_image", lambda *_: pytest.fail("a picture was embedded again"))
    arguments = SpaceArguments(gallery=str(pictures), gallery_size=NUM_ITEMS, gallery_features=str(tmp_path / "store"))
    space = stage_space(image_text_folder, tmp_path / "space", "user/model", arguments)
    embeds, expected = (load_file(folder / "gallery.safetensors")["embeds"] for folder in (space, image_space))
    # But for half precision, and the picture that training decodes at a reduced scale.
    assert torch.nn.functional.cosine_similarity(embeds, expected).min() > 0.99 and not torch.equal(embeds, expected)
    other = SpaceArguments(gallery="openmoji", gallery_size=2, gallery_features=str(tmp_path / "store"))
    with pytest.raises(FeatureError, match="has no item"):
        stage_space(image_text_folder, tmp_path / "other", "user/model", other)
    assert not list((tmp_path / "other").glob("*"))


def test_the_card_of_the_space(image_text_folder: Path, pictures: Path, tmp_path: Path) -> None:
    arguments = SpaceArguments(gallery=str(pictures), gallery_size=3, space_title="Look: colours", space_license="mit")
    folder = stage_space(image_text_folder, tmp_path / "space", "someone/colours", arguments, revision="abc")
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert (metadata["sdk"], metadata["app_file"], metadata["title"]) == ("gradio", "app.py", "Look: colours")
    assert (metadata["models"], metadata["license"]) == (["someone/colours"], "mit")
    assert "[someone/colours](https://huggingface.co/someone/colours) finds what you describe among 3 images" in text
    assert str(tmp_path) not in front + text
    settings = json.loads((folder / "space.json").read_text(encoding="utf-8"))
    assert (settings["model"], settings["revision"]) == ("someone/colours", "abc")
    assert settings["queries"] == ["colour 0", "colour 1", "colour 2"]
    requirements = (folder / "requirements.txt").read_text(encoding="utf-8")
    assert "torchvision" in requirements and "torchaudio" not in requirements and "xmodal_hf" not in requirements
    assert "timm" not in requirements


def test_a_space_installs_the_packages_of_its_towers(pictures: Path, tmp_path: Path, text_config: Callable) -> None:
    """A tower in timm needs timm, which transformers does not install."""
    pytest.importorskip("timm")
    tower = TimmWrapperModel(TimmWrapperConfig(architecture="test_efficientnet"))
    model = ImageTextDualEncoder.from_text_image_pretrained(BertModel(text_config()), tower, projection_dim=8)
    model.save_pretrained(tmp_path / "model")
    arguments = SpaceArguments(gallery=str(pictures), gallery_size=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xmodal_hf.hub.space._write_gallery", lambda *_: None)
        space = stage_space(tmp_path / "model", tmp_path / "space", "someone/colours", arguments)
    assert "timm>=1" in (space / "requirements.txt").read_text(encoding="utf-8").splitlines()
    with_timm = render_card(CardSources.find(tmp_path / "model", CardArguments()), "someone/colours", CardArguments())
    assert "A tower of the model runs in `timm`, which has to be installed" in with_timm


def test_search_by_text_and_by_image(image_space: Path, image_text_model: ImageTextDualEncoder) -> None:
    demo = demo_of(image_space)
    embeds = load_file(image_space / "gallery.safetensors")["embeds"]
    processor = AutoProcessor.from_pretrained(image_space.parent)
    with torch.no_grad():
        query = image_text_model(**processor(text=["the dog barks"], return_tensors="pt")).text_embeds[0]
    order = (embeds @ query).argsort(descending=True)
    hits = demo.search_text(" the dog barks ", 4)
    assert [hit.caption for hit in hits] == [f"colour {number}" for number in order[:4].tolist()]
    assert hits[0].cosine == pytest.approx((embeds @ query).max().item(), abs=1e-5)
    assert all(hit.path.is_file() for hit in hits)
    assert len(demo.search_text("rain", 100)) == NUM_ITEMS

    best = demo.search_item(Image.open(image_space.parents[1] / "pictures" / "7.png"), 1)[0]
    assert best.caption == "colour 7" and best.cosine == pytest.approx(1, abs=1e-5)
    assert load_module(image_space / "search.py").titles([best]) == ["1.00 colour 7"]


def test_zero_shot(image_space: Path, image_text_model: ImageTextDualEncoder) -> None:
    demo = demo_of(image_space)
    image = Image.open(image_space / "gallery" / "0003.webp")
    scores = demo.classify(image, "rain, the cat sleeps\n\nrain\n two small birds ", "{} at night")
    assert list(scores) == ["rain", "the cat sleeps", "two small birds"]
    assert sum(scores.values()) == pytest.approx(1)
    texts = [f"{label} at night" for label in scores]
    inputs = demo.processor(text=texts, images=[image], return_tensors="pt")
    with torch.no_grad():
        expected = image_text_model(**inputs).logits_per_image[0].softmax(dim=0)
    torch.testing.assert_close(torch.tensor(list(scores.values())), expected)


def test_sounds(audio_space: Path, audio_text_model: AudioTextDualEncoder) -> None:
    demo = demo_of(audio_space)
    entries = json.loads((audio_space / "gallery.json").read_text(encoding="utf-8"))
    file = audio_space / entries[4]["file"]
    assert (soundfile.info(file).samplerate, soundfile.info(file).frames) == (8000, 4000)
    best = demo.search_item(str(file), 2)
    assert best[0].caption == "tone 4" and best[0].cosine == pytest.approx(1, abs=1e-3)
    assert len(demo.search_text("rain", 3)) == 3
    assert set(demo.classify(str(file), "rain\na piano", "This is a sound of {}.")) == {"rain", "a piano"}
    requirements = (audio_space / "requirements.txt").read_text(encoding="utf-8")
    assert "torchaudio" in requirements and "soundfile" in requirements


def test_recordings_become_mono_at_the_models_rate(audio_space: Path, tmp_path: Path) -> None:
    read_clip = load_module(audio_space / "search.py").read_clip
    frames = np.tile([[0.5, -0.5], [0.5, 0.5], [0, 1]], (100, 1))  # fewer are no sound, as in training
    soundfile.write(tmp_path / "stereo.wav", frames, 8000, subtype="FLOAT")
    clip = read_clip(str(tmp_path / "stereo.wav"), 8000)
    assert clip.dtype == np.float32
    np.testing.assert_allclose(clip, [0, 0.5, 0.5] * 100, atol=1e-6)
    tone = 0.5 * np.sin(np.arange(48000) / 50)
    soundfile.write(tmp_path / "tone.wav", tone, 48000, subtype="FLOAT")
    halved = read_clip(str(tmp_path / "tone.wav"), 24000)
    np.testing.assert_allclose(halved[100:-100], tone[::2][100:-100], atol=1e-2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda demo, _: demo.search_text("  ", 3), "Write what to look for"),
        (lambda demo, _: demo.search_item(None, 3), "Choose an image first"),
        (lambda demo, _: demo.classify(None, "a\nb", "{}"), "Choose an image first"),
        (lambda demo, image: demo.classify(image, "one,  one", "{}"), "two labels or more"),
        (lambda demo, image: demo.classify(image, "a\nb", "no place"), r"needs \{\} where the label goes"),
    ],
)
def test_visitors_are_told_what_is_wrong(call: Callable, message: str, image_space: Path) -> None:
    with pytest.raises(ValueError, match=message):
        call(demo_of(image_space), Image.new("RGB", (16, 16)))


def test_a_model_that_is_not_published_is_tried(
    image_text_folder: Path, pictures: Path, tmp_path: Path, image_text_model: ImageTextDualEncoder
) -> None:
    """As `python app.py --model FOLDER` does with a Space that names a repository of the Hub."""
    arguments = SpaceArguments(gallery=str(pictures), gallery_size=NUM_ITEMS)
    space = stage_space(image_text_folder, tmp_path / "space", "someone/colours", arguments, revision="abc")
    search = load_module(space / "search.py")
    demo = search.Demo(space, str(image_text_folder))
    assert len(demo.search_text("rain", 5)) == 5
    assert "python app.py --model FOLDER" in (space / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_spaces_run_without_this_package(
    image_text_folder: Path, pictures: Path, tmp_path: Path, run_with_only: Callable
) -> None:
    """As on the Hub, a published model and the Space beside it; and what `save_pretrained` wrote with a Space in it."""
    published = stage_checkpoint(image_text_folder, tmp_path / "published", "someone/colours", CardArguments())
    arguments = SpaceArguments(gallery=str(pictures), gallery_size=NUM_ITEMS)
    spaces = [
        stage_space(published, tmp_path / "space", "../published", arguments),
        stage_space(image_text_folder, image_text_folder / "space", "..", arguments),
    ]
    code = f"""
import importlib, sys
from pathlib import Path
for space in {list(map(str, spaces))!r}:
    sys.path.insert(0, space)
    search = importlib.import_module("search")
    assert Path(search.__file__).parent == Path(space)
    print(search.titles(search.Demo(Path(space)).search_text("rain", 5)))
    del sys.path[0], sys.modules["search"]
"""
    printed = run_with_only(["transformers", "torch", "torchvision", "safetensors", "pillow"], code)
    expected = [load_module(space / "search.py").titles(demo_of(space).search_text("rain", 5)) for space in spaces]
    assert printed.splitlines() == list(map(str, expected))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[[Path], Any]]:
    """Run `python app.py` of a Space, without a browser; gives a client of its answers."""
    pytest.importorskip("gradio", reason="gradio is not installed (make test-peers)")
    from gradio_client import Client

    started = []

    def serve(space: Path) -> Any:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        output = (tmp_path / "app.log").open("w")
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=space, env=os.environ | settings, stdout=output, stderr=output
        )
        started.append(process)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
                assert page.status == 200
                return Client(f"http://127.0.0.1:{port}/", verbose=False)
            time.sleep(0.2)
        pytest.fail((tmp_path / "app.log").read_text())

    yield serve
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_space_of_images_is_served(image_text_folder: Path, pictures: Path, served: Callable, tmp_path: Path) -> None:
    """`python app.py` beside what a training wrote: the answers are those of the model, and errors are in words."""
    from gradio_client import handle_file

    arguments = SpaceArguments(gallery=str(pictures), gallery_size=NUM_ITEMS)
    space = stage_space(image_text_folder, image_text_folder / "space", "..", arguments)
    client, demo = served(space), demo_of(space)
    names = load_module(space / "search.py").titles
    answers = client.predict("rain", api_name="/search_text")
    assert [answer["caption"] for answer in answers] == names(demo.search_text("rain", 12))
    Image.new("CMYK", (30, 20), (200, 10, 0, 0)).save(tmp_path / "printed.jpg")
    answers = client.predict(handle_file(tmp_path / "printed.jpg"), api_name="/search_item")
    assert [answer["caption"] for answer in answers] == names(demo.search_item(str(tmp_path / "printed.jpg"), 12))
    picture = handle_file(space / "gallery" / "0003.webp")
    scores = client.predict(picture, "rain\nthe cat sleeps", "{}", api_name="/classify")
    expected = demo.classify(str(space / "gallery" / "0003.webp"), "rain\nthe cat sleeps", "{}")
    assert scores["label"] == max(expected, key=expected.get)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for file, message in (
        (None, "Choose an image first"),
        (handle_file(tmp_path / "broken.png"), "not an image"),
    ):
        with pytest.raises(Exception, match=message):
            client.predict(file, "rain\nthe cat sleeps", "{}", api_name="/classify")


@pytest.mark.slow
def test_a_space_of_sounds_is_served(audio_text_folder: Path, sounds: Path, served: Callable, tmp_path: Path) -> None:
    from gradio_client import handle_file

    arguments = SpaceArguments(gallery=str(sounds), gallery_size=NUM_ITEMS)
    client = served(stage_space(audio_text_folder, audio_text_folder / "space", "..", arguments))
    demo = demo_of(audio_text_folder / "space")
    clip = sounds.parent / "3.wav"
    players = client.predict(handle_file(clip), api_name="/search_item")
    labels = [player["label"] for player in players if isinstance(player, dict) and player.get("label")]
    assert labels == load_module(audio_text_folder / "space" / "search.py").titles(demo.search_item(str(clip), 6))
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    with pytest.raises(Exception, match="corrupt audio"):
        client.predict(handle_file(tmp_path / "broken.wav"), api_name="/search_item")


def test_what_has_no_demo(
    sentence_encoder_folder: Path, image_text_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="needs a model of images or sounds"):
        stage_space(sentence_encoder_folder, tmp_path / "space", "..", SpaceArguments())
    with pytest.raises(ValueError, match="is not empty"):
        stage_space(image_text_folder, pictures.parent, "..", SpaceArguments(gallery=str(pictures)))
    assert pictures.exists()
    with pytest.raises(FileNotFoundError):
        stage_space(image_text_folder, tmp_path / "space", "..", SpaceArguments(gallery=str(tmp_path / "no.csv")))
    assert not (tmp_path / "space").exists()
    with pytest.raises(ValueError, match="--gallery_size must be at least 1"):
        SpaceArguments(gallery_size=0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--checkpoint", "x", "--space", "demo"], "--space must be user/name, got 'demo'"),
        (["--checkpoint", "x", "--gallery", "y"], "--gallery is of a demo Space: pass --space user/name, or drop it"),
        (["--checkpoint", "x", "--queries", "a", "b"], "--queries is of a demo Space"),
        (["--metric", "m", "--license", "mit"], "--license is of the card of a model, and a metric has its own"),
    ],
)
def test_options_without_effect_are_refused(args: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    classes = (PublishArguments, CardArguments, SpaceArguments)
    with pytest.raises(SystemExit):
        parse_arguments(classes, "", ["--repo_id", "u/m", *args], check_publishing)
    assert message in capsys.readouterr().err
    assert parse_arguments(classes, "", ["--repo_id", "u/m", *args[:2]], check_publishing)[0].repo_id == "u/m"


@pytest.fixture
def browse() -> Iterator[ModuleType]:
    """The script that opens a Space in a browser."""
    pytest.importorskip("gradio", reason="the page is Gradio's")
    pytest.importorskip("playwright", reason="playwright drives the browser")
    if shutil.which("chromium") is None:
        # A browser is no Python package: neither the installation nor CI can bring one.
        pytest.skip("chromium is not installed")
    yield load_module(SCRIPT)


def test_the_page_of_images(browse: ModuleType, image_space: Path, tmp_path: Path) -> None:
    app = browse.load_app(image_space)
    demo = demo_of(image_space)
    with browse.serving(app, image_space) as url, browse.browser_page(url) as page:
        for query in ("the dog barks", "two small birds"):
            browse.search_by_text(page, query, browse.expected_answers(app, image_space, query))
        browse.save_picture(page, tmp_path / "page.png")
        page.get_by_text("colour 2", exact=True).click()  # an example
        browse.wait_for_captions(page, browse.expected_answers(app, image_space, "colour 2"))

        page.get_by_role("tab", name="Search by image").click()
        page.locator("input[type=file]").first.set_input_files(image_space / "gallery" / "0007.webp")
        hits = demo.search_item(Image.open(image_space / "gallery" / "0007.webp"), 1)
        browse.wait_for_captions(page, app.titles(hits))

        page.get_by_role("tab", name="Zero-shot").click()
        page.get_by_role("button", name="Classify").click()
        page.get_by_text("Choose an image first.").wait_for()
        page.locator("input[type=file]").last.set_input_files(image_space / "gallery" / "0003.webp")
        page.get_by_label("Labels, one per line").fill("rain\nthe cat sleeps")
        page.wait_for_timeout(500)
        page.get_by_role("button", name="Classify").click()
        page.get_by_test_id("label-output-value").wait_for()
        scores = demo.classify(Image.open(image_space / "gallery" / "0003.webp"), "rain\nthe cat sleeps", "{}")
        assert page.get_by_test_id("label-output-value").inner_text() == max(scores, key=scores.get)
    assert Image.open(tmp_path / "page.png").size == (browse.WIDTH, browse.HEIGHT)


@pytest.mark.parametrize(("modality", "name"), [("image", "image"), ("audio", "audio")])
def test_the_browser_knows_the_components(image_space: Path, modality: str, name: str) -> None:
    """Gradio's page has a component for each of its own classes, and none for a class that only the app has."""
    pytest.importorskip("gradio", reason="the page is Gradio's")
    app = load_module(SCRIPT).load_app(image_space)
    assert app.ITEM_COMPONENTS[modality]("Yours").get_block_name() == name


BOXES = """
names => names.map(name => [...document.querySelectorAll(`.answers ${name}`)].filter(element => element.offsetParent)
    .map(element => element.getBoundingClientRect()).map(box => [box.left, box.top, box.right, box.bottom]))
"""


@pytest.mark.parametrize("width", [1100, 390])
def test_captions_stand_below_their_images(browse: ModuleType, image_space: Path, width: int) -> None:
    """Those of several lines too, on a wide page and on a phone; nothing reaches beyond the page."""
    app = browse.load_app(image_space)
    with browse.serving(app, image_space) as url, browse.browser_page(url, width) as page:
        query = demo_of(image_space).settings["queries"][0]
        browse.wait_for_captions(page, browse.expected_answers(app, image_space, query))
        images, captions = page.evaluate(BOXES, ["img", ".caption-label"])
    assert len(images) == len(captions) > 3
    for (left, top, right, bottom), (_, caption_top, caption_right, _) in zip(images, captions, strict=True):
        assert caption_top >= bottom - 1 and bottom - top > 60 and 0 <= left < right <= width >= caption_right


def test_the_page_of_sounds(browse: ModuleType, audio_space: Path) -> None:
    app = browse.load_app(audio_space)
    demo = demo_of(audio_space)
    with browse.serving(app, audio_space) as url, browse.browser_page(url) as page:
        first = app.titles(demo.search_text("tone 0", 1))[0]
        page.get_by_text(first, exact=True).first.wait_for()
        page.get_by_role("tab", name="Search by sound").click()
        page.locator("input[type=file]").first.set_input_files(audio_space / "gallery" / "0004.flac")
        page.get_by_text("1.00 tone 4", exact=True).wait_for()


def test_the_script_publishes_a_space_beside_the_model(
    hub: Any, run_script: Callable, image_text_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    options = ["--repo_id", "someone/model", "--checkpoint", str(image_text_folder), "--space", "someone/demo"]
    broken = run_script(PUBLISH, *options, "--gallery", str(tmp_path / "missing.jsonl"))
    assert broken.returncode == 2 and "missing.jsonl" in broken.stderr
    assert hub.repos == {}  # nothing is sent before all is written
    done = run_script(PUBLISH, *options, "--gallery", str(pictures), "--gallery_split", "train")
    assert done.returncode == 0, done.stderr
    model, space = hub.repos["model", "someone/model"], hub.repos["space", "someone/demo"]
    settings = json.loads(space.find("main").files["space.json"].content)
    assert (settings["model"], settings["revision"]) == ("someone/model", model.find("main").sha)
    assert "app.py" in space.find("main").files


@pytest.mark.parametrize("option", [["--text_only"], []], ids=["text only", "adapter"])
def test_no_space_of_what_has_no_items(
    option: list[str], hub: Any, run_script: Callable, image_text_folder: Path
) -> None:
    if not option:
        (image_text_folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/base"}')
        (image_text_folder / "config.json").unlink()
    options = ["--repo_id", "someone/model", "--checkpoint", str(image_text_folder), "--space", "someone/demo"]
    done = run_script(PUBLISH, *options, *option)
    assert done.returncode == 2 and done.stderr.startswith("publish_model.py: error: ")
    assert hub.repos == {}


def test_a_visitor_reads_the_name_of_a_file_and_not_its_folder(image_space: Path, tmp_path: Path) -> None:
    search = load_module(image_space / "search.py")
    broken = tmp_path / "gradio" / "0a1b" / "broken.png"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="not an image") as error:
        demo_of(image_space).search_item(str(broken), 3)
    assert str(broken.parent) in str(error.value)  # as in a log
    said = search.without_folders(str(error.value), [None, 5, "a red bicycle", str(broken)])
    assert str(tmp_path) not in said and "broken.png: none of" in said
