"""Image towers that are random in evaluation are refused; timm's train, survive saving and keep their preprocessing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, PreTrainedTokenizerBase

from xmodal_hf import ImageTextDualEncoder, ImageTextProcessor
from xmodal_hf.evaluation import as_embedder
from xmodal_hf.models.conversion import from_transformers
from xmodal_hf.models.image_towers import examine_image_tower
from xmodal_hf.training.batches import image_side

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def vit_mae(**fields: object) -> transformers.ViTMAEModel:
    return transformers.ViTMAEModel(transformers.ViTMAEConfig(**TINY, image_size=32, patch_size=8, **fields))


class TestATowerThatIsRandomInEvaluation:
    @pytest.mark.parametrize("from_folder", [False, True])
    def test_is_refused_with_the_setting(self, from_folder, text_config, tmp_path):
        source = vit_mae()
        source.save_pretrained(tmp_path)
        bert = transformers.BertModel(text_config())
        with pytest.raises(ValueError, match=r"ViTMAEModel gives one image two different vectors.*mask_ratio=0.0"):
            ImageTextDualEncoder.from_text_image_pretrained(bert, str(tmp_path) if from_folder else source)

    def test_of_a_composite_is_refused(self, text_config):
        source = transformers.VisionTextDualEncoderModel(None, vit_mae(), transformers.BertModel(text_config()))
        with pytest.raises(ValueError, match=r"mask_ratio=0\.0"):
            from_transformers(source)

    def test_with_that_setting_is_taken(self, text_config, tmp_path):
        vit_mae().save_pretrained(tmp_path)
        source = transformers.ViTMAEModel.from_pretrained(tmp_path, mask_ratio=0.0)
        model = ImageTextDualEncoder.from_text_image_pretrained(transformers.BertModel(text_config()), source)
        model.eval().save_pretrained(tmp_path / "ours")
        loaded = ImageTextDualEncoder.from_pretrained(tmp_path / "ours")
        image = torch.randn(1, 3, 32, 32)
        expected = model(pixel_values=image).image_embeds
        torch.testing.assert_close(loaded(pixel_values=image).image_embeds, expected, atol=1e-6, rtol=0)
        before = torch.get_rng_state()
        examine_image_tower(source, "mean", "image_model")
        assert torch.equal(torch.get_rng_state(), before)

    def test_other_randomness_is_found_too(self, text_config, image_config):
        tower = transformers.ViTModel(image_config())
        tower.embeddings.register_forward_hook(lambda _, args, states: states + torch.randn_like(states))
        with pytest.raises(ValueError, match=r"two different vectors.*masks, drops or samples"):
            ImageTextDualEncoder.from_text_image_pretrained(transformers.BertModel(text_config()), tower)

    def test_modes_are_kept(self, text_config, image_config):
        tower = transformers.ViTModel(image_config()).train()
        ImageTextDualEncoder.from_text_image_pretrained(transformers.BertModel(text_config()), tower)
        assert tower.training


def test_a_width_that_the_config_does_not_name(text_config: Callable, reload: Callable) -> None:
    """EfficientNet's config has no hidden_size."""
    config = transformers.EfficientNetConfig(
        image_size=32, depthwise_padding=[], hidden_dim=128, width_coefficient=0.1, depth_coefficient=0.1
    )
    tower = transformers.EfficientNetModel(config)
    model = ImageTextDualEncoder.from_text_image_pretrained(transformers.BertModel(text_config()), tower).eval()
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        reload(model)(pixel_values=image).image_embeds, model(pixel_values=image).image_embeds, atol=0, rtol=0
    )


class TestTimm:
    """Checkpoints in timm's own format, through TimmWrapper: maps of both layouts, token states, wider heads."""

    @pytest.fixture
    def make_folder(self, tmp_path) -> Callable[[str], Path]:
        """Give `make_folder(architecture)`: a folder as timm writes it for the Hub."""
        timm = pytest.importorskip("timm", reason="towers of timm run in timm")
        from timm.models._hub import save_for_hf

        def make(architecture: str) -> Path:
            folder = tmp_path / architecture
            save_for_hf(timm.create_model(architecture, num_classes=7), folder, safe_serialization=True)
            config = json.loads((folder / "config.json").read_text())
            config.pop("model_args", None)  # published ones have none
            (folder / "config.json").write_text(json.dumps(config))
            return folder

        return make

    @pytest.mark.parametrize("pooling", [None, "mean"])
    @pytest.mark.parametrize("architecture", ["test_vit", "test_mambaout", "test_efficientnet", "test_resnet"])
    def test_trains_whole_and_survives_saving(
        self, architecture, pooling, make_folder, text_config, tokenizer: PreTrainedTokenizerBase, images, tmp_path
    ):
        folder = make_folder(architecture)
        bert = transformers.BertModel(text_config())
        model = ImageTextDualEncoder.from_text_image_pretrained(
            bert, folder, projection_dim=8, image_pooling=pooling
        ).train()
        assert model.config.image_pooling == (pooling or "pooler")
        processor = ImageTextProcessor(AutoImageProcessor.from_pretrained(folder), tokenizer)
        texts = ["rain", "the dog barks", "a car", "the cat sleeps"]
        inputs = processor(text=texts, images=images, return_tensors="pt")
        model(**inputs, return_loss=True).loss.backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert without == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}

        model.eval().save_pretrained(tmp_path / "ours")
        processor.save_pretrained(tmp_path / "ours")
        loaded, again = (each.from_pretrained(tmp_path / "ours") for each in (AutoModel, AutoProcessor))
        pixels = again(images=images, return_tensors="pt")["pixel_values"]
        assert torch.equal(pixels, inputs["pixel_values"])
        expected = model(pixel_values=pixels)
        assert torch.equal(loaded(pixel_values=pixels).image_embeds, expected.image_embeds)
        own = AutoModel.from_pretrained(folder).eval()(pixels)
        if pooling is None:
            torch.testing.assert_close(expected.image_model_output.pooler_output.shape, own.pooler_output.shape)
        elif own.last_hidden_state.ndim == 4 and architecture != "test_mambaout":
            assert expected.image_model_output.pooler_output.shape[1] == own.last_hidden_state.shape[1]
        embeds = as_embedder(loaded, again).encode_image(images)
        torch.testing.assert_close(torch.as_tensor(embeds), expected.image_embeds, atol=1e-5, rtol=0)

    def test_its_processor_has_no_size(self, make_folder):
        processor = AutoImageProcessor.from_pretrained(make_folder("test_vit"))
        assert not hasattr(processor, "size") and image_side(processor) == 169  # 160 of 0.95 of the side
        large = Image.new("RGB", (200, 200))
        assert processor(large)["pixel_values"].shape == (1, 3, 160, 160)


def test_sides_of_processors() -> None:
    assert image_side(transformers.ViTImageProcessor(size={"height": 16, "width": 24})) == 16
    assert image_side(transformers.CLIPImageProcessor(size={"shortest_edge": 20})) == 20
    with pytest.raises(ValueError, match="names no size: pass an image processor with one"):
        image_side(transformers.Siglip2ImageProcessor())
