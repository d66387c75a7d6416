"""Pooling against a loop over rows and tokens in float64."""

import pytest
import torch

from xmodal_hf.models.pooling import pool

EOS = 3


def slow_pool(hidden: torch.Tensor, pooling: str, mask: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Pool row by row, from what the names say: (B, T, H) -> (B, H), float64."""
    rows = []
    for states, attended, row_ids in zip(hidden.double(), mask.tolist(), ids.tolist(), strict=True):
        real = [index for index, flag in enumerate(attended) if flag]
        if pooling == "cls":
            rows.append(states[real[0]])
        elif pooling == "mean":
            rows.append(sum(states[index] for index in real) / len(real))
        elif pooling == "max":
            rows.append(torch.stack([max(column) for column in states[real].t()]))
        elif pooling == "last":
            rows.append(states[real[-1]])
        else:
            ends = [index for index in real if row_ids[index] == EOS]
            rows.append(states[ends[0] if ends else real[-1]])
    return torch.stack(rows)


def ragged_batch(padding_side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return hidden (5, 7, 4) with large states at the padding, mask and ids; the last row has no end of text."""
    lengths = [7, 5, 3, 1, 4]
    mask = torch.zeros(5, 7, dtype=torch.long)
    ids = torch.full((5, 7), EOS)  # CLIP pads with the end-of-text token
    for row, length in enumerate(lengths):
        columns = slice(0, length) if padding_side == "right" else slice(7 - length, 7)
        mask[row, columns] = 1
        ids[row, columns] = torch.randint(4, 60, (length,))
        if row < 4:
            ids[row, columns.stop - 1] = EOS
    hidden = torch.randn(5, 7, 4)
    hidden[mask == 0] += 100
    return hidden, mask, ids


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "eos", "last"])
def test_equals_loop_on_padded_rows(pooling: str, padding_side: str) -> None:
    hidden, mask, ids = ragged_batch(padding_side)
    pooled = pool(hidden, pooling, mask, ids, EOS)
    torch.testing.assert_close(pooled.double(), slow_pool(hidden, pooling, mask, ids), atol=1e-6, rtol=1e-6)
    # The states at the padding are far away: reading one would show.
    assert pooled.abs().max() < 50


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "eos", "last"])
def test_no_mask_means_all_tokens(pooling: str) -> None:
    hidden, _, ids = ragged_batch("right")
    everything = torch.ones(5, 7, dtype=torch.long)
    expected = slow_pool(hidden, pooling, everything, ids)
    torch.testing.assert_close(pool(hidden, pooling, None, ids, EOS).double(), expected, atol=1e-5, rtol=1e-6)


def test_eos_is_the_first_one() -> None:
    hidden = torch.arange(5.0).view(1, 5, 1)
    ids = torch.tensor([[9, EOS, 8, EOS, EOS]])
    assert pool(hidden, "eos", torch.ones(1, 5, dtype=torch.long), ids, EOS).item() == 1


@pytest.mark.parametrize(
    ("ids", "eos", "expected"),
    [
        ([EOS, 9, 8, EOS, EOS], EOS, 3),  # a start token that is the end of text too, as OPT's
        ([9, 7, 8, 5, EOS], [5, EOS], 3),  # several ids, as Llama 3's: the first of any counts
        ([EOS, 9, 8, 7, 6], EOS, 4),  # none after the beginning: the last token
    ],
)
def test_eos_comes_after_the_beginning(ids: list[int], eos: int | list[int], expected: int) -> None:
    hidden = torch.arange(5.0).view(1, 5, 1)
    assert pool(hidden, "eos", torch.ones(1, 5, dtype=torch.long), torch.tensor([ids]), eos).item() == expected
    padded = torch.tensor([[EOS, EOS, *ids, EOS]])  # padding that is the end of text, on both sides
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 0]])
    assert pool(torch.arange(8.0).view(1, 8, 1), "eos", mask, padded, eos).item() == expected + 2


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "eos", "last"])
def test_gradient_reaches_only_what_is_read(pooling: str) -> None:
    hidden, mask, ids = ragged_batch("right")
    hidden.requires_grad_()
    pool(hidden, pooling, mask, ids, EOS).sum().backward()
    assert (hidden.grad[mask == 0] == 0).all()
    # Each row passes on a weight of one per dimension.
    torch.testing.assert_close(hidden.grad.sum(dim=1), torch.ones(5, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "eos", "last"])
def test_keeps_the_precision(pooling: str, dtype: torch.dtype) -> None:
    hidden, mask, ids = ragged_batch("right")
    pooled = pool(hidden.to(dtype), pooling, mask, ids, EOS)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled.double(), slow_pool(hidden, pooling, mask, ids), atol=0.05, rtol=0.02)


def test_mean_of_a_row_without_tokens_is_zero() -> None:
    assert pool(torch.ones(1, 3, 2), "mean", torch.zeros(1, 3, dtype=torch.long)).tolist() == [[0.0, 0.0]]


def test_unknown_name_and_missing_ids() -> None:
    with pytest.raises(ValueError, match="unknown pooling 'median': pass one of cls, mean, max, eos"):
        pool(torch.zeros(1, 2, 3), "median")
    with pytest.raises(ValueError, match="pooling 'eos' needs input_ids and an eos_token_id"):
        pool(torch.zeros(1, 2, 3), "eos")
