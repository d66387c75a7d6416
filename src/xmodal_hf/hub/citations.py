"""BibTeX of what a model owes its training to: the study, and the objectives that it was trained with."""

from __future__ import annotations

STUDY = """@inproceedings{zhao2024language,
  title={On the Language Encoder of Contrastive Cross-modal Models},
  author={Zhao, Mengjie and Ono, Junya and Zhong, Zhi and Lai, Chieh-Hsin and Takida, Yuhta and Murata, Naoki and
          Liao, Wei-Hsiang and Shibuya, Takashi and Wakaki, Hiromi and Mitsufuji, Yuki},
  booktitle={Findings of the Association for Computational Linguistics: ACL 2024},
  pages={4923--4940},
  year={2024}
}"""

CLIP = """@inproceedings{radford2021learning,
  title={Learning Transferable Visual Models From Natural Language Supervision},
  author={Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and Goh, Gabriel and
          Agarwal, Sandhini and Sastry, Girish and Askell, Amanda and Mishkin, Pamela and Clark, Jack and
          Krueger, Gretchen and Sutskever, Ilya},
  booktitle={International Conference on Machine Learning},
  year={2021}
}"""

CYCLIP = """@inproceedings{goel2022cyclip,
  title={{CyCLIP}: Cyclic Contrastive Language-Image Pretraining},
  author={Goel, Shashank and Bansal, Hritik and Bhatia, Sumit and Rossi, Ryan A. and Vinay, Vishwa and Grover, Aditya},
  booktitle={Advances in Neural Information Processing Systems},
  year={2022}
}"""

SIGLIP = """@inproceedings{zhai2023sigmoid,
  title={Sigmoid Loss for Language Image Pre-Training},
  author={Zhai, Xiaohua and Mustafa, Basil and Kolesnikov, Alexander and Beyer, Lucas},
  booktitle={International Conference on Computer Vision},
  year={2023}
}"""

CLAP = """@inproceedings{wu2023large,
  title={Large-Scale Contrastive Language-Audio Pretraining with Feature Fusion and Keyword-to-Caption Augmentation},
  author={Wu, Yusong and Chen, Ke and Zhang, Tianyu and Hui, Yuchen and Berg-Kirkpatrick, Taylor and Dubnov, Shlomo},
  booktitle={International Conference on Acoustics, Speech and Signal Processing},
  year={2023}
}"""

SIMCSE = """@inproceedings{gao2021simcse,
  title={{SimCSE}: Simple Contrastive Learning of Sentence Embeddings},
  author={Gao, Tianyu and Yao, Xingcheng and Chen, Danqi},
  booktitle={Conference on Empirical Methods in Natural Language Processing},
  year={2021}
}"""

_OF_OBJECTIVE = {"clip": [CLIP], "cyclip": [CLIP, CYCLIP], "siglip": [SIGLIP]}


def citations(*, objective: str | None, modality: str | None, has_sentence_training: bool) -> list[str]:
    """Return the BibTeX entries of a model.

    Args:
        objective: `clip`, `cyclip` or `siglip`; None for a model that was not trained on pairs here.
        modality: `image`, `audio` or None.
        has_sentence_training: whether its language encoder was trained on sentences.
    """
    entries = [STUDY, *_OF_OBJECTIVE.get(objective or "", [])]
    if modality == "audio":
        entries.append(CLAP)
    if has_sentence_training:
        entries.append(SIMCSE)
    return entries
