"""What average pooling leaves of the difference between samples.

Pooling averages a feature over S positions. Between samples the cosine of features is b at any pair of positions;
within a sample it is a between positions and 1 at one position, so pooled features have second moment proportional to
a + (1 - a) / S and cosine b / (a + (1 - a) / S).

Consequence for Instance Norm: each channel of each sample is standardized over its positions, so the pooled ReLU
feature E_pos phi(xhat) depends only on the *shape* of the map's histogram. Both a and b go to 1/pi (up to 1/S), and the
pooled cosine to 1: whatever the unpooled map tells about the sample, the classifier does not see it. BatchNorm keeps
what the positions of one sample share, at most (1 - 1/pi)/S + 1/pi of it, and loses it only where S is large.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pooled_cosine(a: ArrayLike, b: ArrayLike, positions: ArrayLike) -> NDArray[np.float64]:
    """Cosine between samples after averaging over S positions: b / (a + (1 - a) / S), at most 1.

    Args:
        a: cosine of the features of one sample at two positions.
        b: cosine of the features of two samples.
        positions: S.

    Assumptions: positions exchangeable. Images are not: neighbouring pixels of one image are alike, which raises a
    and lowers the pooled cosine; real data therefore pool to somewhat smaller values.

    Source: derived here; related: Labatie et al. 2021, arXiv 2106.03743.

    >>> round(float(pooled_cosine(0.318, 0.318, 1024)), 3)
    0.998
    """
    a, b, s = (np.asarray(v, dtype=np.float64) for v in (a, b, positions))
    return np.minimum(b / (a + (1.0 - a) / s), 1.0)
