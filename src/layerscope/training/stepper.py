"""One optimizer step: a batch in, an updated network out, and the numbers of the step still on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.errors import TrainingError
from layerscope.probe.inputs import integers
from layerscope.training.augment import augmentation
from layerscope.training.optimizers import make_optimizer
from layerscope.training.schedules import schedule
from layerscope.training.seeds import derive, reseed
from layerscope.training.settings import Settings
from layerscope.training.steps import StepFn, Supervised, pair, parts, placed


class Stepper:
    """What a step needs, and what a step changes: network, optimizer and loss scaler."""

    def __init__(self, model: nn.Module, settings: Settings, device: torch.device, total: int) -> None:
        self.settings, self.device, self.total = settings, device, total
        self.model = model.to(device)
        if settings.channels_last:
            # Only the layout of the same numbers changes.
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs
        self.optimizer = make_optimizer(
            model,
            settings.optimizer,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            groups=settings.groups,
        )
        self.base_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.factor = schedule(settings.schedule, warmup=settings.warmup)
        self.augment = augmentation(settings.augment)
        self.step_fn: StepFn = settings.step_fn or Supervised(settings.loss, settings.output)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "float16")
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

    def take(
        self, step: int, batch: Any, on_gradients: Callable[[], None]
    ) -> tuple[Tensor, float, dict[str, Tensor | float]]:
        """Do step number ``step`` on ``batch``.

        Returns:
            Loss before the update, learning rate, and further numbers by name.

        Raises:
            TrainingError: the network or the step function fails, or gives no loss.
        """
        batch = self._prepared(step, batch)
        factor = self.factor(step, self.total)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor
        self.optimizer.zero_grad(set_to_none=True)
        losses, metrics = [], dict[str, Any]()
        for part, share in parts(batch, self.settings.accumulate):
            loss, measured = self._forward(step, part)
            loss = loss if share == 1 else loss * share
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch's stubs
            losses.append(loss.detach())
            for name, value in measured.items():
                value = value.detach() if isinstance(value, Tensor) else value
                metrics[name] = value if share == 1 else metrics.get(name, 0.0) + value * share
        self.scaler.unscale_(self.optimizer)
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        on_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        total = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        return total, float(self.optimizer.param_groups[0]["lr"]), metrics

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        own = self.step_fn.state_dict() if hasattr(self.step_fn, "state_dict") else None
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step_fn": own,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if state["step_fn"] is not None and hasattr(self.step_fn, "load_state_dict"):
            self.step_fn.load_state_dict(state["step_fn"])

    def _prepared(self, step: int, batch: Any) -> Any:
        settings = self.settings
        batch = placed(batch, self.device, self.dtype, settings.channels_last)
        reseed(self.device, derive(settings.seed, "step", step))
        if self.augment is None:
            return batch
        x, y = pair(batch)
        return self.augment(x, torch.Generator().manual_seed(derive(settings.seed, "augment", step))), y

    def _forward(self, step: int, part: Any) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        amp = self.settings.amp
        try:
            with torch.autocast(self.device.type, dtype=getattr(torch, amp)) if amp else nullcontext():
                result = self.step_fn(self.model, part)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                "a step does not fit into the device's memory; raise accumulate= or lower batch_size="
            ) from error
        except (RuntimeError, ValueError, IndexError) as error:
            advice = integers(part[0]) if isinstance(part, tuple | list) and part else None
            raise TrainingError(
                f"step {step} failed on {_shapes(part)}: {advice or f'{type(error).__name__}: {error}'}"
            ) from error
        loss, metrics = result if isinstance(result, tuple) else (result, {})
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise TrainingError(
                f"the step's loss is {_shapes(loss)}; expected a tensor of one number that depends on trainable weights"
            )
        return loss.squeeze(), metrics


def _shapes(part: Any) -> str:
    if isinstance(part, Tensor):
        return f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}"
    if isinstance(part, tuple | list):
        return "(" + ", ".join(_shapes(p) for p in part) + ")"
    return f"a {type(part).__name__}"
