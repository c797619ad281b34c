"""How far a picture's parts are from any that other pictures hold nearby. No torch.

H, W pixels of luma.
"""

import numpy as np

CELL = 8  # pixels at half the size: a macroblock
REACH, STEP = 8, 4  # pixels at half the size, to either side and from one place to the next


def halved(luma: np.ndarray) -> np.ndarray:
    """Half the size, by means of four pixels: (H, W) to (H/2, W/2) float32."""
    wide = luma.astype(np.float32)
    return (wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2]) / 4


def farness(picture: np.ndarray, references: list[np.ndarray]) -> np.ndarray:
    """Mean grey levels from each cell to the nearest place within REACH: (H/16, W/16).

    Args:
        picture: halved, of sides that are multiples of CELL.
        references: halved pictures of the same size.
    """
    height, width = picture.shape
    shape = (height // CELL, CELL, width // CELL, CELL)
    nearest = np.full((height // CELL, width // CELL), np.inf, np.float32)
    for reference in references:
        padded = np.pad(reference, REACH, mode="edge")
        for down in range(0, 2 * REACH + 1, STEP):
            for across in range(0, 2 * REACH + 1, STEP):
                moved = padded[down : down + height, across : across + width]
                apart = np.abs(picture - moved).reshape(shape)
                np.minimum(nearest, apart.mean((1, 3)), out=nearest)
    return nearest
