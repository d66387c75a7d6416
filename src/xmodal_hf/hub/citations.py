"""BibTeX entries of the methods of a model: the study, and the losses that it was trained with."""

from __future__ import annotations

from collections.abc import Iterable

from ..data.modalities import MODALITIES
from .card_training import TrainingRecord
from .methods import methods_of

STUDY = """@inproceedings{zhao2024language,
  title={On the Language Encoder of Contrastive Cross-modal Models},
  author={Zhao, Mengjie and Ono, Junya and Zhong, Zhi and Lai, Chieh-Hsin and Takida, Yuhta and Murata, Naoki and
          Liao, Wei-Hsiang and Shibuya, Takashi and Wakaki, Hiromi and Mitsufuji, Yuki},
  booktitle={Findings of the Association for Computational Linguistics: ACL 2024},
  pages={4923--4940},
  year={2024}
}"""


def citations(phases: Iterable[TrainingRecord], modality: str | None) -> list[str]:
    """Return the BibTeX entries of a model.

    Args:
        phases: Training phases of the model, whose losses and methods have citations of their own.
        modality: Modality that is paired with text, or None.
    """
    phases = list(phases)
    entries = [STUDY]
    entries += [entry for phase in phases if phase.pair_loss is not None for entry in phase.pair_loss.citations]
    entries += MODALITIES[modality].citations if modality is not None else ()
    entries += [entry for phase in phases if phase.sentence_loss is not None for entry in phase.sentence_loss.citations]
    entries += [method.citation for phase in phases for method in methods_of(phase.facts)]
    return list(dict.fromkeys(entries))
