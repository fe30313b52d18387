"""The types of images and labels, and the error about missing or wrong data."""

import numpy as np
from numpy.typing import NDArray

ImagesU8 = NDArray[np.uint8]
"""Raw images [N, C, H, W]."""
ImagesF32 = NDArray[np.float32]
"""Normalised images [N, C, H, W]."""
Labels = NDArray[np.int64]
"""Class numbers [N]."""
Split = tuple[ImagesU8, Labels]
"""The training or the test part of a data set."""


class DataError(ValueError):
    """Data is missing or wrong; the message is one line and says what to do."""
