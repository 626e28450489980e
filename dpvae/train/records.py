"""Records that stay on disk, with what training asks of a tensor of codes: a batch by its positions, and all in turn.

Memory holds what is asked for and nothing else; the numbers are those of the same codes in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dpvae.data.stored import CodeShards


class StoredRecords:
    """Codes (rows, D) in shards, as tensors on ``device``."""

    def __init__(self, codes: CodeShards, device: torch.device) -> None:
        self.codes, self.device, self.shape = codes, device, codes.shape

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self._tensor(self.codes[rows.cpu().numpy()])

    def split(self, rows: int) -> Iterator[Tensor]:
        """All records, ``rows`` at a time."""
        return map(self._tensor, self.codes.split(rows))

    def cpu(self) -> StoredRecords:
        """As a tensor has it."""
        return self

    def numpy(self) -> Any:
        """The shards: slices and positions of them are arrays."""
        return self.codes

    def _tensor(self, codes: Any) -> Tensor:
        return torch.as_tensor(codes, device=self.device)
