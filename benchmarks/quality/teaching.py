"""Distillation: labels that are half those of the data and half what a full table's model says of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.quality.clicks import Clicking, ClickTask

__all__ = ["TEACHER_RATE", "Taught"]

TEACHER_RATE = 1.2e-2
"""Of gradient descent, the full table's best."""
SHARE = 0.5
"""Of a label that is the teacher's; 0.9 was worse."""


class Taught:
    """A click task whose training labels are softened by a trained model."""

    def __init__(self, task: ClickTask, teacher: Clicking) -> None:
        self.task, self.teacher = task, teacher.eval()
        self.goal, self.max_epochs, self.patience = task.goal, task.max_epochs, task.patience
        self.steps, self.shapes = task.steps, task.shapes
        self.model, self.batches, self.score = task.model, task.batches, task.score

    def loss(self, model: nn.Module, batch: Any, generator: Any) -> torch.Tensor:
        """As the task's, with labels between the data's and the teacher's."""
        ids, labels = batch
        with torch.no_grad():
            softened = torch.lerp(labels, torch.sigmoid(self.teacher(ids)), SHARE)
        return self.task.loss(model, (ids, softened), generator)  # type: ignore[arg-type]
