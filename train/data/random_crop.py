"""Pictures shifted by a few pixels at random, so that an encoder does not learn where a pixel is.

As in the pixel experiments of OGBench and FQL: one coin decides for the whole batch, the edges are repeated,
and the first and the last row of a window are shifted alike, as are stacked frames and all cameras.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomCrop:
    """Draws and makes shifts of at most `padding` pixels, with the given probability."""

    probability: float
    padding: int

    def draw(self, batch_size: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """A batch's offsets `[B, 2]` (down, right); `padding` leaves a picture as it is."""
        coin = torch.rand(1, 1, generator=generator, device=device) < self.probability
        most = 2 * self.padding + 1
        offsets = torch.randint(most, (batch_size, 2), generator=generator, device=device)
        return torch.where(coin, offsets, self.padding)

    def apply(self, images: Mapping[str, Tensor], offsets: Tensor) -> dict[str, Tensor]:
        """Shift pictures `[2, B, H, W, C]`: padded by repeating edges, then cut out at the offsets.

        Features of a frozen backbone, which are those of whole frames, stay as they are.
        """
        return {
            name: self._shifted(pictures, offsets) if pictures.dtype is torch.uint8 else pictures
            for name, pictures in images.items()
        }

    def _shifted(self, pictures: Tensor, offsets: Tensor) -> Tensor:
        if pictures.device.type == "cpu" and bool((offsets == self.padding).all()):
            return pictures
        height, width = pictures.shape[2:4]
        down, right = (offsets - self.padding).unbind(1)
        rows = (torch.arange(height, device=pictures.device) + down[:, None]).clamp(0, height - 1)
        columns = (torch.arange(width, device=pictures.device) + right[:, None]).clamp(0, width - 1)
        which = torch.arange(len(offsets), device=pictures.device)[:, None, None]
        return pictures[:, which, rows[:, :, None], columns[:, None, :]]
