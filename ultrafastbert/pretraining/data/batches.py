"""The order in which rows are trained on: a pure function of the seed and the number of rows seen so far.

Nothing has to be saved to go on where a run was stopped, and a run on several processes sees the same rows in the
same order as a run on one.
"""

import numpy as np
import torch


class RowOrder:
    """Rows of a token file, epoch after epoch, each epoch shuffled anew.

    Args:
        rows: `(rows, sequence_length)` of an unsigned integer type; may be memory-mapped.
        seed: of the shuffling.
        shuffle: False keeps the file's own order, for files that were ordered on purpose.
    """

    def __init__(self, rows: np.ndarray, seed: int, shuffle: bool = True):
        self.rows, self.seed, self.shuffle = rows, seed, shuffle
        self._epoch, self._permutation = None, None

    def read(self, start: int, count: int) -> torch.Tensor:
        """Rows `start` to `start + count` of the endless sequence: int64 `(count, sequence_length)`."""
        indices = [self._row(position) for position in range(start, start + count)]
        return torch.from_numpy(self.rows[indices].astype(np.int64))

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, len(self.rows))
        if not self.shuffle:
            return place
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._permutation = generator.permutation(len(self.rows)).astype(np.uint32)
            self._epoch = epoch
        return int(self._permutation[place])
