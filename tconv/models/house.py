"""Draws the picture that the gallery shows by default: ``python -m tconv.models.house``.

Flat areas, edges in every direction, a fine texture and a soft gradient: what filters tell apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tconv.extras import extra
from tconv.models.gallery import PICTURE

SIZE = 128  # pixels a side


def house() -> NDArray[np.uint8]:
    """(128, 128, 3): a house on a lawn under an evening sky, by arithmetic alone."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    sky = np.stack([0.45 + 0.5 * y, 0.55 + 0.25 * y, 0.85 - 0.2 * y], -1)
    sun = np.hypot(x - 0.8, y - 0.2)[..., None]
    sky += np.exp(-((sun / 0.12) ** 2)) * (1.0, 0.9, 0.4)
    lawn = y > 0.78
    blades = 0.12 * np.sin(90 * x + 12 * np.sin(40 * y))
    sky[lawn] = np.stack([0.2 + blades, 0.5 + blades, 0.2 + 0 * blades], -1)[lawn]
    wall = (np.abs(x - 0.42) < 0.24) & (y > 0.46) & (y < 0.86)
    sky[wall] = (0.85, 0.78, 0.66)
    joints = ((x * 20 + (y * 20).astype(int) % 2 * 0.5) % 1) < 0.1
    bricks = wall & ((((y * 40) % 2) < 0.35) | joints)
    sky[bricks] = (0.7, 0.5, 0.42)
    roof = (y > 0.2) & (y < 0.46) & (np.abs(x - 0.42) < (y - 0.2) * 1.2)
    sky[roof] = (0.55, 0.16, 0.14)
    door = (np.abs(x - 0.42) < 0.06) & (y > 0.62) & (y < 0.86)
    sky[door] = (0.25, 0.16, 0.1)
    for centre in (0.28, 0.56):
        pane = (np.abs(x - centre) < 0.055) & (np.abs(y - 0.58) < 0.055)
        sky[pane] = (0.95, 0.9, 0.5)
        cross = pane & ((np.abs(x - centre) < 0.008) | (np.abs(y - 0.58) < 0.008))
        sky[cross] = (0.2, 0.15, 0.1)
    return (sky.clip(0, 1) * 255).astype(np.uint8)


if __name__ == "__main__":
    with extra("train"):
        from PIL import Image

    Image.fromarray(house()).save(PICTURE)
