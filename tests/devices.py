"""Where tests put their tensors: on the GPU, or on the CPU where kernels are interpreted or run on
an emulated GPU.
"""

import torch

from tconv.launch import emulated, interpreting

DEVICE = torch.device("cpu" if interpreting() or emulated() else "cuda")
