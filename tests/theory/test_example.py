"""The numbers that the room's docstring promises."""

import pytest

from layerscope import theory


def test_the_example_of_the_room():
    p = theory.predict("group:size=8", depth=20, width=128, positions=64)
    assert (p.cosine, p.cosine_pooled, p.rate) == (
        pytest.approx(0.85, abs=0.006),
        pytest.approx(0.996, abs=0.0006),
        pytest.approx(1.048, abs=0.0006),
    )
    assert theory.predict("batch", depth=20, positions=64, batch_size=4).batch_noise == pytest.approx(8.9, abs=0.05)
    assert theory.predict("weight", depth=9, topology="post").growth == "exponential"
