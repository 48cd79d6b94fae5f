"""One run: train a model whose tables are made by one method, judge it, say what it took."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from benchmarks.quality.clicks import ClickTask
from benchmarks.quality.methods import FULL_SGD, METHODS, TAUGHT, Embedding, Shapes, TooSmallError
from benchmarks.quality.teaching import TEACHER_RATE, Taught

__all__ = ["NETWORK_RATE", "Task", "learn", "train"]

NETWORK_RATE = 2e-3
"""Adam's rate for the model around the embedding, the same for every method; the embedding's own rate is tuned."""
DECAY = 0.99
"""Of the running average of all weights; each epoch counts with the weights or with their average, whichever validates better."""
FALL, FALLS = 0.2, 2
"""The rates are multiplied by FALL where an epoch was no better, and training ends after so many falls."""
TIMED_IDS, TIMINGS = 8192, 5


class Task(Protocol):
    """A data set with its model."""

    goal: str
    max_epochs: int
    patience: int
    steps: int
    shapes: Shapes

    model: Callable[[Embedding], nn.Module]
    batches: Callable[[np.random.Generator], Any]
    loss: Callable[[Any, Any, np.random.Generator], torch.Tensor]
    score: Callable[[Any, str], dict[str, float]]


class Together:
    """Optimizers of different parameters as one."""

    def __init__(self, *each: torch.optim.Optimizer) -> None:
        self.each = each
        self.param_groups = [group for one in each for group in one.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        return {key: value for one in self.each for key, value in one.state.items()}

    def zero_grad(self) -> None:
        for one in self.each:
            one.zero_grad()

    def step(self) -> None:
        for one in self.each:
            one.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [one.state_dict() for one in self.each]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for one, state in zip(self.each, states, strict=True):
            one.load_state_dict(state)
        self.param_groups = [group for one in self.each for group in one.param_groups]


Optimizers = torch.optim.Optimizer | Together


def learn(
    task: Task, method: str, ratio: float, rate: float, seed: int, max_epochs: int | None = None
) -> dict[str, Any]:
    """Train until the validation figure stops rising, from the best epoch on at lower rates; what the run's row says.

    Raises:
        TooSmallError: the method cannot be had at this ratio.
    """
    before = _reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    if method in TAUGHT:
        if not isinstance(task, ClickTask):
            raise TooSmallError("only clicks have labels that a teacher can soften")
        teacher, embed, optimizer = _made(task, FULL_SGD, 1, TEACHER_RATE, seed)
        train(task, teacher, embed, optimizer, seed, max_epochs or task.max_epochs)
        task = Taught(task, teacher)  # type: ignore[arg-type]
    model, embed, optimizer = _made(task, TAUGHT.get(method, method), ratio, rate, seed)
    own = list(embed.parameters())
    best, history = train(task, model, embed, optimizer, seed, max(max_epochs or task.max_epochs, embed.settles))
    if embed.after_training():
        best |= {"valid": task.score(model, "valid")[task.goal], "test": task.score(model, "test")}
    return {
        "valid": round(best["valid"], 5),
        "test": {name: round(value, 5) for name, value in best["test"].items()},
        "averaged": best["averaged"],
        "epoch": best["epoch"],
        "epochs": len(history),
        "history": [round(value, 4) for value in history],
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "nbytes": embed.nbytes,
        "reached": round(task.shapes.dense_nbytes / embed.nbytes, 2),
        "train_bytes": _state_bytes(own, optimizer),
        "peak_bytes": _peak() - before,
        "lookup_ns": round(_lookup_ns(embed, task.shapes), 1),
    }


def _made(task: Task, method: str, ratio: float, rate: float, seed: int) -> tuple[nn.Module, Embedding, Optimizers]:
    """A model before its training, its embedding, and the optimizers of both."""
    torch.manual_seed(seed)
    embed = METHODS[method](task.shapes, ratio, seed)
    model = task.model(embed)
    own = list(embed.parameters())
    ids = {id(parameter) for parameter in own}
    network = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    if (special := embed.own_optimizer(rate)) is not None:
        rest = [torch.optim.Adam(network, lr=NETWORK_RATE, fused=True)] if network else []
        return model, embed, Together(special, *rest)
    groups = [{"params": own, "lr": rate}, {"params": network, "lr": NETWORK_RATE}]
    return model, embed, torch.optim.Adam([group for group in groups if group["params"]], fused=True)


def train(
    task: Task, model: nn.Module, embed: Embedding, optimizer: Optimizers, seed: int, max_epochs: int
) -> tuple[dict[str, Any], list[float]]:
    """The model gets its best epoch's weights; what is known of that epoch, and the validation figure of each."""
    generator = np.random.default_rng(seed)
    best: dict[str, Any] = {"valid": -np.inf}
    history: list[float] = []
    starts = [group["lr"] for group in optimizer.param_groups]
    weights = [parameter.detach() for parameter in model.parameters()]
    average = [weight.float().clone() for weight in weights]
    step = falls = worse = 0
    while len(history) < max_epochs:
        model.train()
        for batch in task.batches(generator):
            embed.before_step(step, task.steps)
            loss = task.loss(model, batch, generator)
            optimizer.zero_grad()
            loss.backward()
            embed.after_backward()
            optimizer.step()
            torch._foreach_lerp_(average, [weight.float() for weight in weights], 1 - DECAY)
            step += 1
        model.eval()
        valid, averaged, final = _judged(task, model, average)
        history.append(valid)
        if len(history) < embed.settles:
            continue
        if valid > best["valid"]:
            state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), average))
            best = {"valid": valid, "averaged": averaged, "epoch": len(history), "state": state, "final": final}
            worse = 0
            continue
        worse += 1
        if worse >= task.patience:
            if falls == FALLS:
                break
            falls, worse = falls + 1, 0
            model.load_state_dict(best["state"][0])
            optimizer.load_state_dict(best["state"][1])
            torch._foreach_copy_(average, best["state"][2])
            for group, start in zip(optimizer.param_groups, starts, strict=True):
                group["lr"] = start * FALL**falls
    model.load_state_dict(best["final"])
    best["test"] = task.score(model, "test")
    return best, history


