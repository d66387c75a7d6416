"""An encoder for mteb 2: text, image and audio tasks of MTEB, MIEB and MAEB run on any supported model.

    import mteb
    from xmodal_hf.evaluation.mteb import MtebEncoder

    mteb.evaluate(MtebEncoder("outputs/clip"), mteb.get_tasks(["STSBenchmark", "Flickr30kT2IRetrieval"]))

Needs `pip install 'xmodal_hf[mteb]'`. Legend: n inputs, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..messages import missing_package
from .embed import Embedder
from .loading import load_embedder

try:
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.modality_collators import AudioCollator
except ModuleNotFoundError as error:
    raise missing_package(__name__, "mteb", "mteb") from error

_ORGANISATION = "xmodal_hf"  # mteb requires names of the form organisation/model, which a local folder does not have


class MtebEncoder(AbsEncoder):
    """Any model that `load_embedder` loads, as mteb's encoder.

    Args:
        model_name: Path or Hub id of the model.
        revision: Revision that is recorded with the results; the model is loaded as `load_embedder` does.
        device: Device, such as "cpu" or "cuda:1". None takes a GPU if there is one.
        embedder: Embedder that is used instead of loading `model_name`.
        kwargs: Further arguments of `load_embedder`.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        embedder: Embedder | None = None,
        **kwargs: Any,
    ) -> None:
        self.embedder = embedder or load_embedder(model_name, device=device, **kwargs)
        self.mteb_model_meta = model_meta(model_name, revision, self.embedder)

    def encode(self, inputs: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, **kwargs: Any) -> np.ndarray:
        """(n, D) unit-norm embeddings of a loader's inputs; of inputs with several modalities, the sum of theirs.

        Args:
            inputs: DataLoader whose batches have some of the columns `text`, `image`, `audio`.
            task_metadata, hf_split, hf_subset, kwargs: Arguments that mteb passes and that are not used: the models
                here take no instructions.

        Raises:
            ValueError: If the inputs have no column of a known modality, or one that the model does not take.
        """
        columns = [name for name in ("text", "image", "audio") if name in inputs.dataset.column_names]
        if not columns:
            present = ", ".join(inputs.dataset.column_names)
            raise ValueError(f"the inputs have none of the columns text, image, audio; they have {present}")
        embeds = [self._encode_column(inputs, column) for column in columns]
        return np.sum(embeds, axis=0)

    def _encode_column(self, inputs: Any, column: str) -> np.ndarray:
        if column == "text":
            return self.embedder.encode_text(list(_values(inputs, "text")))
        return {"image": self._encode_images, "audio": self._encode_sounds}[column](inputs)

    def _encode_images(self, inputs: Any) -> np.ndarray:
        return self.embedder.encode_image(_values(inputs, "image"))

    def _encode_sounds(self, inputs: Any) -> np.ndarray:
        inputs.collate_fn = AudioCollator(target_sampling_rate=self.embedder.sampling_rate)
        return self.embedder.encode_audio(clip["array"] for clip in _values(inputs, "audio"))


def model_meta(model_name: str, revision: str | None, embedder: Embedder) -> ModelMeta:
    """Facts that mteb records about a model."""
    name = model_name if model_name.count("/") == 1 and not Path(model_name).exists() else None
    return ModelMeta(
        loader=MtebEncoder,
        name=name or f"{_ORGANISATION}/{Path(model_name).name}",
        revision=revision or "unrecorded",
        release_date=None,
        languages=None,
        n_parameters=None,
        memory_usage_mb=None,
        max_tokens=None,
        embed_dim=None,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name="cosine",
        use_instructions=False,
        training_datasets=None,
        modalities=["text"] if embedder.modality is None else ["text", embedder.modality],
    )


def _values(inputs: Any, column: str) -> Iterator[Any]:
    """The column's values one by one, whatever the loader's batch size."""
    for batch in inputs:
        yield from batch[column]
