"""Exact ReLU and max-pool on encrypted data: an integer network with power-of-two weights, and what it will cost.

Products by powers of two are shifts, accumulators have sound ranges, and every backend (plain integers, gates, a
maintained TFHE engine) computes the same bits. Source: SHE, Lou and Jiang, NeurIPS 2019, arXiv 1906.00148; where we
depart from it, and why, stands in ``docs/encrypted.md``.

::

    from layerscope.methods import encrypted as she

    print(she.cost(model, in_shape=(1, 8, 8)))             # what it will cost, layer by layer, before any key exists
    qnet = she.quantize(model, x, bits=3, act_bits=4, lookup_bits=6)
    logits = qnet(x)                                       # what every backend computes, bit for bit

``she.compile(qnet, "concrete")`` makes the client and the server (``pip install 'layerscope[encrypted]'``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.methods.encrypted.backends.circuit import CircuitNet as CircuitNet
    from layerscope.methods.encrypted.backends.ckks import CkksNet as CkksNet
    from layerscope.methods.encrypted.backends.ckks import Square as Square
    from layerscope.methods.encrypted.costs.advice import advise as advise
    from layerscope.methods.encrypted.costs.cost import cost as cost
    from layerscope.methods.encrypted.costs.records import Advised as Advised
    from layerscope.methods.encrypted.costs.records import CostReport as CostReport
    from layerscope.methods.encrypted.costs.timings import probe_concrete as probe_concrete
    from layerscope.methods.encrypted.distortion import study_activations as study_activations
    from layerscope.methods.encrypted.errors import EncryptedError as EncryptedError
    from layerscope.methods.encrypted.errors import EngineError as EngineError
    from layerscope.methods.encrypted.errors import EnvelopeError as EnvelopeError
    from layerscope.methods.encrypted.errors import InputError as InputError
    from layerscope.methods.encrypted.errors import KeyFileError as KeyFileError
    from layerscope.methods.encrypted.errors import KeyMismatchError as KeyMismatchError
    from layerscope.methods.encrypted.errors import QuantizationError as QuantizationError
    from layerscope.methods.encrypted.errors import UnsupportedModuleError as UnsupportedModuleError
    from layerscope.methods.encrypted.errors import WidthError as WidthError
    from layerscope.methods.encrypted.narrowing import narrow as narrow
    from layerscope.methods.encrypted.network import QuantizedNet as QuantizedNet
    from layerscope.methods.encrypted.network import quantize as quantize
    from layerscope.methods.encrypted.protocol.client import Client as Client
    from layerscope.methods.encrypted.protocol.compiled import CompiledNet as CompiledNet
    from layerscope.methods.encrypted.protocol.compiled import compile as compile
    from layerscope.methods.encrypted.protocol.server import Server as Server
    from layerscope.methods.encrypted.protocol.service import Service as Service
    from layerscope.methods.encrypted.protocol.service import post as post
    from layerscope.methods.encrypted.qat import QatNet as QatNet
    from layerscope.methods.encrypted.qat import finetune as finetune
    from layerscope.methods.encrypted.quantizer import log_quantize as log_quantize
    from layerscope.methods.encrypted.survival import Survival as Survival
    from layerscope.methods.encrypted.survival import predict_survival as predict_survival

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "quantize": "network",
        "QuantizedNet": "network",
        "narrow": "narrowing",
        "log_quantize": "quantizer",
        "finetune": "qat",
        "QatNet": "qat",
        "CircuitNet": "backends.circuit",
        "CkksNet": "backends.ckks",
        "Square": "backends.ckks",
        "study_activations": "distortion",
        "predict_survival": "survival",
        "Survival": "survival",
        "cost": "costs.cost",
        "advise": "costs.advice",
        "Advised": "costs.records",
        "CostReport": "costs.records",
        "probe_concrete": "costs.timings",
        "compile": "protocol.compiled",
        "CompiledNet": "protocol.compiled",
        "Client": "protocol.client",
        "Server": "protocol.server",
        "Service": "protocol.service",
        "post": "protocol.service",
        "EncryptedError": "errors",
        "EngineError": "errors",
        "EnvelopeError": "errors",
        "InputError": "errors",
        "KeyFileError": "errors",
        "KeyMismatchError": "errors",
        "QuantizationError": "errors",
        "UnsupportedModuleError": "errors",
        "WidthError": "errors",
    },
)