def _judged(task: Task, model: nn.Module, average: list[torch.Tensor]) -> tuple[float, bool, dict[str, Any]]:
    """The better validation figure of the weights and of their average, whether it is the average's, and that model's state."""
    valid = task.score(model, "valid")[task.goal]
    now = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter, mean in zip(model.parameters(), average, strict=True):
            parameter.copy_(mean)
    averaged = task.score(model, "valid")[task.goal]
    final = copy.deepcopy(model.state_dict()) if averaged > valid else now
    model.load_state_dict(now)
    return max(valid, averaged), averaged > valid, final


def _state_bytes(parameters: list[nn.Parameter], optimizer: Optimizers) -> int:
    """Bytes of the embedding while it is trained: masters, gradients where they are kept, and the optimizer's moments."""
    state = [value for p in parameters for value in optimizer.state.get(p, {}).values() if torch.is_tensor(value)]
    gradients = [p.grad.nbytes for p in parameters if p.grad is not None]
    return sum(p.nbytes for p in parameters) + sum(gradients) + sum(value.nbytes for value in state)


@torch.no_grad()
def _lookup_ns(embed: Embedding, shapes: Shapes) -> float:
    """Nanoseconds a row in torch: many random ids of the largest field at once, the fastest of several calls."""
    field = max(shapes.sizes, key=lambda name: shapes.sizes[name])
    generator = np.random.default_rng(1)
    times = []
    for _ in range(TIMINGS):
        ids = torch.from_numpy(generator.integers(shapes.sizes[field], size=(TIMED_IDS, 1)))
        began = time.perf_counter_ns()
        embed((field,), ids)
        times.append(time.perf_counter_ns() - began)
    return min(times) / TIMED_IDS


def _reset_peak() -> int:
    """Forget the process's greatest memory; what it has now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """Greatest resident memory since the last reset, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
