"""Tiny towers, tokenizers, processors and models, all built offline: shared by every test folder.

`conftest.py` registers this module as a plugin. Fixtures whose names begin with `make_` or end in `_config` are
functions; the others are objects, new for each test unless they are folders, which nobody changes, or tokenizers, which
are put back after each test.
"""

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import settings
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from xmodal_hf import (
    AudioTextConfig,
    AudioTextDualEncoder,
    AudioTextProcessor,
    ImageTextConfig,
    ImageTextDualEncoder,
    ImageTextProcessor,
    SentenceEncoder,
    SentenceEncoderConfig,
)

# Generated examples are the same in every run: a failure is a failure of the change at hand.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# Lines of a log would hide what a failed test prints.
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SENTENCES = [
    "a red apple on a green table",
    "the dog barks at night",
    "rain",
    "two small birds sing in the tall old tree",
    "a car drives past",
    "music plays softly while people talk",
    "the cat sleeps",
    "a piano plays one low note",
]
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
MAX_TOKENS = 24

_TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_TEXT = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
# RoBERTa and its kin count positions from pad_token_id + 1.
_SHORT = {"max_position_embeddings": MAX_TOKENS}
_OFFSET = {"max_position_embeddings": MAX_TOKENS + 1}
_VISION = {"image_size": 16, "patch_size": 8}

