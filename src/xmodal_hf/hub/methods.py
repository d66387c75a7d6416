"""Sentences and citations of a card for the methods beside the loss, each known by an option of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """A method of training.

    Attributes:
        option: Option of the recipe, or note of the run; the method was used where its value counts.
        counts: Function that tells whether a value means that the method was used; by default each value does that is
            neither null, 0 nor empty.
        sentence: Sentence of the card, with {} for the value. It is empty if the description of the data or of the
            phase already says it.
        citation: BibTeX entry.
    """

    option: str
    sentence: str
    citation: str
    counts: Callable[[Any], bool] = bool


METHODS = (
    Method(
        "paraphrases",
        "",
        """@article{huang2024llm2clip,
  title={{LLM2CLIP}: Powerful Language Model Unlocks Richer Visual Representation},
  author={Huang, Weiquan and Wu, Aoqi and Yang, Yifan and others},
  journal={arXiv preprint arXiv:2411.04997},
  year={2024}
}""",
    ),
    Method(
        "captions_per_item",
        "{} captions of each item were its positives in every step.",
        """@inproceedings{zheng2024dreamlip,
  title={{DreamLIP}: Language-Image Pre-training with Long Captions},
  author={Zheng, Kecheng and Zhang, Yifei and Wu, Wei and others},
  booktitle={European Conference on Computer Vision},
  year={2024}
}""",
        counts=lambda value: value is not None and value > 1,
    ),
    Method(
        "matryoshka_dims",
        "The loss was also taken of the first {} dimensions, so that vectors can be cut there.",
        """@inproceedings{kusupati2022matryoshka,
  title={Matryoshka Representation Learning},
  author={Kusupati, Aditya and Bhatt, Gantavya and Rege, Aniket and others},
  booktitle={Advances in Neural Information Processing Systems},
  year={2022}
}""",
    ),
    Method(
        "negative_text_column",
        "Negative captions (column {}) were further texts in the loss of items over texts, and positives of none.",
        """@inproceedings{yuksekgonul2023when,
  title={When and Why Vision-Language Models Behave like Bags-of-Words, and What to Do About It?},
  author={Yuksekgonul, Mert and Bianchi, Federico and Kalluri, Pratyusha and Jurafsky, Dan and Zou, James},
  booktitle={International Conference on Learning Representations},
  year={2023}
}""",
    ),
    Method(
        "stretched_positions",
        "The positions of the text tower were stretched from {}, the first 20 kept as they were.",
        """@inproceedings{zhang2024longclip,
  title={{Long-CLIP}: Unlocking the Long-Text Capability of {CLIP}},
  author={Zhang, Beichen and Zhang, Pan and Dong, Xiaoyi and Zang, Yuhang and Wang, Jiaqi},
  booktitle={European Conference on Computer Vision},
  year={2024}
}""",
    ),
    Method(
        "lora_rank",
        "",
        """@inproceedings{hu2022lora,
  title={{LoRA}: Low-Rank Adaptation of Large Language Models},
  author={Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean and
          Wang, Lu and Chen, Weizhu},
  booktitle={International Conference on Learning Representations},
  year={2022}
}""",
    ),
    Method(
        "text_prefix",
        "The instruction `{}` came before each text.",
        """@inproceedings{su2023one,
  title={One Embedder, Any Task: Instruction-Finetuned Text Embeddings},
  author={Su, Hongjin and Shi, Weijia and Kasai, Jungo and others},
  booktitle={Findings of the Association for Computational Linguistics: ACL 2023},
  year={2023}
}""",
    ),
    Method(
        "bidirectional_attention",
        "The tokens of the language model saw those behind them too.",
        """@inproceedings{behnamghader2024llm2vec,
  title={{LLM2Vec}: Large Language Models Are Secretly Powerful Text Encoders},
  author={BehnamGhader, Parishad and Adlakha, Vaibhav and Mosbach, Marius and Bahdanau, Dzmitry and Chapados, Nicolas
          and Reddy, Siva},
  booktitle={Conference on Language Modeling},
  year={2024}
}""",
    ),
)


def methods_of(recipe: Mapping[str, Any]) -> Iterator[Method]:
    """The methods that a run used, by its recipe; recipes of before a method have no such option."""
    return (method for method in METHODS if method.option in recipe and method.counts(recipe[method.option]))


def describe_methods(recipe: Mapping[str, Any]) -> str:
    """Sentences about the methods of a run beside its loss; empty if there are none."""
    sentences = (
        method.sentence.format(_shown(recipe[method.option])) for method in methods_of(recipe) if method.sentence
    )
    return " ".join(sentences)


def _shown(value: Any) -> str:
    """The value in one line."""
    return (", ".join(map(str, value)) if isinstance(value, list) else str(value)).replace("\n", "\\n")
