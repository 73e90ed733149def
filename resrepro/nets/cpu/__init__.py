"""C code for the CPU, compiled on the machine it runs on: 3x3 convolutions, and BN, shortcut and ReLU.

The convolutions take a quarter of the multiplications (conv.c), the rest few passes over memory (norm.c).
PyTorch's compiler for the CPU (inductor) gains little here: it leaves convolutions as they are, and takes
BN's sums with one thread where a net has few channels (docs/performance.md has the figures). Where there is
no C compiler the nets compute with PyTorch's own operations.
"""

from resrepro.nets.cpu.building import Kernels, NoCompiler, load_kernels

__all__ = ["Kernels", "NoCompiler", "load_kernels"]
