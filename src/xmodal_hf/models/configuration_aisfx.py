"""Configuration of aiSFX, the audio tower of Ma and Lerch 2022."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class AisfxConfig(PreTrainedConfig):
    r"""Configuration of [`AisfxModel`].

    Args:
        hidden_size: Width of the vectors. The four blocks of convolutions have an eighth, a quarter, a half and all of
            it as channels.
        num_mel_bins: Number of mel bands of the spectrograms.
        block_frames: Number of frames of a spectrogram that are encoded at a time, about 2.3 s.
        block_hop: Number of frames from the beginning of one block to that of the next.
    """

    model_type = "aisfx"

    hidden_size: int = 512
    num_mel_bins: int = 96
    block_frames: int = 100
    block_hop: int = 50

    def validate_sizes(self) -> None:
        """Reject widths that the blocks cannot share, and blocks that are too short or leave frames out."""
        if self.hidden_size < 8 or self.hidden_size % 8:
            raise ValueError(f"hidden_size must be a multiple of 8, got {self.hidden_size}")
        if self.block_frames < 8 or self.num_mel_bins < 8:
            raise ValueError(
                f"block_frames and num_mel_bins must be at least 8, which three poolings halve, got "
                f"{self.block_frames} and {self.num_mel_bins}"
            )
        if not 1 <= self.block_hop <= self.block_frames:
            raise ValueError(f"block_hop must lie between 1 and block_frames, got {self.block_hop}")


__all__ = ["AisfxConfig"]
