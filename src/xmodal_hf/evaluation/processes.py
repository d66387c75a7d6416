"""Evaluation in several processes: the main one measures, and all of them embed.

Shapes: n items, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from operator import length_hint
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ..messages import progress_bar
from .embed import Embedder, Modality, WrappedEmbedder

# Number of batches that each process embeds between two exchanges.
_BATCHES_AT_ONCE = 8
_SECONDS_BEFORE_BAR = 2.0


class SharedEmbedder(WrappedEmbedder):
    """An embedder whose work all processes share. The main process uses it as any other; the others `serve`.

    Pictures and sounds are cut into the batches that one process would make, so their embeddings are the same to the
    bit; texts of similar length are batched with other neighbours, which changes them by rounding.

    Args:
        embedder: Embedder of this process; all processes must have the same model.
        state: State of the processes.
        batch_size: Number of images or audio clips per batch, the same as the embedder's.
    """

    def __init__(self, embedder: Embedder, state: PartialState, batch_size: int, *, of_text_tower: bool = False):
        super().__init__(embedder)
        self._state, self._batch_size = state, batch_size
        self._of_text_tower = of_text_tower

    @property
    def text_tower(self) -> Embedder:
        if self._embedder.text_tower is self._embedder:
            return self
        return SharedEmbedder(self._embedder, self._state, self._batch_size, of_text_tower=True)

    def encode_text(self, texts: Sequence[str], normalize: bool = True) -> np.ndarray:
        if isinstance(texts, str) or len(texts) == 0:
            return self._embedder.encode_text(texts, normalize)  # the embedder raises the error
        # Texts are distributed by length, so that all processes have equal work.
        order = np.argsort([-len(text) for text in texts], kind="stable")
        hands = [order[start :: self._state.num_processes] for start in range(self._state.num_processes)]
        parts = self._ask("text", [[texts[index] for index in hand] for hand in hands], normalize)
        embeds = np.empty((len(texts), parts[0].shape[1]), dtype=np.float32)
        for hand, part in zip([hand for hand in hands if len(hand)], parts, strict=True):
            embeds[hand] = part
        return embeds

    def serve(self) -> None:
        """Embed what the main process hands out, until it stops."""
        while True:
            question: list[Any] = [None]
            broadcast_object_list(question)
            if question[0] is None:
                return
            self._answer(*question[0])

    def stop(self) -> None:
        """Let the other processes end."""
        broadcast_object_list([None])

    def _encode_media(self, modality: Modality, items: Iterable[Any]) -> np.ndarray:
        """(n, D): a stream in portions, so that memory holds few of its items."""
        processes, stream = self._state.num_processes, iter(items)
        parts: list[np.ndarray] = []
        total = length_hint(items) or None
        with progress_bar(total=total, desc=f"embedding {modality}s", unit=" items", delay=_SECONDS_BEFORE_BAR) as bar:
            while portion := list(islice(stream, processes * _BATCHES_AT_ONCE * self._batch_size)):
                batches = -(-len(portion) // self._batch_size)
                ends = [-(-batches * (process + 1) // processes) * self._batch_size for process in range(processes)]
                hands = [portion[start:end] for start, end in zip([0, *ends], ends, strict=False)]
                parts += self._ask(modality, hands, True)
                bar.update(len(portion))
        if not parts:
            raise ValueError(f"there is no {modality} to embed")
        return np.concatenate(parts)

    def _ask(self, modality: str, hands: list[list[Any]], normalize: bool) -> list[np.ndarray]:
        """Embeddings of the items of each process, without the processes that get no items."""
        question = (modality, hands, normalize, self._of_text_tower)
        broadcast_object_list([question])
        answers = self._answer(*question)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return [answer for answer in answers if answer is not None]

    def _answer(self, modality: str, hands: list[list[Any]], normalize: bool, of_text_tower: bool) -> list[Any]:
        """Embed this process's share; return what all processes answer: embeddings, None where a share is empty, or
        the error."""
        embedder = self._embedder.text_tower if of_text_tower else self._embedder
        mine = hands[self._state.process_index]
        answer: Any = None
        try:
            if mine:
                answer = (
                    embedder.encode_text(mine, normalize)
                    if modality == "text"
                    else embedder.encode_items(modality, mine)
                )
        # the main process raises the error: raised here alone, it would leave the others waiting
        except Exception as error:
            answer = error
        return gather_object([answer])


@contextmanager
def shared(embedder: Embedder, state: PartialState, batch_size: int) -> Iterator[Embedder | None]:
    """Give the main process an embedder whose work all processes share, and the others, when that is done, None."""
    if state.num_processes == 1:
        yield embedder
        return
    common = SharedEmbedder(embedder, state, batch_size)
    if not state.is_main_process:
        common.serve()
        yield None
        return
    try:
        yield common
    finally:
        common.stop()
