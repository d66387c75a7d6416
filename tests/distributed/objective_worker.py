"""One process of W: takes the gradients of every objective on its share of a joined batch and saves them.

`torchrun`'s environment variables tell rank and world size. The test runs the same cases in one process.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from datasets import Dataset
from PIL import Image
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig, ViTConfig

from xmodal_hf import ImageTextConfig, ImageTextDualEncoder, SentenceEncoder, SentenceEncoderConfig
from xmodal_hf.objectives import CrossModalObjective, JointObjective, MatryoshkaObjective, SentenceObjective
from xmodal_hf.training.arguments import (
    ContrastiveArguments,
    LoraArguments,
    PairArguments,
    SentenceArguments,
    TextModelArguments,
    TrainingArguments,
)
from xmodal_hf.training.grad_cache import cached_backward
from xmodal_hf.training.loop import TrainingStep
from xmodal_hf.training.phases import build_pair_phase

ROWS, MICRO, VOCABULARY = 12, 2, 40
OBJECTIVES = {
    "clip": CrossModalObjective("clip"),
    "cyclip": CrossModalObjective("cyclip", text_sub_batches=2),
    "siglip": CrossModalObjective("siglip"),
    "unsupervised": SentenceObjective(num_views=1),
    "supervised": SentenceObjective(num_views=3),
    "masked language model": SentenceObjective(num_views=2, mlm_weight=0.1),
    "by text": SentenceObjective(num_views=3),
    "captions": CrossModalObjective("clip", captions_per_item=2, has_negative_texts=True),
    "siglip captions": CrossModalObjective("siglip", captions_per_item=2, has_negative_texts=True),
    "matryoshka": MatryoshkaObjective(CrossModalObjective("clip"), [4, 2]),
    "joint": JointObjective(CrossModalObjective("cyclip"), SentenceObjective(num_views=2)),
}

WITH_BIAS, STEPS = ("clip", "cyclip", "siglip"), 4
SENTENCE_ONLY = ("unsupervised", "supervised", "masked language model", "by text")


def build_model(name: str, dropout: float) -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    text = BertConfig(vocab_size=VOCABULARY, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **shape)
    if name in SENTENCE_ONLY:
        masked = OBJECTIVES[name].mlm_weight > 0
        return SentenceEncoder(SentenceEncoderConfig(text_config=text, head="mlp", mlm_head=masked)).train()
    image = ViTConfig(image_size=8, patch_size=4, hidden_dropout_prob=dropout, **shape)
    bias = {"logit_bias_init_value": -10.0} if name.startswith("siglip") else {}
    return ImageTextDualEncoder(ImageTextConfig(text_config=text, image_config=image, projection_dim=8, **bias)).train()


def texts(rows: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(7) < torch.randint(2, 8, (rows,), generator=generator)[:, None]).long()
    return {"input_ids": torch.randint(1, VOCABULARY, (rows, 7), generator=generator) * mask, "attention_mask": mask}


def with_masks(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mask the second token of every row and the third of every other one, so that the halves have unequal numbers."""
    ids = batch["input_ids"]
    labels = torch.full_like(ids, -100)
    labels[:, 1] = ids[:, 1]
    labels[: len(ids) // 4, 2] = ids[: len(ids) // 4, 2].clamp(min=1)
    masked = torch.where(labels == -100, ids, VOCABULARY - 1)
    return {**batch, "mlm_input_ids": masked, "mlm_labels": labels}


def joined_batch(name: str) -> dict:
    """The batch of all processes, as view-major texts or pairs."""
    if name in SENTENCE_ONLY:
        batch = texts(ROWS * OBJECTIVES[name].num_views, seed=1)
        if name == "by text":  # equal texts in both halves, and rows without a hard negative
            batch["text_ids"] = torch.arange(3 * ROWS) % 13
            batch["text_ids"][-ROWS::3] = -1
        return with_masks(batch) if OBJECTIVES[name].mlm_weight > 0 else batch
    generator = torch.Generator().manual_seed(2)
    pairs = {**texts(ROWS, seed=1), "pixel_values": torch.randn(ROWS, 3, 8, 8, generator=generator)}
    pairs["group_ids"] = torch.tensor([0, 1, 2, 3, 4, 5, 0, 7, 8, 3, 10, 11])  # items whose pairs lie in both halves
    if name.endswith("captions"):  # two of each item, and a negative one
        pairs |= texts(3 * ROWS, seed=1) | {"text_ids": torch.arange(3 * ROWS) % 13}
    if name == "joint":
        return {"pairs": pairs, "sentences": texts(2 * ROWS, seed=3)}
    return pairs


def local_share(batch: dict, name: str, rank: int, world_size: int) -> dict:
    if name == "joint":
        return {
            "pairs": local_share(batch["pairs"], "clip", rank, world_size),
            "sentences": rows_of(batch["sentences"], 2, rank, world_size),
        }
    views = OBJECTIVES[name].num_views if name in SENTENCE_ONLY else 1
    return rows_of(batch, views, rank, world_size)


def rows_of(batch: dict, views: int, rank: int, world_size: int) -> dict:
    items = torch.arange(ROWS).tensor_split(world_size)[rank]
    if views == 1:  # texts may have several neighbouring rows an item
        return {key: value.unflatten(0, (ROWS, -1))[items].flatten(0, 1) for key, value in batch.items()}
    return {key: value.unflatten(0, (views, ROWS))[:, items].flatten(0, 1) for key, value in batch.items()}


def run_case(accelerator: Accelerator, name: str, dropout: float, how: str) -> dict[str, torch.Tensor]:
    """Loss and gradients of a case: `plain`, `cached`, or `parts` (micro-batches with all graphs held)."""
    objective = OBJECTIVES[name]
    model = accelerator.prepare(build_model(name, dropout))
    communicated: list[int] = []
    if isinstance(model, DistributedDataParallel):
        model.register_comm_hook(communicated, counted_allreduce)
    batch = local_share(joined_batch(name), name, accelerator.process_index, accelerator.num_processes)
    torch.manual_seed(11 + accelerator.process_index)
    if how == "cached":
        output = cached_backward(accelerator, objective, model, batch, MICRO)
    elif how == "plain":
        output = objective(model, batch)
        accelerator.backward(output.loss)
    else:
        embeds = [objective.encode(model, part) for part in objective.micro_batches(batch, MICRO)]
        joined = {
            key: torch.cat([e[key] for e in embeds]) if embeds[0][key].ndim else embeds[0][key] for key in embeds[0]
        }
        output = objective.loss(joined)
        accelerator.backward(output.loss)
    named = accelerator.unwrap_model(model).named_parameters()
    gradients = {key: parameter.grad for key, parameter in named}
    return {"loss": output.loss.detach(), "communicated": torch.tensor(sum(communicated)), **gradients}


def run_steps(accelerator: Accelerator, name: str, folder: Path) -> dict[str, torch.Tensor]:
    """Weights after some steps of a phase that is built from options, on a model with a `logit_bias`, a SigLIP, say."""
    batch_size = ROWS // accelerator.num_processes
    training = TrainingArguments(batch_size=batch_size, learning_rate=1e-2, adam_epsilon=1e-5, output_dir=str(folder))
    contrastive = ContrastiveArguments(model=str(folder / "siglip"), objective=name)  # type: ignore[arg-type]
    pairs = PairArguments(dataset=["unused"], on_bad_item="error")
    rows = [{"id": str(row), "text": "a b", "image": Image.new("RGB", (8, 8))} for row in range(ROWS)]
    options = (TextModelArguments(max_length=8), pairs, contrastive, SentenceArguments(), LoraArguments())
    phase = build_pair_phase(accelerator, training, *options, Dataset.from_list(rows), None)
    phase.model.text_model.eval()  # without dropout
    step = TrainingStep(accelerator, phase.model, phase.objective, training, STEPS)
    step.model.eval()
    batch = local_share(joined_batch("clip"), "clip", accelerator.process_index, accelerator.num_processes)
    for _ in range(STEPS):
        output, _, _ = step({key: value.clone() for key, value in batch.items()})
    weights = accelerator.unwrap_model(step.model).state_dict()
    return {"loss": output.loss.detach(), **{key: value.clone() for key, value in weights.items()}}


def counted_allreduce(counts: list[int], bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """What DistributedDataParallel does by itself, with the numbers of gradients that travel noted."""
    counts.append(bucket.buffer().numel())
    return default_hooks.allreduce_hook(None, bucket)


def run_all(accelerator: Accelerator) -> dict[str, dict[str, torch.Tensor]]:
    results = {}
    for name in OBJECTIVES:
        for dropout, how in ((0.0, "plain"), (0.0, "cached"), (0.2, "parts"), (0.2, "cached")):
            results[f"{name} {dropout} {how}"] = run_case(accelerator, name, dropout, how)
    return results


def main() -> None:
    torch.set_num_threads(1)
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[ddp])
    folder = Path(sys.argv[1])
    results = run_all(accelerator)
    for name in WITH_BIAS:
        results[f"{name} with a bias"] = run_steps(accelerator, name, folder)
    torch.save(results, folder / f"rank{accelerator.process_index}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main()
