"""Which of the project's tests hold each kernel: named by the beginning of their ids.

A kernel's row is kept to what a mutant should not get past, and to half a minute.
"""

FAMILIES = "tests/tconv/algorithms/test_families.py::"
EDGES = "tests/tconv/algorithms/test_edges.py::test_edge"
INFINITY = "tests/tconv/algorithms/test_edges.py::test_infinity"
MAXIMA = "tests/tconv/algorithms/test_edges.py::test_first_of_equal_maxima"
REDUCE = "tests/tconv/algorithms/test_reduce.py::"
RELAYOUT = "tests/tconv/algorithms/test_relayout.py::"
ENDED = "tests/tconv/ops/test_conv2d_ended.py::"
MAX_POOL = "tests/tconv/ops/test_max_pool2d.py::"
AVG_POOL = "tests/tconv/ops/test_avg_pool2d.py::"


def _family(*names: str) -> tuple[str, ...]:
    return tuple(f"{FAMILIES}test_family[{name}]" for name in names)


TESTS: dict[str, tuple[str, ...]] = {
    "fprop.implicit_gemm_fprop": (
        f"{MAXIMA}[implicit_gemm-",
        f"{EDGES}[gathered",
        f"{INFINITY}[gathered",
        f"{EDGES}[few",
        f"{INFINITY}[few",
        *_family("implicit_gemm-fprop", "implicit_gemm_in_place-fprop", "few_channels-fprop"),
    ),
    "dgrad.implicit_gemm_dgrad": (
        f"{EDGES}[gathered",
        f"{INFINITY}[gathered",
        *_family("implicit_gemm-dgrad", "implicit_gemm_in_place-dgrad"),
    ),
    "wgrad.implicit_gemm_wgrad": (
        f"{EDGES}[gathered",
        f"{INFINITY}[gathered",
        f"{EDGES}[few",
        f"{INFINITY}[few",
        f"{EDGES}[grouped",
        f"{INFINITY}[grouped",
        *_family("implicit_gemm-wgrad", "implicit_gemm_in_place-wgrad"),
        *_family("few_channels-wgrad", "grouped-wgrad"),
    ),
    "direct.direct": (
        f"{MAXIMA}[direct",
        f"{EDGES}[direct",
        f"{INFINITY}[direct",
        *_family("direct-fprop", "direct-dgrad"),
    ),
    "direct.direct_wgrad": (f"{EDGES}[direct", f"{INFINITY}[direct", *_family("direct-wgrad")),
    "depthwise.depthwise": (
        f"{MAXIMA}[depthwise",
        f"{EDGES}[depthwise",
        f"{INFINITY}[depthwise",
        *_family("depthwise-fprop", "depthwise-dgrad"),
    ),
    "depthwise.depthwise_wgrad": (
        f"{EDGES}[depthwise",
        f"{INFINITY}[depthwise",
        *_family("depthwise-wgrad"),
    ),
    "grouped.grouped": (
        f"{MAXIMA}[grouped",
        f"{EDGES}[grouped",
        f"{INFINITY}[grouped",
        *_family("grouped-fprop", "grouped-dgrad"),
        f"{ENDED}test_groups_do_not_meet",
    ),
    "tma.implicit_gemm_tma": (
        f"{MAXIMA}[implicit_gemm_tma",
        f"{EDGES}[boxes",
        f"{INFINITY}[boxes",
        *_family("implicit_gemm_tma-fprop", "implicit_gemm_tma-dgrad"),
    ),
    "tma.implicit_gemm_tma_wgrad": (
        f"{EDGES}[boxes",
        f"{INFINITY}[boxes",
        *_family("implicit_gemm_tma-wgrad"),
    ),
    "reduce.add_splits": (f"{REDUCE}test_parts_are_added", f"{EDGES}[gathered-splits"),
    "relayout.to_channels_last": (f"{RELAYOUT}test_to_channels_last",),
    "relayout.widen": (f"{RELAYOUT}test_widened", f"{EDGES}[few"),
    "ending.ending_grad": (f"{ENDED}test_gradients_in_shares", f"{ENDED}test_relu_and_residual"),
    "ending.pool_ending_grad": (f"{ENDED}test_gradients_in_shares", f"{ENDED}test_pool"),
    "ending.bias_grad_sum": (f"{ENDED}test_gradients_in_shares",),
    "max_pool.max_pool_fprop": (
        f"{MAX_POOL}test_as_torch",
        f"{MAX_POOL}test_dtypes_and_equal_values",
        f"{MAX_POOL}test_nan_propagates",
        f"{MAX_POOL}test_minus_infinity_keeps_the_first_element",
        f"{MAX_POOL}test_many_programs",
    ),
    "max_pool.max_pool_dgrad": (
        f"{MAX_POOL}test_as_torch",
        f"{MAX_POOL}test_as_reference",
        f"{MAX_POOL}test_window_of_nothing_but_padding",
        f"{MAX_POOL}test_many_programs",
    ),
    "max_pool.max_pool_pick": (
        f"{MAX_POOL}test_as_torch",
        f"{MAX_POOL}test_window_of_nothing_but_padding",
        f"{MAX_POOL}test_many_programs",
        f"{MAX_POOL}test_second_gradient_is_our_kernel",
    ),
    "avg_pool.avg_pool_fprop": (f"{AVG_POOL}test_as_torch", f"{AVG_POOL}test_many_programs"),
    "avg_pool.avg_pool_dgrad": (f"{AVG_POOL}test_as_torch", f"{AVG_POOL}test_many_programs"),
}
