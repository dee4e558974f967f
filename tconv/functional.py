"""The functional interface, in the form of ``torch.nn.functional``."""

from tconv.ops import flops
from tconv.ops.adaptive_pool2d import adaptive_avg_pool2d, adaptive_max_pool2d, max_unpool2d
from tconv.ops.avg_pool2d import avg_pool2d, subsample2d
from tconv.ops.conv2d import conv2d
from tconv.ops.conv2d_fused import conv2d_fused, conv2d_pool
from tconv.ops.conv_transpose2d import conv_transpose2d
from tconv.ops.max_pool2d import max_pool2d
from tconv.ops.sequences import avg_pool1d, conv1d, conv_transpose1d, max_pool1d

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "conv1d",
    "conv2d",
    "conv2d_fused",
    "conv2d_pool",
    "conv_transpose1d",
    "conv_transpose2d",
    "max_pool1d",
    "max_pool2d",
    "max_unpool2d",
    "subsample2d",
]

flops.register()
