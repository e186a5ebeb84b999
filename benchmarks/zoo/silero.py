"""Silero's voice activity detector for 16 kHz sound: convolutions over a spectrum, then an LSTM."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.filled import filled

__all__ = ["Silero", "load_silero", "silero"]

_CHUNK, _BEFORE, _PAD, _FREQUENCIES = 512, 64, 64, 129


class Silero(nn.Module):
    """Sound to the probability of speech, one for 32 ms; all chunks of a clip at once, the LSTM over them."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * _FREQUENCIES, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(_FREQUENCIES, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, sound: Tensor) -> Tensor:
        """[n, samples], a multiple of 512 → [n, samples / 512]."""
        n, samples = sound.shape
        padded = F.pad(sound, (_BEFORE, 0))
        chunks = padded.unfold(1, _BEFORE + _CHUNK, _CHUNK).reshape(-1, _BEFORE + _CHUNK)  # [n · chunks, 576]
        spectrum = self.stft_conv(F.pad(chunks[:, None], (0, _PAD), "reflect"))
        x = torch.hypot(spectrum[:, :_FREQUENCIES], spectrum[:, _FREQUENCIES:])
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(conv(x))
        states, _ = self.lstm(x.view(n, samples // _CHUNK, -1))
        return self.final_conv(F.relu(states).transpose(1, 2)).sigmoid()[:, 0]


def silero() -> nn.Module:
    """The architecture without weights worth having: 0.31 million parameters."""
    return Silero()


def load_silero(path: Path) -> nn.Module:
    """The network with the weights of silero_vad_16k.safetensors, in eval mode.

    Raises:
        DataError: another model's file.
    """
    model = silero()
    weights = {}
    for name, tensor in load_file(path).items():
        cell = name.startswith("lstm_cell.")
        weights[f"lstm.{name.removeprefix('lstm_cell.')}_l0" if cell else name] = tensor
    return filled(model, weights, path, "Silero")