# name -> (config class, settings)
TEXT_TOWERS = {
    "bert": (transformers.BertConfig, _TRANSFORMER | _TEXT | _SHORT),
    "roberta": (transformers.RobertaConfig, _TRANSFORMER | _TEXT | _OFFSET),
    "mpnet": (transformers.MPNetConfig, _TRANSFORMER | _TEXT | _OFFSET),
    "distilbert": (
        transformers.DistilBertConfig,
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, **_TEXT, **_SHORT},
    ),
    "clip_text": (transformers.CLIPTextConfig, _TRANSFORMER | _TEXT | _SHORT),
    "siglip_text": (transformers.SiglipTextConfig, {**_TRANSFORMER, **_TEXT, **_SHORT, "projection_size": 32}),
    "clap_text": (transformers.ClapTextConfig, _TRANSFORMER | _TEXT | _OFFSET),
    "gpt2": (transformers.GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": MAX_TOKENS, **_TEXT}),
    "t5": (
        transformers.T5Config,
        {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, **_TEXT},
    ),
}
IMAGE_TOWERS = {
    "vit": (transformers.ViTConfig, _TRANSFORMER | _VISION),
    "dinov2": (
        transformers.Dinov2Config,
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, **_VISION},
    ),
    "clip_vision": (transformers.CLIPVisionConfig, _TRANSFORMER | _VISION),
    "siglip_vision": (transformers.SiglipVisionConfig, _TRANSFORMER | _VISION),
    "resnet": (transformers.ResNetConfig, {"embedding_size": 8, "hidden_sizes": [8, 32], "depths": [1, 1]}),
    "convnext": (
        transformers.ConvNextConfig,
        {"hidden_sizes": [8, 32], "depths": [1, 1], "num_stages": 2, "image_size": 16, "patch_size": 4},
    ),
}
AUDIO_TOWERS = {
    "clap_audio": (
        transformers.ClapAudioConfig,
        {
            "hidden_size": 32,  # patch_embeds_hidden_size * 2 ** (stages - 1)
            "patch_embeds_hidden_size": 16,
            "depths": [1, 1],
            "num_hidden_layers": 2,
            "num_attention_heads": [2, 2],
            "num_mel_bins": 16,
            "spec_size": 64,
            "window_size": 4,
        },
    ),
    "ast": (transformers.ASTConfig, {**_TRANSFORMER, "max_length": 32, "num_mel_bins": 16}),
    "wav2vec2": (
        transformers.Wav2Vec2Config,
        {
            **_TRANSFORMER,
            "conv_dim": (16, 16),
            "conv_stride": (5, 2),
            "conv_kernel": (10, 3),
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 2,
            "layerdrop": 0.0,
        },
    ),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def _build_config(
    towers: dict[str, tuple[type[PreTrainedConfig], dict]], name: str, overrides: dict
) -> PreTrainedConfig:
    config_class, settings = towers[name]
    return config_class(**{**copy.deepcopy(settings), **overrides})


@pytest.fixture(scope="session")
def text_config() -> Callable[..., PreTrainedConfig]:
    """Give `text_config(name="bert", **overrides)`."""
    return lambda name="bert", **overrides: _build_config(TEXT_TOWERS, name, overrides)


@pytest.fixture(scope="session")
def image_config() -> Callable[..., PreTrainedConfig]:
    """Give `image_config(name="vit", **overrides)`."""
    return lambda name="vit", **overrides: _build_config(IMAGE_TOWERS, name, overrides)


@pytest.fixture(scope="session")
def audio_config() -> Callable[..., PreTrainedConfig]:
    """Give `audio_config(name="clap_audio", **overrides)`."""
    return lambda name="clap_audio", **overrides: _build_config(AUDIO_TOWERS, name, overrides)


def _finished_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Add [CLS] and [SEP] around each text, and the names of the special tokens."""
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        model_max_length=MAX_TOKENS,
    )


@pytest.fixture(scope="session")
def shared_tokenizers() -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """The tokenizers of words and of byte pairs: behind `tokenizer` and `bpe_tokenizer`, which folders may replace."""
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS + words)}
    byte_pairs = Tokenizer(models.BPE(unk_token="[UNK]"))
    byte_pairs.pre_tokenizer = pre_tokenizers.Whitespace()
    byte_pairs.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=64, special_tokens=SPECIAL_TOKENS))
    return (
        _finished_tokenizer(Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))),
        _finished_tokenizer(byte_pairs),
    )


@pytest.fixture(scope="session")
def tokenizer(shared_tokenizers: tuple[PreTrainedTokenizerFast, ...]) -> PreTrainedTokenizerFast:
    """One token a word, from the words of SENTENCES; fewer than the 64 of the tiny towers."""
    return shared_tokenizers[0]


@pytest.fixture(scope="session")
def bpe_tokenizer(shared_tokenizers: tuple[PreTrainedTokenizerFast, ...]) -> PreTrainedTokenizerFast:
    """Byte pairs of SENTENCES, as many as the tiny towers have rows for."""
    return shared_tokenizers[1]


@pytest.fixture(scope="session")
def put_tokenizers_back(shared_tokenizers: tuple[PreTrainedTokenizerFast, ...]) -> Callable[[], None]:
    """Give a function that undoes whatever was done to the tokenizers that all tests share."""
    shared = [(one, copy.deepcopy(vars(one))) for one in shared_tokenizers]

    def put_back() -> None:
        for one, attributes in shared:
            vars(one).clear()
            vars(one).update(copy.deepcopy(attributes))

    return put_back


@pytest.fixture(autouse=True)
def unchanged_tokenizers(put_tokenizers_back: Callable[[], None]) -> Iterator[None]:
    """Start and leave every test with the shared tokenizers as they were made.

    Saving a processor or building a model writes into the given tokenizer. Fixtures of modules and of the session do
    so before the test's own fixtures are set up, hence the first of the two calls.
    """
    put_tokenizers_back()
    yield
    put_tokenizers_back()


@pytest.fixture
def make_text_batch() -> Callable[..., dict[str, torch.Tensor]]:
    """Give `make_text_batch(rows=4, padding_side="right")`: random ids of lengths 8, 6, 4, 8, 6, ..."""

    def make(rows: int = 4, padding_side: str = "right") -> dict[str, torch.Tensor]:
        width = 8
        attention_mask = torch.zeros(rows, width, dtype=torch.long)
        for row in range(rows):
            attention_mask[row, : width - 2 * (row % 3)] = 1
        if padding_side == "left":
            attention_mask = attention_mask.flip(1)
        input_ids = torch.randint(4, _TEXT["vocab_size"], (rows, width)) * attention_mask
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    return make


@pytest.fixture
def make_images() -> Callable[[int], torch.Tensor]:
    """Give `make_images(rows=4)`: pixel values of the tiny image towers."""
    return lambda rows=4: torch.randn(rows, 3, 16, 16)


@pytest.fixture
def make_audio() -> Callable[..., torch.Tensor]:
    """Give `make_audio(name="clap_audio", rows=4)`: the features that the tiny audio tower takes."""
    shapes = {"clap_audio": (1, 64, 16), "ast": (32, 16), "wav2vec2": (800,)}
    return lambda name="clap_audio", rows=4: torch.randn(rows, *shapes[name])


@pytest.fixture
def make_image_text(text_config: Callable, image_config: Callable) -> Callable[..., ImageTextDualEncoder]:
    """Give `make_image_text(text="bert", image="vit", **config_fields)`, in evaluation mode."""

    def make(text: str = "bert", image: str = "vit", **fields: object) -> ImageTextDualEncoder:
        towers = {"text_config": text_config(text), "image_config": image_config(image)}
        return ImageTextDualEncoder(ImageTextConfig(**{**towers, "projection_dim": 16, **fields})).eval()

    return make


@pytest.fixture
def make_audio_text(text_config: Callable, audio_config: Callable) -> Callable[..., AudioTextDualEncoder]:
    """Give `make_audio_text(text="bert", audio="clap_audio", **config_fields)`, in evaluation mode."""

    def make(text: str = "bert", audio: str = "clap_audio", **fields: object) -> AudioTextDualEncoder:
        towers = {"text_config": text_config(text), "audio_config": audio_config(audio)}
        fields = {"audio_pooling": "pooler" if audio == "clap_audio" else "mean", **fields}
        return AudioTextDualEncoder(AudioTextConfig(**{**towers, "projection_dim": 16, **fields})).eval()

    return make


@pytest.fixture
def make_sentence_encoder(text_config: Callable) -> Callable[..., SentenceEncoder]:
    """Give `make_sentence_encoder(text="bert", **config_fields)`, in evaluation mode."""

    def make(text: str = "bert", **fields: object) -> SentenceEncoder:
        return SentenceEncoder(SentenceEncoderConfig(**{"text_config": text_config(text), **fields})).eval()

    return make


@pytest.fixture
def image_text_model(make_image_text: Callable) -> ImageTextDualEncoder:
    """BERT and ViT, mean pooling, 16 dimensions."""
    return make_image_text()


@pytest.fixture
def audio_text_model(make_audio_text: Callable) -> AudioTextDualEncoder:
    """BERT and CLAP's HTSAT, 16 dimensions."""
    return make_audio_text()


@pytest.fixture
def sentence_encoder(make_sentence_encoder: Callable) -> SentenceEncoder:
    """BERT, mean pooling, no head, 32 dimensions."""
    return make_sentence_encoder()


@pytest.fixture
def image_text_processor(tokenizer: PreTrainedTokenizerBase) -> ImageTextProcessor:
    """A ViT image processor for 16 x 16 pixels and the word tokenizer."""
    size = {"height": 16, "width": 16}
    return ImageTextProcessor(transformers.ViTImageProcessor(size=size), tokenizer)


@pytest.fixture
def audio_text_processor(tokenizer: PreTrainedTokenizerBase) -> AudioTextProcessor:
    """CLAP's feature extractor, for one second at 8 kHz in 16 mel bands and 65 frames, and the word tokenizer."""
    extractor = transformers.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=8000,
        hop_length=125,
        max_length_s=1,
        fft_window_size=256,
        frequency_max=4000,
        truncation="rand_trunc",
        padding="repeatpad",
    )
    return AudioTextProcessor(extractor, tokenizer)


