"""aiSFX (Ma and Lerch 2022), a convolutional encoder of sound effects on log-mel spectrograms.

Ma, A. B. and Lerch, A.: Representation Learning for the Automatic Indexing of Sound Effects Libraries, ISMIR 2022.

Shapes: B batch, N blocks of a clip, M blocks of the batch that hold sound, F bands, H hidden.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_aisfx import AisfxConfig


class AisfxConvBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm and ReLU, then maximum pooling over squares of `pool` x `pool`."""

    def __init__(self, in_channels: int, out_channels: int, pool: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.pool = pool

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(M, channels, frames, bands) -> (M, out_channels, frames / pool, bands / pool)."""
        states = torch.relu(self.bn1(self.conv1(states)))
        states = torch.relu(self.bn2(self.conv2(states)))
        return nn.functional.max_pool2d(states, self.pool) if self.pool > 1 else states


class AisfxModel(PreTrainedModel):
    """Audio tower of sound effects: blocks of a spectrogram -> their vectors, and the mean of those.

    Takes what `LogMelFeatureExtractor.from_preset("aisfx")` makes. A clip is cut into overlapping blocks of
    `block_frames`; a last block that the clip does not fill does not count, except in a clip that is shorter than one
    block. The end of a clip is its last frame that is not zero: extractors pad with zeros.
    """

    config_class = AisfxConfig
    base_model_prefix = "aisfx"
    main_input_name = "input_features"
    input_modalities = ("audio",)

    def __init__(self, config: AisfxConfig):
        super().__init__(config)
        widths = [config.hidden_size // share for share in (8, 4, 2, 1)]
        self.blocks = nn.ModuleList(
            AisfxConvBlock(before, after, pool)
            for before, after, pool in zip([1, *widths], widths, (2, 2, 2, 1), strict=False)
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, nonlinearity="relu")

    def forward(
        self, input_features: torch.Tensor | None = None, return_dict: bool | None = None
    ) -> BaseModelOutputWithPooling | tuple[torch.Tensor, ...]:
        """Encode spectrograms.

        Args:
            input_features: Log-mel spectrograms of shape (B, 1, frames, F) or (B, frames, F).
            return_dict: Whether to return a `ModelOutput` rather than a tuple.

        Returns:
            Output with `last_hidden_state` of shape (B, N, H), zeros for blocks that do not count, and `pooler_output`
            of shape (B, H), the mean of those that do.

        Raises:
            ValueError: If the input is not a batch of spectrograms with the number of bands of the config.
        """
        if input_features is None or input_features.shape[-1] != self.config.num_mel_bins:
            shape = None if input_features is None else tuple(input_features.shape)
            raise ValueError(f"input_features must be (B, frames, {self.config.num_mel_bins}), got {shape}")
        spectrograms = input_features.flatten(0, -3) if input_features.ndim == 4 else input_features
        blocks, counts = self._cut(spectrograms)  # (B, N, block_frames, F), (B, N)
        states = blocks.new_zeros(*counts.shape, self.config.hidden_size)
        states[counts] = self._encode(blocks[counts]).to(states.dtype)
        pooled = states.sum(dim=1) / counts.sum(dim=1, keepdim=True)  # (B, H)
        outputs = BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)
        return outputs.to_tuple() if return_dict is False else outputs

    def _cut(self, spectrograms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, frames, F) -> blocks (B, N, block_frames, F), and which of them count (B, N)."""
        length, hop = self.config.block_frames, self.config.block_hop
        positions = torch.arange(1, spectrograms.shape[1] + 1, device=spectrograms.device)
        ends = (spectrograms.ne(0).any(dim=2) * positions).amax(dim=1)  # (B,) frames of each clip
        missing = max(0, length - spectrograms.shape[1])
        padded = nn.functional.pad(spectrograms, (0, 0, 0, missing))
        blocks = padded.unfold(1, length, hop).transpose(2, 3)  # (B, N, block_frames, F)
        starts = torch.arange(blocks.shape[1], device=blocks.device) * hop
        is_first = starts == 0
        return blocks, (starts + length <= ends[:, None]) | is_first

    def _encode(self, blocks: torch.Tensor) -> torch.Tensor:
        """(M, block_frames, F) -> (M, H)."""
        states = blocks[:, None]
        for block in self.blocks:
            states = block(states)  # (M, channels, frames', bands')
        return states.mean(dim=3).amax(dim=2)


__all__ = ["AisfxModel"]
