"""A small LSTM that reads an image row by row."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["RowReader", "row_reader"]


class RowReader(nn.Module):
    """One LSTM over the rows from top to bottom, a Linear head on its last state.

    Args:
        hidden: width of the state.
        pixels: in a row.
        classes: width of the output.
    """

    def __init__(self, hidden: int, pixels: int = 28, classes: int = 10) -> None:
        super().__init__()
        self.lstm = nn.LSTM(pixels, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        """[n, 1, rows, pixels] → scores [n, classes]."""
        states, _ = self.lstm(images.squeeze(1))
        return self.head(states[:, -1])


def row_reader() -> nn.Module:
    """28 → 128 → 10, 82,186 parameters."""
    return RowReader(128)
