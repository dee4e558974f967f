"""torch's functional interface, on our kernels."""

from tconv.ops.conv2d import conv2d
from tconv.ops.max_pool2d import max_pool2d

__all__ = ["conv2d", "max_pool2d"]
