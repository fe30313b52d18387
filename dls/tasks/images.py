"""Images and labels as arrays, and the error of what is neither."""

import numpy as np
from numpy.typing import NDArray

ImagesU8 = NDArray[np.uint8]  # [N, C, H, W]
ImagesF32 = NDArray[np.float32]  # [N, C, H, W]
Labels = NDArray[np.int64]  # [N]
Split = tuple[ImagesU8, Labels]


class DataError(ValueError):
    """Data is missing or wrong; the message is one line and says what to do."""
