"""Tiny peers, built offline: CLIP, SigLIP, CLAP and a BERT text model."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 24,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


@pytest.fixture(scope="session")
def sentences(tokenizer) -> list[str]:
    """Sixty texts of 1 to 13 known words."""
    words = [word for word in sorted(tokenizer.get_vocab()) if not word.startswith("[")]
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(words, size=rng.integers(1, 14))) for _ in range(60)]


@pytest.fixture(scope="session")
def bert(tokenizer) -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(**TEXT)).eval()


@pytest.fixture(scope="session")
def clip(tokenizer) -> tuple[CLIPModel, CLIPProcessor]:
    torch.manual_seed(0)
    text, vision = TEXT | {"eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}, VISION
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return model, CLIPProcessor(images, tokenizer)


@pytest.fixture(scope="session")
def siglip(tokenizer) -> tuple[SiglipModel, SiglipProcessor]:
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=TEXT | {"projection_size": 32}, vision_config=VISION)).eval()
    return model, SiglipProcessor(SiglipImageProcessor(size={"height": 16, "width": 16}), tokenizer)


def make_clap(tokenizer, fused: bool) -> tuple[ClapModel, ClapProcessor]:
    torch.manual_seed(0)
    text = TEXT | {"max_position_embeddings": 25, "pad_token_id": 0, "projection_dim": 24}
    audio = {
        "window_size": 8, "num_mel_bins": 64, "spec_size": 256, "patch_size": 4, "patch_stride": [4, 4],
        "hidden_size": 32, "depths": [1, 1], "num_attention_heads": [2, 2], "patch_embeds_hidden_size": 16,
        "projection_dim": 24, "enable_fusion": fused, "aff_block_r": 2, "patch_embed_input_channels": 1,
    }  # fmt: skip
    extractor = ClapFeatureExtractor(
        feature_size=64, sampling_rate=8000, hop_length=80, max_length_s=1, fft_window_size=256, frequency_max=4000,
        truncation="fusion" if fused else "rand_trunc",
    )  # fmt: skip
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=24)).eval()
    return model, ClapProcessor(extractor, tokenizer)


@pytest.fixture(scope="session")
def clap(tokenizer) -> tuple[ClapModel, ClapProcessor]:
    return make_clap(tokenizer, fused=False)


@pytest.fixture(scope="session")
def fused_clap(tokenizer) -> tuple[ClapModel, ClapProcessor]:
    return make_clap(tokenizer, fused=True)


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)) for _ in range(7)]
