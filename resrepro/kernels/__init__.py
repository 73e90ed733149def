"""BN, shortcut and ReLU in few passes over memory, for the CPU: C code, compiled on the machine it runs on.

PyTorch's compiler for the CPU (inductor) gains little here: it takes BN's sums with one thread where a net
has few channels (docs/performance.md has the figures). Where there is no C compiler the nets compute with
PyTorch's own operations.
"""

from resrepro.kernels.building import Kernels, NoCompiler, load_kernels

__all__ = ["Kernels", "NoCompiler", "load_kernels"]
