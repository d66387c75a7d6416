"""Train with a loss of one's own: CLIP's loss on smoothed targets.

    python examples/custom_loss.py --dataset openmoji --smoothing 0.2 --max_steps 100 --output_dir outputs/smoothed

All options of train_contrastive.py hold, and the weight of the loss is one of them.
"""

import sys
from collections.abc import Sequence

from torch import Tensor

from xmodal_hf import cli
from xmodal_hf.distributed import exchange_sizes, gather_with_grad
from xmodal_hf.losses import LOSSES, Loss, Weight, clip_loss

NAME = "smoothed_clip"


def smoothed_clip(
    modality_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    *,
    smoothing: float,
    group_ids: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (1 - s) CLIP's loss + s times the cross-entropy with the uniform distribution over the batch.

    The second term is the mean of logsumexp(row) - mean(row) over rows and columns of the N x N logits.

    Args:
        modality_embeds: (B, D) unit-norm embeddings of this process.
        text_embeds: (B, D), row i describes item i.
        logit_scale: multiplier of the cosines, 0-dim.
        smoothing: s, between 0 and 1.
        group_ids: (B,) integers, equal for pairs of one item.
    """
    contrastive = clip_loss(modality_embeds, text_embeds, logit_scale, group_ids=group_ids)
    (shards,) = exchange_sizes([len(text_embeds)], text_embeds.device)
    items, texts = gather_with_grad(modality_embeds, shards), gather_with_grad(text_embeds, shards)  # (N, D)
    logits = logit_scale * items @ texts.T  # (N, N): of the batch of all processes
    uniform = (logits.logsumexp(dim=0).mean() + logits.logsumexp(dim=1).mean()) / 2 - logits.mean()
    loss = (1 - smoothing) * contrastive + smoothing * uniform
    return loss, {"contrastive_loss": contrastive.detach(), "uniform_loss": uniform.detach()}


def main(args: Sequence[str] | None = None) -> None:
    """Add the loss, and train with it."""
    LOSSES[NAME] = Loss(
        smoothed_clip,
        description="CLIP's on smoothed targets",
        card="CLIP's contrastive loss with label smoothing",
        weights={"smoothing": Weight(0.1, "Weight of the uniform targets.", label="label smoothing")},
        citations=LOSSES["clip"].citations,
    )
    cli.main(["train-contrastive", "--objective", NAME, *(sys.argv[1:] if args is None else args)])


if __name__ == "__main__":
    main()
