"""The functional interface, in the form of ``torch.nn.functional``."""

from tconv.ops import flops
from tconv.ops.avg_pool2d import avg_pool2d, subsample2d
from tconv.ops.conv2d import conv2d
from tconv.ops.conv2d_fused import conv2d_fused, conv2d_pool
from tconv.ops.max_pool2d import max_pool2d

__all__ = ["avg_pool2d", "conv2d", "conv2d_fused", "conv2d_pool", "max_pool2d", "subsample2d"]

flops.register()
