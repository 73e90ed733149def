"""The machine's matrix peak: a product of large square matrices, in each precision."""

import torch

from resrepro.bench.timing import finish, timed

SMALLEST = 512
LARGEST = {"cpu": 2048, "cuda": 8192, "mps": 4096}  # sides of the matrices
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


class Peak:
    """Multiplies matrices as large as fit well into a turn."""

    def __init__(self, seconds: float, device: torch.device) -> None:
        self.device = device
        self.matrices = {name: _matrix(dtype, seconds / 8, device) for name, dtype in DTYPES.items()}

    def turn(self, seconds: float) -> dict[str, float]:
        """Operations per second by precision; the turn is shared among them."""
        return {
            name: _operations_per_second(matrix, seconds / len(self.matrices), self.device)
            for name, matrix in self.matrices.items()
        }


def _operations_per_second(matrix: torch.Tensor, seconds: float, device: torch.device) -> float:
    out = torch.empty_like(matrix)
    count, elapsed = timed(lambda: torch.mm(matrix, matrix, out=out), seconds, device)
    return 2 * len(matrix) ** 3 * count / elapsed


def _matrix(dtype: torch.dtype, most_seconds: float, device: torch.device) -> torch.Tensor:
    """The largest matrix whose square takes no longer: some CPUs only emulate bf16."""
    side = SMALLEST
    while True:
        matrix = torch.randn(side, side, device=device).to(dtype)
        _ = matrix @ matrix
        finish(device)
        _, elapsed = timed(lambda matrix=matrix: matrix @ matrix, 0.0, device)  # type: ignore[misc]
        if side * 2 > LARGEST.get(device.type, SMALLEST) or 8 * elapsed > most_seconds:
            return matrix
        side *= 2
