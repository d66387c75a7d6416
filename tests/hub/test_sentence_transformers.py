"""sentence-transformers on our folders and on exports of the language encoder: the same vectors."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from xmodal_hf import (
    AudioTextDualEncoder,
    AudioTextProcessor,
    ImageTextDualEncoder,
    ImageTextProcessor,
    SentenceEncoder,
)
from xmodal_hf.hub.arguments import CardArguments
from xmodal_hf.hub.sentence_transformers import export_sentence_transformers
from xmodal_hf.hub.staging import stage_checkpoint

sentence_transformers = pytest.importorskip("sentence_transformers")

SENTENCES = ["two small birds sing in the tall old tree", "rain", "the dog barks at night", "a car drives past"]
# Nothing of this package is in an export: its config names a model type of transformers.
PLAIN_TOWERS = ["bert", "roberta", "mpnet", "distilbert", "clip_text", "clap_text", "gpt2", "t5", "siglip_text"]


def vectors(folder: Path, inputs: list) -> torch.Tensor:
    return torch.as_tensor(sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(inputs))


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (expected[0] - expected[1]).norm() > 1e-3  # the texts are told apart at all


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "eos", "last", "pooler"])
def test_export_of_every_pooling(
    pooling: str, tmp_path: Path, make_sentence_encoder: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_sentence_encoder(pooling=pooling, head="mlp", head_dim=12)
    export_sentence_transformers(model, tokenizer, tmp_path)
    assert_same(vectors(tmp_path, SENTENCES), model.encode(SENTENCES, tokenizer=tokenizer))


@pytest.mark.parametrize(
    "fields", [{"head": "none"}, {"head": "linear", "head_dim": 8}, {"head": "mlp", "head_at_inference": False}]
)
def test_export_of_every_head(
    fields: dict, tmp_path: Path, make_sentence_encoder: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_sentence_encoder(**fields)
    export_sentence_transformers(model, tokenizer, tmp_path)
    expected = model.encode(SENTENCES, tokenizer=tokenizer)
    assert_same(vectors(tmp_path, SENTENCES), expected)
    assert expected.shape == (4, fields.get("head_dim", 32))


@pytest.mark.parametrize("fields", [{"head": "none"}, {"head": "mlp", "head_dim": 12}])
def test_export_of_the_first_dimensions(
    fields: dict, tmp_path: Path, make_sentence_encoder: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_sentence_encoder(**fields)
    export_sentence_transformers(model, tokenizer, tmp_path, truncate_dim=5)
    expected = model.encode(SENTENCES, tokenizer=tokenizer, normalize=False)[:, :5]
    assert_same(vectors(tmp_path, SENTENCES), torch.nn.functional.normalize(expected, dim=1))
    with pytest.raises(ValueError, match="truncate_dim must lie between 1 and the model's"):
        export_sentence_transformers(model, tokenizer, tmp_path / "other", truncate_dim=64)


@pytest.mark.parametrize("tower", PLAIN_TOWERS)
def test_export_of_every_tower(
    tower: str, tmp_path: Path, make_sentence_encoder: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_sentence_encoder(tower)
    export_sentence_transformers(model, tokenizer, tmp_path)
    assert_same(vectors(tmp_path, SENTENCES), model.encode(SENTENCES, tokenizer=tokenizer))
    assert not hasattr(AutoModel.from_pretrained(tmp_path), "text_model")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pooling", ["pooler", "last", "mean"])
def test_texts_of_a_fixed_length(
    pooling: str, masked: bool, tmp_path: Path, make_sentence_encoder: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    """SigLIP's tower reads the last of its positions without a mask: texts are padded to all, exported or not."""
    model = make_sentence_encoder("siglip_text", pooling=pooling, head="linear", head_dim=8)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer._processor_class = None  # of a processor that another test saved
    if not masked:
        tokenizer.model_input_names = ["input_ids"]
        tokenizer.init_kwargs["model_input_names"] = ["input_ids"]
    expected = torch.cat([model.encode([text], tokenizer=tokenizer) for text in SENTENCES])
    export_sentence_transformers(model, tokenizer, tmp_path / "export")
    assert_same(vectors(tmp_path / "export", SENTENCES), expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "export").model_input_names == ["input_ids"]
    assert ("attention_mask" in tokenizer.model_input_names) == masked  # the caller's tokenizer is as it was
    model.save_pretrained(tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "own")
    assert_same(vectors(tmp_path / "own", SENTENCES), expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"projection_type": "linear"},
        {"projection_type": "none", "projection_dim": 32},
        *({"projection_type": "mlp", "projection_hidden_act": name} for name in ("relu", "gelu", "tanh", "silu")),
        {"projection_type": "mlp", "projection_num_layers": 3},
    ],
)
def test_export_of_a_dual_encoders_text_side(
    fields: dict, tmp_path: Path, make_image_text: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_image_text(text_pooling="cls", **fields)
    export_sentence_transformers(model, tokenizer, tmp_path)
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert_same(vectors(tmp_path, SENTENCES), model(**inputs).text_embeds)


def test_export_is_a_plain_text_model(
    tmp_path: Path, sentence_encoder: SentenceEncoder, tokenizer: PreTrainedTokenizerBase
) -> None:
    export_sentence_transformers(sentence_encoder, tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "bert" and config["architectures"] == ["BertModel"]
    assert "xmodal" not in "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    model = AutoModel.from_pretrained(tmp_path).eval()
    inputs = AutoTokenizer.from_pretrained(tmp_path)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs).last_hidden_state
        expected = sentence_encoder(**inputs).last_hidden_state
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_export_cuts_where_the_tower_ends(
    tmp_path: Path, make_sentence_encoder: Callable, bpe_tokenizer: PreTrainedTokenizerBase
) -> None:
    """RoBERTa has fewer positions than its config says, and this tokenizer knows no limit."""
    model = make_sentence_encoder("roberta")
    bpe_tokenizer.model_max_length = 10**30
    export_sentence_transformers(model, bpe_tokenizer, tmp_path)
    long = ["the dog barks at night while " * 20, "rain"]
    assert_same(vectors(tmp_path, long), model.encode(long, tokenizer=bpe_tokenizer))
    assert bpe_tokenizer.model_max_length == 10**30  # the caller's tokenizer is as it was


def test_a_tokenizer_of_a_processor_is_exported_alone(tmp_path: Path, image_text_model, image_text_processor) -> None:
    export_sentence_transformers(image_text_model, image_text_processor.tokenizer, tmp_path)
    assert "processor_class" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert vectors(tmp_path, SENTENCES).shape == (4, 16)


def test_what_cannot_be_exported(
    tmp_path: Path, make_image_text: Callable, make_sentence_encoder: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    quick = make_image_text(projection_type="mlp", projection_hidden_act="quick_gelu")
    with pytest.raises(ValueError, match="projection_hidden_act 'quick_gelu', only with relu, gelu, tanh, silu"):
        export_sentence_transformers(quick, tokenizer, tmp_path)
    trailing = copy.deepcopy(tokenizer)
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    trailing.backend_tokenizer.post_processor = TemplateProcessing("$A [SEP] [CLS]", special_tokens=ends)
    with pytest.raises(ValueError, match="reads the last token, and this tokenizer puts others behind the end of text"):
        export_sentence_transformers(make_sentence_encoder(pooling="eos"), trailing, tmp_path)
    with pytest.raises(ValueError, match="puts others behind the end of text"):  # padding that no mask hides
        export_sentence_transformers(make_sentence_encoder("siglip_text", pooling="eos"), tokenizer, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fields", [{"pooling": "cls", "head": "mlp", "head_dim": 12}, {"pooling": "eos"}])
def test_a_sentence_encoder_folder_loads_where_it_lies(
    fields: dict, tmp_path: Path, make_sentence_encoder: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_sentence_encoder(**fields)
    model.save_pretrained(tmp_path)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer._processor_class = None  # of a processor that another test saved
    tokenizer.save_pretrained(tmp_path)
    assert_same(vectors(tmp_path, SENTENCES), model.encode(SENTENCES, tokenizer=tokenizer))


STAGED_CODE = """
import json, numpy as np
from sentence_transformers import SentenceTransformer
folders, texts = json.loads({arguments!r})
for folder in folders:
    np.save(folder + "/vectors.npy", SentenceTransformer(folder, device="cpu", trust_remote_code=True).encode(texts))
"""


@pytest.mark.slow
def test_published_folders_without_the_package(
    tmp_path: Path,
    image_text_folder: Path,
    image_text_model: ImageTextDualEncoder,
    sentence_encoder_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    run_with_only: Callable,
) -> None:
    staged = [
        str(stage_checkpoint(source, tmp_path / f"staged_{source.name}", "someone/model", CardArguments()))
        for source in (image_text_folder, sentence_encoder_folder)
    ]
    code = STAGED_CODE.format(arguments=json.dumps([staged, SENTENCES]))
    run_with_only(["sentence-transformers", "torchvision", "pillow"], code)
    with torch.no_grad():
        expected = image_text_model(**tokenizer(SENTENCES, padding=True, return_tensors="pt")).text_embeds
    assert_same(torch.as_tensor(np.load(Path(staged[0]) / "vectors.npy")), expected)
    expected = SentenceEncoder.from_pretrained(sentence_encoder_folder).encode(SENTENCES)
    assert_same(torch.as_tensor(np.load(Path(staged[1]) / "vectors.npy")), expected)


def test_a_published_dual_encoder_gives_unit_vectors_of_both_sides(
    tmp_path: Path,
    image_text_folder: Path,
    image_text_model: ImageTextDualEncoder,
    image_text_processor: ImageTextProcessor,
    images: list[Image.Image],
) -> None:
    staged = stage_checkpoint(image_text_folder, tmp_path / "staged", "someone/model", CardArguments())
    with torch.no_grad():
        outputs = image_text_model(**image_text_processor(text=SENTENCES, images=images, return_tensors="pt"))
    assert_same(vectors(staged, SENTENCES), outputs.text_embeds)
    assert_same(vectors(staged, images), outputs.image_embeds)


def test_a_published_dual_encoder_with_a_text_tower_of_a_fixed_length(
    tmp_path: Path, make_image_text: Callable, image_text_processor: ImageTextProcessor
) -> None:
    """Its processor's tokenizer gives a mask, which SigLIP's tower never sees."""
    model, tokenizer = make_image_text("siglip_text", text_pooling="pooler"), image_text_processor.tokenizer
    assert "attention_mask" in tokenizer.model_input_names and model.config.text_length is None
    model.save_pretrained(tmp_path / "model")
    image_text_processor.save_pretrained(tmp_path / "model")
    staged = stage_checkpoint(tmp_path / "model", tmp_path / "staged", "someone/model", CardArguments())
    ids = tokenizer(SENTENCES, padding="max_length", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert_same(vectors(staged, SENTENCES), model(ids).text_embeds)


def test_a_published_audio_model_gives_unit_vectors_of_both_sides(
    tmp_path: Path,
    audio_text_folder: Path,
    audio_text_model: AudioTextDualEncoder,
    audio_text_processor: AudioTextProcessor,
    clips: list[np.ndarray],
) -> None:
    staged = stage_checkpoint(audio_text_folder, tmp_path / "staged", "someone/model", CardArguments())
    inputs = audio_text_processor(text=SENTENCES, audio=clips, sampling_rate=8000, return_tensors="pt")
    with torch.no_grad():
        outputs = audio_text_model(**inputs)
    assert_same(vectors(staged, SENTENCES), outputs.text_embeds)
    sounds = [{"array": clip, "sampling_rate": 8000} for clip in clips]
    assert_same(vectors(staged, sounds), outputs.audio_embeds)
