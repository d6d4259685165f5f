"""training: one small, fast fit loop that every study and every method uses, and what surrounds it.

A run is a pure function of network, data, settings and seed; interrupted and resumed it ends with the same bits.

    >>> from layerscope import nets
    >>> from layerscope.training import fit
    >>> net = nets.build("resnet20:width=8", "group:size=8", in_shape=(1, 8, 8))               # doctest: +SKIP
    >>> history = fit(net, "digits", steps=200, batch_size=32, lr=0.1, checkpoint="run.pt")    # doctest: +SKIP
    >>> history.mean_accuracy, history.diverged                                                # doctest: +SKIP

Importing this room imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerscope._lazy import lazy

if TYPE_CHECKING:
    from layerscope.training.callbacks import Callback as Callback
    from layerscope.training.callbacks import Each as Each
    from layerscope.training.callbacks import Run as Run
    from layerscope.training.evaluation import evaluate as evaluate
    from layerscope.training.evaluation import predict as predict
    from layerscope.training.history import Evaluation as Evaluation
    from layerscope.training.history import History as History
    from layerscope.training.lightning import lightning_callback as lightning_callback
    from layerscope.training.loop import fit as fit
    from layerscope.training.micro import micro_train as micro_train
    from layerscope.training.optimizers import decay_matrices_only as decay_matrices_only
    from layerscope.training.sharpness import Curvature as Curvature
    from layerscope.training.sharpness import curvature as curvature
    from layerscope.training.sinks import JsonlSink as JsonlSink
    from layerscope.training.sinks import MemorySink as MemorySink
    from layerscope.training.sinks import MlflowSink as MlflowSink
    from layerscope.training.sinks import Sink as Sink
    from layerscope.training.sinks import TensorBoardSink as TensorBoardSink
    from layerscope.training.sinks import TrackioSink as TrackioSink
    from layerscope.training.sinks import WandbSink as WandbSink
    from layerscope.training.stability import LrLimit as LrLimit
    from layerscope.training.stability import LrTrial as LrTrial
    from layerscope.training.stability import largest_stable_lr as largest_stable_lr
    from layerscope.training.watching import Frame as Frame
    from layerscope.training.watching import Watch as Watch
    from layerscope.training.watching import watch as watch

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "fit": "loop",
        "History": "history",
        "Evaluation": "history",
        "evaluate": "evaluation",
        "predict": "evaluation",
        "micro_train": "micro",
        "curvature": "sharpness",
        "Curvature": "sharpness",
        "largest_stable_lr": "stability",
        "LrLimit": "stability",
        "LrTrial": "stability",
        "watch": "watching",
        "Watch": "watching",
        "Frame": "watching",
        "lightning_callback": "lightning",
        "Callback": "callbacks",
        "Each": "callbacks",
        "Run": "callbacks",
        "decay_matrices_only": "optimizers",
        "Sink": "sinks",
        "MemorySink": "sinks",
        "JsonlSink": "sinks",
        "TensorBoardSink": "sinks",
        "WandbSink": "sinks",
        "MlflowSink": "sinks",
        "TrackioSink": "sinks",
    },
)
