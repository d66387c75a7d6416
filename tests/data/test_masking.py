"""Masks for masked language modelling: BERT's proportions, drawn by row, whatever the batch."""

import pytest
import torch

from xmodal_hf.data.collators import SentenceCollator
from xmodal_hf.data.seeding import EpochIndex
from xmodal_hf.training.tokenizer import train_tokenizer

WORDS = [f"w{index}" for index in range(200)]
TEXTS = [" ".join(WORDS[start : start + 20]) for start in range(0, 180, 3)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=500, max_length=32)


def rows(texts, epoch=0):
    return [{"anchor": text, "position": EpochIndex(epoch, index)} for index, text in enumerate(texts)]


def test_proportions_and_labels(tokenizer):
    collator = SentenceCollator(tokenizer, max_length=32, mlm_probability=0.15, seed=1)
    batches = [collator(rows(TEXTS, epoch)) for epoch in range(20)]
    ids, masked, labels = (
        torch.cat([batch[name].flatten() for batch in batches]) for name in ("input_ids", "mlm_input_ids", "mlm_labels")
    )
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    chosen = labels != -100
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(masked[~chosen], ids[~chosen])
    assert not (chosen & special).any()
    assert chosen.sum() / (~special).sum() == pytest.approx(0.15, abs=0.01)
    share_masked = (masked[chosen] == tokenizer.mask_token_id).float().mean()
    share_kept = (masked[chosen] == ids[chosen]).float().mean()
    assert share_masked == pytest.approx(0.8, abs=0.02) and share_kept == pytest.approx(0.1, abs=0.02)


def test_a_rows_masks_depend_on_seed_epoch_and_row_only(tokenizer):
    collator = SentenceCollator(tokenizer, max_length=32, mlm_probability=0.3, seed=1)
    both = collator(rows(["w1 w2 w3", TEXTS[0]]))
    alone = collator(rows(["w1 w2 w3"]))
    width = alone["input_ids"].shape[1]
    assert torch.equal(both["mlm_labels"][0, :width], alone["mlm_labels"][0])
    other_epoch = collator(rows(["w1 w2 w3", TEXTS[0]], epoch=1))
    assert not torch.equal(both["mlm_labels"], other_epoch["mlm_labels"])


def test_bad_settings(tokenizer):
    with pytest.raises(ValueError, match=r"mlm_probability must be in \[0, 1\)"):
        SentenceCollator(tokenizer, mlm_probability=1.5)
