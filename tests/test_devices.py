"""What runs on a GPU has no tensor of the CPU's among its own: forward passes on stand-ins of CUDA tensors.

`FakeTensorMode` knows shapes, types and devices and computes nothing, so it needs no GPU, and it refuses operations on
tensors of two devices. Operations whose result's shape or branch depends on values cannot run in it.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from transformers import ASTConfig, BertConfig, CLIPTextConfig, ViTConfig

from xmodal_hf import AudioTextConfig, AudioTextDualEncoder, ImageTextConfig, ImageTextDualEncoder
from xmodal_hf.losses import clip_loss, cyclic_losses, sigmoid_loss, simcse_loss
from xmodal_hf.models.feature_extraction_log_mel import LogMelFeatureExtractor
from xmodal_hf.models.pooling import TEXT_POOLINGS, pool
from xmodal_hf.models.text_tower import _left_padding, _rolled
from xmodal_hf.objectives import CrossModalObjective, JointObjective, SentenceObjective
from xmodal_hf.training.averaging import WeightAverage

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT_CONFIGS = {
    "bert": BertConfig(vocab_size=100, **SMALL),
    "clip": CLIPTextConfig(vocab_size=100, max_position_embeddings=32, bos_token_id=1, eos_token_id=2, **SMALL),
}
ROWS, DIM = 70, 16
EXTRACTOR = LogMelFeatureExtractor.from_preset("clap", max_length_s=1)


@pytest.fixture(autouse=True)
def stand_ins():
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def cuda(*shape, dtype=torch.float32):
    return torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True)


def test_two_devices_are_refused():
    """Else the tests below would show nothing."""
    with pytest.raises(RuntimeError, match="two different devices"):
        cuda(3) + torch.randn(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "loss",
    [
        lambda *pairs: [clip_loss(*pairs, cuda())],
        cyclic_losses,
        lambda *pairs: [sigmoid_loss(*pairs, cuda(), cuda())],
        lambda *pairs: [simcse_loss(*pairs)],
        lambda *pairs: [simcse_loss(*pairs, cuda(ROWS, DIM, dtype=pairs[0].dtype))],
    ],
    ids=["clip", "cyclic", "sigmoid", "unsupervised", "supervised"],
)
def test_losses(loss, dtype):
    for value in loss(cuda(ROWS, DIM, dtype=dtype), cuda(ROWS, DIM, dtype=dtype)):
        assert (value.device.type, value.dtype, value.ndim) == ("cuda", torch.float32, 0)


@pytest.mark.parametrize("text", TEXT_CONFIGS)
@pytest.mark.parametrize("has_mask", [True, False])
@pytest.mark.parametrize("modality", ["image", "audio"])
def test_models_under_autocast(modality, text, has_mask):
    with torch.device("cuda"):
        inputs = {"input_ids": torch.randint(3, 99, (8, 12))}
        if has_mask:
            inputs["attention_mask"] = torch.ones(8, 12, dtype=torch.long)
        if modality == "image":
            image_config = ViTConfig(image_size=32, patch_size=16, **SMALL)
            config = ImageTextConfig(text_config=TEXT_CONFIGS[text], image_config=image_config, projection_dim=DIM)
            model, inputs["pixel_values"] = ImageTextDualEncoder(config), torch.randn(8, 3, 32, 32)
        else:
            audio_config = ASTConfig(num_mel_bins=16, max_length=64, patch_size=16, **SMALL)
            config = AudioTextConfig(text_config=TEXT_CONFIGS[text], audio_config=audio_config, projection_dim=DIM)
            model, inputs["input_values"] = AudioTextDualEncoder(config), torch.randn(8, 64, 16)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        outputs = model.train()(**inputs, return_loss=True)
    assert outputs.loss.device.type == outputs.text_embeds.device.type == "cuda"
    assert outputs.text_embeds.shape == (8, DIM)


@pytest.mark.parametrize("pooling", sorted(set(TEXT_POOLINGS) - {"pooler"}))
def test_poolings_ask_the_device_nothing(pooling):
    mask = torch.ones(8, 12, device="cuda", dtype=torch.long)
    hidden = cuda(8, 12, DIM)
    assert pool(hidden, pooling, mask, mask + 3, 2).device.type == "cuda"


def test_moving_texts_by_nothing_changes_nothing():
    """A GPU is not asked whether texts are padded on the left."""
    with unset_fake_temporarily():
        ids = torch.arange(24).view(3, 8)
        assert torch.equal(_rolled(ids, torch.zeros(3, dtype=torch.long), 1), ids)
        assert _left_padding(torch.ones(3, 8)) is None
    assert _left_padding(torch.ones(3, 8, device="cuda")).shape == (3,)


def test_vectors_take_the_place_of_pictures():
    with torch.device("cuda"):
        image_config = ViTConfig(image_size=32, patch_size=16, **SMALL)
        config = ImageTextConfig(text_config=TEXT_CONFIGS["bert"], image_config=image_config, projection_dim=DIM)
        model, ids = ImageTextDualEncoder(config), torch.randint(3, 99, (8, 12))
        vectors = torch.randn(8, SMALL["hidden_size"])
    outputs = model.train()(input_ids=ids, image_pooler_output=vectors, return_loss=True)
    assert outputs.loss.device.type == outputs.image_embeds.device.type == "cuda"


@pytest.mark.parametrize("loss_type", ["clip", "cyclip", "siglip"])
def test_objectives_and_their_logs(loss_type):
    embeds = {"modality_embeds": cuda(ROWS, DIM), "text_embeds": cuda(ROWS, DIM), "logit_scale": cuda()}
    embeds |= {"logit_bias": cuda(), **{f"{view}_embeds": cuda(ROWS, DIM) for view in ("anchor", "positive")}}
    output = JointObjective(CrossModalObjective(loss_type), SentenceObjective()).loss(embeds)
    assert output.loss.device.type == "cuda" and len(output.logs) > 10
    assert {value.device.type for value in output.logs.values()} == {"cuda"}


def test_batches_are_cut_and_weights_averaged():
    batch = {"input_ids": torch.ones(12, 5, device="cuda", dtype=torch.long), "pixel_values": cuda(12, 3, 4, 4)}
    parts = CrossModalObjective().micro_batches(batch, 5)
    assert [tuple(part["pixel_values"].shape) for part in parts] == [(4, 3, 4, 4)] * 3
    views = SentenceObjective(num_views=3).micro_batches({"input_ids": batch["input_ids"]}, 2)
    assert {part["input_ids"].device.type for part in [*parts, *views]} == {"cuda"}
    average = WeightAverage(torch.nn.Linear(4, 4, device="cuda", dtype=torch.bfloat16), decay=0.9)
    average.update()
    with average.applied():
        assert {(value.device.type, value.dtype) for value in average.averages} == {("cuda", torch.float32)}


def test_log_mel():
    assert EXTRACTOR._spectrogram(cuda(48_000).detach()).device.type == "cuda"
