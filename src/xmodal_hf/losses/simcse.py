"""The losses of SimCSE (Gao et al. 2021): eq. 4 without and eq. 5 with hard negatives."""

from torch import Tensor

from .cross_entropy import info_nce_with_accuracy


def simcse_loss(
    anchor: Tensor,
    positive: Tensor,
    hard_negative: Tensor | None = None,
    *,
    temperature: float = 0.05,
    hard_negative_weight: float = 0.0,
    text_ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Contrastive loss of SimCSE (Gao et al. 2021, eq. 4, and eq. 5 with hard negatives).

    .. math::
        L = -\frac{1}{N} \sum_i \log\frac{e^{h_i \cdot h^+_i / \tau}}
            {\sum_j \left( e^{h_i \cdot h^+_j / \tau} + e^{h_i \cdot h^-_j / \tau} \right)}

    with anchors :math:`h`, positives :math:`h^+` and hard negatives :math:`h^-` (if there are any) of all processes and
    the temperature :math:`\tau`. Only anchors are queries: the loss has one direction.

    Args:
        anchor: Sentence embeddings of this process, of shape (B, D) and unit norm. B may differ between processes.
        positive: Embeddings of shape (B, D): the same sentences under another dropout mask (unsupervised) or entailed
            sentences (supervised).
        hard_negative: Embeddings of contradictions, of shape (B, D). Every anchor sees all of them as negatives.
        temperature: Divisor of the cosines, a constant; 0.05 in the paper.
        hard_negative_weight: Constant that is added, after the temperature, to the logit of each anchor's own hard
            negative only; 0 by default, as in the authors' code.
        text_ids: Non-negative integers of shape (2, B) or, with hard negatives, (3, B), equal for equal texts in all
            processes: the ids of anchors, positives and hard negatives; -1 marks a row without a hard negative (its
            embedding is ignored). The positive of another row is then a positive too, with a soft target, if it has the
            text of this row's positive or anchor, or if that row has this row's anchor. A hard negative with the text
            of the anchor or of its positive is ignored. If None, all texts are different.
        chunk_size: Number of rows and columns of a tile. None is the measured default of the device. It does not change
            the value.

    Returns:
        The loss of the global batch, 0-dim, as `info_nce` returns it, gradients included.

    Raises:
        ValueError: If a shape, dtype or device does not fit, the temperature is not positive, or a hard_negative_weight
            is given without hard negatives.

    Example:
        >>> import torch
        >>> from xmodal_hf.losses import simcse_loss
        >>> anchors = torch.eye(3)
        >>> round(simcse_loss(anchors, anchors, temperature=1.0).item(), 4)  # log(1 + 2 / e)
        0.5514
        >>> round(simcse_loss(anchors, anchors, hard_negative=-anchors, temperature=1.0).item(), 4)
        0.9581
    """
    return simcse_loss_with_accuracy(
        anchor,
        positive,
        hard_negative,
        temperature=temperature,
        hard_negative_weight=hard_negative_weight,
        text_ids=text_ids,
        chunk_size=chunk_size,
    )[0]


def simcse_loss_with_accuracy(
    anchor: Tensor,
    positive: Tensor,
    hard_negative: Tensor | None = None,
    *,
    temperature: float = 0.05,
    hard_negative_weight: float = 0.0,
    text_ids: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss of `simcse_loss`, with the retrieval accuracy within the global batch.

    The arguments and errors are those of `simcse_loss`; the accuracy is that of `info_nce_with_accuracy`.

    Example:
        >>> import torch
        >>> from xmodal_hf.losses import simcse_loss_with_accuracy
        >>> loss, accuracy = simcse_loss_with_accuracy(torch.eye(3), torch.eye(3))
        >>> accuracy.item()
        1.0
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}. SimCSE uses 0.05.")
    if hard_negative is None and hard_negative_weight != 0:
        raise ValueError(
            f"hard_negative_weight is {hard_negative_weight} but there is no hard_negative. Pass one, or weight 0."
        )
    return info_nce_with_accuracy(
        anchor,
        positive,
        1 / temperature,
        extra_keys=hard_negative,
        extra_logit_bias=hard_negative_weight or None,
        text_ids=text_ids,
        chunk_size=chunk_size,
    )


def simcse_loss_with_logs(
    anchor: Tensor,
    positive: Tensor,
    hard_negative: Tensor | None = None,
    *,
    temperature: float,
    hard_negative_weight: float,
    text_ids: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of `simcse_loss`, and for the log the loss and the accuracy: the form that `SENTENCE_LOSSES` needs."""
    loss, accuracy = simcse_loss_with_accuracy(
        anchor,
        positive,
        hard_negative,
        temperature=temperature,
        hard_negative_weight=hard_negative_weight,
        text_ids=text_ids,
    )
    return loss, {"contrastive_loss": loss.detach(), "accuracy": accuracy}