@pytest.fixture
def images() -> list[Image.Image]:
    """Four images of random colours, 20 x 24 pixels."""
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(4)]


@pytest.fixture
def clips() -> list[np.ndarray]:
    """Four tones of half a second at 8 kHz."""
    seconds = np.arange(4000) / 8000
    return [np.sin(2 * np.pi * hertz * seconds).astype(np.float32) for hertz in (220, 440, 880, 1760)]


def _saved(folder: Path, *parts: PreTrainedModel | object) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def image_text_folder(
    tmp_path: Path, image_text_model: ImageTextDualEncoder, image_text_processor: ImageTextProcessor
) -> Path:
    """A saved image-text model with its processor."""
    return _saved(tmp_path / "image_text", image_text_model, image_text_processor)


@pytest.fixture
def audio_text_folder(
    tmp_path: Path, audio_text_model: AudioTextDualEncoder, audio_text_processor: AudioTextProcessor
) -> Path:
    """A saved audio-text model with its processor."""
    return _saved(tmp_path / "audio_text", audio_text_model, audio_text_processor)


@pytest.fixture
def sentence_encoder_folder(
    tmp_path: Path, sentence_encoder: SentenceEncoder, tokenizer: PreTrainedTokenizerBase
) -> Path:
    """A saved sentence encoder with its tokenizer."""
    return _saved(tmp_path / "sentence_encoder", sentence_encoder, tokenizer)
