"""Registry of the losses: each entry holds what objectives, options, cards and citations need to know about it.

A new loss is a function, in a file beside this one or in anybody's script, and one entry in `LOSSES` (of pairs) or
`SENTENCE_LOSSES` (of sentences). Its name is then a choice of `--objective` or `--sentence_objective`, its weights are
options, and a card describes and cites it. This module imports no torch, because `--help` and cards read it: functions
of the package are named by their address, "module:function", and imported when they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    # The loss, 0-dim with gradient, and named 0-dim tensors without gradient to log.
    LossFunction = Callable[..., tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Weight:
    """Number that a loss takes as a keyword argument, and an option of the training scripts under the same name.

    Args:
        default: Value of the weight if the user does not set it.
        description: Help text of the option.
        label: Name among the hyperparameters of a model card. If None, cards do not list it.
        needs_triplets: Whether the weight concerns hard negatives, which only `--triplets` have.

    Example:
        >>> from xmodal_hf.losses import Weight
        >>> Weight(0.25, "Weight of the consistency term.").default
        0.25
    """

    default: float
    description: str
    label: str | None = None
    needs_triplets: bool = False


@dataclass(frozen=True)
class _Entry:
    function: str | LossFunction
    description: str
    card: str
    weights: Mapping[str, Weight] = field(default_factory=dict)
    citations: tuple[str, ...] = ()

    def load(self) -> LossFunction:
        """Return the function, imported where it is given by its address."""
        if not isinstance(self.function, str):
            return self.function
        module, _, name = self.function.partition(":")
        return getattr(import_module(module), name)

    def fill_weights(self, given: Mapping[str, float]) -> dict[str, float]:
        """Return all weights: those that are given, and the defaults of the others.

        Raises:
            ValueError: If the loss has no weight of a given name.
        """
        unknown = [name for name in given if name not in self.weights]
        if unknown:
            known = ", ".join(self.weights) or "none"
            raise ValueError(f"the loss has no weight {unknown[0]!r}; its weights are: {known}")
        return {name: given.get(name, weight.default) for name, weight in self.weights.items()}


@dataclass(frozen=True)
class Loss(_Entry):
    """Contrastive loss of image-text or audio-text pairs.

    Args:
        function: Loss function, or its address "module:function". It is called as `function(modality_embeds,
            text_embeds, logit_scale, *, group_ids, **weights)` with (B, D) unit-norm embeddings of this process, the
            exponentiated 0-dim scale, and (B,) integers that are equal for pairs of one item or None. If `initial_bias`
            is given, `logit_bias`, 0-dim, is a further keyword argument. It returns the loss of the global batch and a
            dictionary of 0-dim detached tensors to log.
        description: Description of the loss in the help text of `--objective`.
        card: Noun phrase for the loss in a model card, with a capital letter.
        weights: Weights of the loss, by name.
        citations: BibTeX entries.
        scale_bounds: Bounds within which the exponentiated scale is kept after each step. If None, it is not bounded.
        initial_scale: Exponentiated scale of a new model. If None, that of CLIP.
        takes_several_texts: Whether `text_embeds` may have several neighbouring rows for each item, and whether the
            function takes negative captions with the keyword arguments `extra_texts`, `extra_text_weight`, `text_ids`
            and `extra_text_ids`, as `clip_loss` describes them.
        initial_bias: Bias of a new model. If None, the loss takes no bias, and models need none.

    Example:
        >>> from xmodal_hf.losses import LOSSES, Loss, clip_loss
        >>> def plain(modality_embeds, text_embeds, logit_scale, *, group_ids=None):
        ...     return clip_loss(modality_embeds, text_embeds, logit_scale), {}
        >>> LOSSES["plain"] = Loss(plain, "CLIP's without soft targets", "CLIP's loss, each pair an item of its own")
        >>> LOSSES["plain"].needs_bias, LOSSES["plain"].scale_bounds
        (False, (1.0, 100.0))
        >>> del LOSSES["plain"]
    """

    # CLIP keeps the scale at or below 100 "to prevent training instability" (Radford et al. 2021, section 2.5), and the
    # reference implementation at or above 1.
    scale_bounds: tuple[float, float] | None = (1.0, 100.0)
    takes_several_texts: bool = False
    initial_scale: float | None = None
    initial_bias: float | None = None

    @property
    def needs_bias(self) -> bool:
        """Whether the model's `logit_bias` takes part in the loss."""
        return self.initial_bias is not None


@dataclass(frozen=True)
class SentenceLoss(_Entry):
    """Contrastive loss of sentences, for phase 1 and for joint training.

    Args:
        function: Loss function, or its address "module:function". It is called as `function(anchor, positive,
            hard_negative, **weights)` with (B, D) unit-norm embeddings of this process; `hard_negative` is None unless
            the data are triplets. With `takes_text_ids`, the keyword argument `text_ids` holds the (V, B) ids of the
            texts of anchors, positives and hard negatives, as `simcse_loss` describes them. It returns the loss of the
            global batch and a dictionary of 0-dim detached tensors to log.
        description: Description of the loss in the help text of `--sentence_objective`.
        card: Noun phrase for the loss in a model card, for plain sentences.
        weights: Weights of the loss, by name.
        citations: BibTeX entries.
        supervised_card: Noun phrase for triplets. If None, `card`.
        paraphrases_card: Noun phrase for captions of one item. If None, `card`.
        takes_text_ids: Whether the function recognises equal texts, and rows without a hard negative, by their ids.

    Example:
        >>> from xmodal_hf.losses import SENTENCE_LOSSES
        >>> SENTENCE_LOSSES["simcse"].fill_weights({"temperature": 0.1})
        {'temperature': 0.1, 'hard_negative_weight': 0.0}
    """

    supervised_card: str | None = None
    paraphrases_card: str | None = None
    takes_text_ids: bool = False


