"""What mean-field recursions say of a norm before a weight is drawn. Numbers in, numbers out; knows no module, no
torch.

::

    from layerscope import theory
    p = theory.predict("group:size=8", depth=20, width=128, positions=64)    # 20 layers on 8 x 8 maps
    p.cosine, p.cosine_pooled, p.rate       # 0.85 between samples, 0.996 after pooling, gradients grow 1.048 a layer
    theory.predict("batch", depth=20, positions=64, batch_size=4).batch_noise              # 8.9: the sample drowns
    theory.predict("weight", depth=9, topology="post").growth                              # 'exponential'

Sources: Lubana, Dick & Tanaka 2021, arXiv 2106.05956 (what a norm must keep: forward scale, differences between
samples, backward scale); Cho & Saul 2009 (the ReLU kernel); Yang et al. 2019, arXiv 1902.08129 (BatchNorm's gradient
growth). The finite-set recursions are derived here and tested against random networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.theory.growth import nf_stream as nf_stream
    from layerscope.theory.kernels import centred_map as centred_map
    from layerscope.theory.kernels import collapse_law as collapse_law
    from layerscope.theory.kernels import cosine_by_depth as cosine_by_depth
    from layerscope.theory.kernels import finite_set_rate as finite_set_rate
    from layerscope.theory.kernels import group_cosine_and_rate as group_cosine_and_rate
    from layerscope.theory.kernels import kappa as kappa
    from layerscope.theory.laws import covered as covered
    from layerscope.theory.padding import kept_by_layer as kept_by_layer
    from layerscope.theory.prediction import Configuration as Configuration
    from layerscope.theory.prediction import Prediction as Prediction
    from layerscope.theory.prediction import predict as predict
    from layerscope.theory.prediction import predict_many as predict_many
    from layerscope.theory.readout import pooled_cosine as pooled_cosine

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "predict": "prediction",
        "predict_many": "prediction",
        "Prediction": "prediction",
        "Configuration": "prediction",
        "kappa": "kernels",
        "centred_map": "kernels",
        "cosine_by_depth": "kernels",
        "collapse_law": "kernels",
        "finite_set_rate": "kernels",
        "group_cosine_and_rate": "kernels",
        "kept_by_layer": "padding",
        "pooled_cosine": "readout",
        "nf_stream": "growth",
        "covered": "laws",
    },
)
