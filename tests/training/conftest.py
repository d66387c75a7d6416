"""Tiny models and batches of the training tests."""

import pytest
import torch
from transformers import BertConfig, ViTConfig

from xmodal_hf import ImageTextConfig, ImageTextDualEncoder, SentenceEncoder, SentenceEncoderConfig

VOCABULARY = 40


def text_config(dropout: float) -> BertConfig:
    return BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )


@pytest.fixture
def dual_encoder():
    """Build a tiny image-text model in training mode: dropout -> model."""

    def build(dropout: float = 0.1, **config) -> ImageTextDualEncoder:
        torch.manual_seed(0)
        image = ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=8,
            patch_size=4,
            hidden_dropout_prob=dropout,
        )
        configuration = ImageTextConfig(
            text_config=text_config(dropout), image_config=image, projection_dim=12, **config
        )
        return ImageTextDualEncoder(configuration).train()

    return build


@pytest.fixture
def sentence_encoder():
    """Build a tiny sentence encoder in training mode: dropout -> model."""

    def build(dropout: float = 0.1, **config) -> SentenceEncoder:
        torch.manual_seed(0)
        return SentenceEncoder(SentenceEncoderConfig(text_config=text_config(dropout), **config)).train()

    return build


@pytest.fixture
def text_batch():
    """Build random right-padded texts of 2 to 9 tokens: (rows, seed) -> batch."""

    def build(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, 10, (rows,), generator=generator)
        mask = (torch.arange(9) < lengths[:, None]).long()
        ids = torch.randint(1, VOCABULARY, (rows, 9), generator=generator) * mask
        return {"input_ids": ids, "attention_mask": mask}

    return build


@pytest.fixture
def pair_batch(text_batch):
    """Build random texts and images; the last two rows belong to one item: (rows, seed) -> batch."""

    def build(rows: int, seed: int = 0) -> dict:
        generator = torch.Generator().manual_seed(seed)
        groups = torch.arange(rows)
        groups[-1] = groups[-2]
        return {
            **text_batch(rows, seed),
            "pixel_values": torch.randn(rows, 3, 8, 8, generator=generator),
            "group_ids": groups,
            "ids": [str(row) for row in range(rows)],
        }

    return build
