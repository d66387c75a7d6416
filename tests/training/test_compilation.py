"""Compiled towers give the gradients of those that are not.

Apart from the other tests of towers, which are fast: a file's tests run in one process of the suite.
"""

import pytest
import torch
import torch._inductor.config
from torch import nn

from xmodal_hf import SentenceEncoder, SentenceEncoderConfig
from xmodal_hf.objectives import CrossModalObjective
from xmodal_hf.training.towers import compile_towers


def test_compiled_towers_give_the_same_gradients(dual_encoder, pair_batch, monkeypatch):
    """Forward and backward graphs are traced; the code that inductor makes of them is in the next test."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **options: compile_module(self, backend="aot_eager", **options)
    )
    gradients = []
    for compiled in (False, True):
        model = dual_encoder(0.0)
        if compiled:
            compile_towers(model)
        names = [name for name, _ in model.named_parameters()]
        CrossModalObjective("clip", text_sub_batches=2)(model, pair_batch(8)).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert names == [name for name, _ in dual_encoder(0.0).named_parameters()]
    assert isinstance(model.text_model, nn.Module) and model.text_model._compiled_call_impl is not None
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@torch._inductor.config.patch(compile_threads=1)
def test_generated_code_of_a_compiled_tower_gives_the_same_gradients(text_batch):
    """One layer, since inductor's compiler takes seconds for each, and no processes beside this one to compile in."""
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    tower = {"model_type": "bert", "num_hidden_layers": 1, **sizes}
    model = SentenceEncoder(SentenceEncoderConfig(text_config=tower)).eval()  # no dropout
    weights, gradients = torch.randn(6, 16), []
    for compiled in (False, True):
        if compiled:
            compile_towers(model)
        model.zero_grad()
        (model(**text_batch(6)).text_embeds * weights).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.text_model.parameters()])
    assert model.text_model._compiled_call_impl is not None
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients[0])
