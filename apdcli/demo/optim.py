"""Muon for the matrices inside the layers, AdamW for everything else.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") replaces a
matrix's momentum by its nearest semi-orthogonal matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOMENTUM, WEIGHT_DECAY = 0.95, 0.01
BETAS, EPS = (0.9, 0.99), 1e-10


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Quintic Newton-Schulz iteration: [rows, cols] -> nearly semi-orthogonal [rows, cols]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    made: Tensor = x.T if tall else x
    return made.to(matrix.dtype)


class Optimizer:
    """Both rules over one network.  State is a flat dictionary of tensors, for safetensors."""

    def __init__(self, net: nn.Module, matrix_lr: float, vector_lr: float) -> None:
        self.matrix_lr, self.vector_lr = matrix_lr, vector_lr
        self.matrices: dict[str, nn.Parameter] = {}
        self.others: dict[str, nn.Parameter] = {}
        for name, parameter in net.named_parameters():
            inner = parameter.ndim == 2 and ".layers." in name
            (self.matrices if inner else self.others)[name] = parameter
        self.state: dict[str, Tensor] = {"step": torch.zeros(1)}
        for name, parameter in self.matrices.items():
            self.state[f"momentum.{name}"] = torch.zeros_like(parameter)
        for name, parameter in self.others.items():
            self.state[f"first.{name}"] = torch.zeros_like(parameter)
            self.state[f"second.{name}"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update with the peak rates times `factor`; gradients are cleared."""
        self.state["step"] += 1
        count = int(self.state["step"].item())
        for name, parameter in self.matrices.items():
            assert parameter.grad is not None, name
            momentum = self.state[f"momentum.{name}"]
            momentum.lerp_(parameter.grad, 1 - MOMENTUM)
            update = orthogonalize(parameter.grad.lerp(momentum, MOMENTUM))
            rate = self.matrix_lr * factor
            scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
            parameter.mul_(1 - rate * WEIGHT_DECAY).add_(update, alpha=-rate * scale)
            parameter.grad = None
        for name, parameter in self.others.items():
            assert parameter.grad is not None, name
            first, second = self.state[f"first.{name}"], self.state[f"second.{name}"]
            first.lerp_(parameter.grad, 1 - BETAS[0])
            second.lerp_(parameter.grad.square(), 1 - BETAS[1])
            unbiased = first / (1 - BETAS[0] ** count)
            spread = (second / (1 - BETAS[1] ** count)).sqrt() + EPS
            parameter.add_(unbiased / spread, alpha=-self.vector_lr * factor)
            parameter.grad = None
