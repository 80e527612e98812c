"""A cut plan of one's own, as the docs show it: a denoiser of another class, and where it can be cut."""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from hybridiff.models.cuts import chain, register_plan


class PixelMixer(ModelMixin, ConfigMixin):
    """Linear layers over the channels of latents (rows, channels, height, width), conditioned on a prompt and a timestep."""

    @register_to_config
    def __init__(self, channels: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(layers))

    def forward(self, hidden_states: Tensor, timestep: Any, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        scale = torch.as_tensor(timestep, dtype=torch.float32) / 1000
        hidden_states = hidden_states + encoder_hidden_states[..., None, None] * (1 - scale)
        for mixer in self.mixers:
            hidden_states = mixer(hidden_states)
        return (hidden_states,)


register_plan(PixelMixer, chain("mixers"))
