"""Neural sampling machines: multiplicative noise at every connection, which normalizes the weights by itself.

A unit with always-on noise and a threshold fires with P(z = +1) = (1 + erf(beta w.z / |w| + c)) / 2: weight
normalization for free, and an ensemble in one network. Detorakis et al. 2019, arXiv 1910.12316::

    from layerscope.methods import sampling

    net = nn.Sequential(nn.Flatten(), sampling.Binarize(), sampling.SamplingLinear(64, 100), nn.Linear(100, 10))
    sampling.initialize(net, x)                              # magnitudes and biases from one batch
    ...                                                      # train as ever; net.eval() keeps the noise
    prediction = sampling.predict(net, x, samples=100)       # mean softmax, entropy, mutual information, votes
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.methods.sampling.calibrate import initialize as initialize
    from layerscope.methods.sampling.context import centred as centred
    from layerscope.methods.sampling.context import deterministic as deterministic
    from layerscope.methods.sampling.context import folded as folded
    from layerscope.methods.sampling.context import sampling_layers as sampling_layers
    from layerscope.methods.sampling.context import seeded as seeded
    from layerscope.methods.sampling.context import using_mode as using_mode
    from layerscope.methods.sampling.conversion import Converted as Converted
    from layerscope.methods.sampling.conversion import convert as convert
    from layerscope.methods.sampling.errors import SamplingError as SamplingError
    from layerscope.methods.sampling.errors import SamplingWarning as SamplingWarning
    from layerscope.methods.sampling.evaluation import Evaluation as Evaluation
    from layerscope.methods.sampling.evaluation import accuracy_by_bits as accuracy_by_bits
    from layerscope.methods.sampling.evaluation import evaluate as evaluate
    from layerscope.methods.sampling.evaluation import rotate as rotate
    from layerscope.methods.sampling.functional import firing_probability as firing_probability
    from layerscope.methods.sampling.functional import sample as sample
    from layerscope.methods.sampling.hardware import SynapseArray as SynapseArray
    from layerscope.methods.sampling.hardware import export as export
    from layerscope.methods.sampling.hardware import fixed_point as fixed_point
    from layerscope.methods.sampling.hardware import save as save
    from layerscope.methods.sampling.layers import Binarize as Binarize
    from layerscope.methods.sampling.layers import SamplingConv2d as SamplingConv2d
    from layerscope.methods.sampling.layers import SamplingLinear as SamplingLinear
    from layerscope.methods.sampling.noises import Noise as Noise
    from layerscope.methods.sampling.noises import bernoulli as bernoulli
    from layerscope.methods.sampling.noises import gaussian as gaussian
    from layerscope.methods.sampling.noises import noise as noise
    from layerscope.methods.sampling.observation import LayerReport as LayerReport
    from layerscope.methods.sampling.observation import observe as observe
    from layerscope.methods.sampling.predictor import Prediction as Prediction
    from layerscope.methods.sampling.predictor import predict as predict
    from layerscope.methods.sampling.storage import is_saved_model as is_saved_model
    from layerscope.methods.sampling.storage import load_model as load_model
    from layerscope.methods.sampling.storage import save_model as save_model
    from layerscope.methods.sampling.uncertainty import Reliability as Reliability
    from layerscope.methods.sampling.uncertainty import auroc as auroc
    from layerscope.methods.sampling.uncertainty import mutual_information as mutual_information
    from layerscope.methods.sampling.uncertainty import negative_log_likelihood as negative_log_likelihood
    from layerscope.methods.sampling.uncertainty import predictive_entropy as predictive_entropy
    from layerscope.methods.sampling.uncertainty import reliability as reliability
    from layerscope.methods.sampling.uncertainty import vote_share as vote_share
    from layerscope.methods.sampling.unit import SamplingLayer as SamplingLayer

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "SamplingLinear": "layers",
        "SamplingConv2d": "layers",
        "SamplingLayer": "unit",
        "Binarize": "layers",
        "Noise": "noises",
        "bernoulli": "noises",
        "gaussian": "noises",
        "noise": "noises",
        "sample": "functional",
        "firing_probability": "functional",
        "initialize": "calibrate",
        "convert": "conversion",
        "Converted": "conversion",
        "centred": "context",
        "deterministic": "context",
        "using_mode": "context",
        "seeded": "context",
        "folded": "context",
        "sampling_layers": "context",
        "observe": "observation",
        "LayerReport": "observation",
        "predict": "predictor",
        "Prediction": "predictor",
        "predictive_entropy": "uncertainty",
        "mutual_information": "uncertainty",
        "vote_share": "uncertainty",
        "reliability": "uncertainty",
        "negative_log_likelihood": "uncertainty",
        "Reliability": "uncertainty",
        "auroc": "uncertainty",
        "evaluate": "evaluation",
        "Evaluation": "evaluation",
        "accuracy_by_bits": "evaluation",
        "rotate": "evaluation",
        "save_model": "storage",
        "load_model": "storage",
        "is_saved_model": "storage",
        "export": "hardware",
        "SynapseArray": "hardware",
        "fixed_point": "hardware",
        "save": "hardware",
        "SamplingError": "errors",
        "SamplingWarning": "errors",
    },
)