_CLIP = """@inproceedings{radford2021learning,
  title={Learning Transferable Visual Models From Natural Language Supervision},
  author={Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and Goh, Gabriel and
          Agarwal, Sandhini and Sastry, Girish and Askell, Amanda and Mishkin, Pamela and Clark, Jack and
          Krueger, Gretchen and Sutskever, Ilya},
  booktitle={International Conference on Machine Learning},
  year={2021}
}"""

_CYCLIP = """@inproceedings{goel2022cyclip,
  title={{CyCLIP}: Cyclic Contrastive Language-Image Pretraining},
  author={Goel, Shashank and Bansal, Hritik and Bhatia, Sumit and Rossi, Ryan A. and Vinay, Vishwa and Grover, Aditya},
  booktitle={Advances in Neural Information Processing Systems},
  year={2022}
}"""

_SIGLIP = """@inproceedings{zhai2023sigmoid,
  title={Sigmoid Loss for Language Image Pre-Training},
  author={Zhai, Xiaohua and Mustafa, Basil and Kolesnikov, Alexander and Beyer, Lucas},
  booktitle={International Conference on Computer Vision},
  year={2023}
}"""

_SIMCSE = """@inproceedings{gao2021simcse,
  title={{SimCSE}: Simple Contrastive Learning of Sentence Embeddings},
  author={Gao, Tianyu and Yao, Xingcheng and Chen, Danqi},
  booktitle={Conference on Empirical Methods in Natural Language Processing},
  year={2021}
}"""

LOSSES: dict[str, Loss] = {
    "clip": Loss(  # Radford et al. 2021, figure 3
        "xmodal_hf.losses.clip:clip_loss_with_logs",
        description="CLIP's and CLAP's symmetric cross-entropy",
        card="The symmetric contrastive loss of CLIP and CLAP",
        takes_several_texts=True,
        citations=(_CLIP,),
    ),
    "cyclip": Loss(  # Goel et al. 2022, section 3
        "xmodal_hf.losses.cyclic:cyclip_loss_with_logs",
        description="CyCLIP's, which adds in-modal and cross-modal consistency",
        card="CyCLIP's contrastive loss with in-modal and cross-modal consistency",
        weights={
            "in_modal_weight": Weight(
                0.25, "CyCLIP: weight of the in-modal consistency.", label="weight of the in-modal consistency"
            ),
            "cross_modal_weight": Weight(
                0.25, "CyCLIP: weight of the cross-modal consistency.", label="weight of the cross-modal consistency"
            ),
        },
        citations=(_CLIP, _CYCLIP),
    ),
    "siglip": Loss(  # Zhai et al. 2023, eq. 1, and section 3.2 for the initial values
        "xmodal_hf.losses.sigmoid:sigmoid_loss_with_logs",
        description="SigLIP's pairwise sigmoid loss",
        card="SigLIP's pairwise sigmoid loss",
        takes_several_texts=True,
        citations=(_SIGLIP,),
        scale_bounds=None,  # the published scales lie above CLIP's bound
        initial_scale=10.0,
        initial_bias=-10.0,
    ),
}

SENTENCE_LOSSES: dict[str, SentenceLoss] = {
    "simcse": SentenceLoss(  # Gao et al. 2021, eq. 4 and 5
        "xmodal_hf.losses.simcse:simcse_loss_with_logs",
        description="SimCSE's cross-entropy over the sentences of the batch",
        card="unsupervised SimCSE (each sentence twice, two dropout masks)",
        supervised_card="supervised SimCSE (anchor, positive, hard negative)",
        paraphrases_card="supervised SimCSE (two captions of one item as a pair)",
        takes_text_ids=True,
        weights={
            "temperature": Weight(0.05, "Divisor of the cosines.", label="temperature"),
            "hard_negative_weight": Weight(
                0.0, "Constant added to the logit of each anchor's own hard negative.", needs_triplets=True
            ),
        },
        citations=(_SIMCSE,),
    ),
}


def find_loss(name: str) -> Loss:
    """Return the loss of pairs of a name.

    Raises:
        ValueError: If there is no loss of that name.
    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss_type {name!r}: pass {join_choices(LOSSES)}")
    return LOSSES[name]


def find_sentence_loss(name: str) -> SentenceLoss:
    """Return the loss of sentences of a name.

    Raises:
        ValueError: If there is no loss of that name.
    """
    if name not in SENTENCE_LOSSES:
        raise ValueError(f"unknown loss_type {name!r}: pass {join_choices(SENTENCE_LOSSES)}")
    return SENTENCE_LOSSES[name]


def join_choices(names: Iterable[str]) -> str:
    """Return names as a list in a sentence.

    Example:
        >>> join_choices(["clip", "cyclip", "siglip"])
        'clip, cyclip or siglip'
    """
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
