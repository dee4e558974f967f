"""The tests that must catch each kernel's mutants, by prefixes of their ids.

A kernel's row holds what is needed to catch its mutants, and takes at most half a minute.
"""

EDGES = "tests/tconv/families/test_edges.py::test_edge"
INFINITY = "tests/tconv/families/test_edges.py::test_infinity_reaches_its_own_windows_alone"
LINES = "tests/tconv/families/test_edges.py::test_depthwise_filters_line_by_line"
MAXIMA = "tests/tconv/families/test_edges.py::test_first_of_equal_maxima"
REDUCE = "tests/tconv/families/test_reduce.py::"
RELAYOUT = "tests/tconv/families/test_relayout.py::"
FUSED = "tests/tconv/ops/test_conv2d_fused.py::"
MAX_POOL = "tests/tconv/ops/test_max_pool2d.py::"
AVG_POOL = "tests/tconv/ops/test_avg_pool2d.py::"
ADAPTIVE = "tests/tconv/ops/test_adaptive_pool2d.py::"
TRANSPOSED = "tests/tconv/ops/test_conv_transpose2d.py::"
ENDS = "tests/tconv/families/test_epilogues.py::"
EPILOGUE = "test_every_familys_gradient_ends_in_an_epilogue"


def _edges(*passes_of_windows: str) -> tuple[str, ...]:
    return tuple(f"{test}[{which}" for which in passes_of_windows for test in (EDGES, INFINITY))


def _ends(family: str) -> tuple[str, ...]:
    tests = ("test_every_activation_pooled_or_not", "test_norm_and_residual")
    return tuple(f"{ENDS}{test}[{family}-" for test in tests)


TESTS: dict[str, tuple[str, ...]] = {
    "fprop.implicit_gemm_fprop": (
        f"{MAXIMA}[implicit_gemm-",
        *_edges("fprop-gathered", "fprop-few"),
        *_ends("implicit_gemm"),
    ),
    "dgrad.implicit_gemm_dgrad": (
        *_edges("dgrad-gathered"),
        f"{TRANSPOSED}{EPILOGUE}[implicit_gemm-",
        f"{TRANSPOSED}{EPILOGUE}[implicit_gemm_in_place",
    ),
    "wgrad.implicit_gemm_wgrad": _edges("wgrad-gathered", "wgrad-few", "wgrad-grouped"),
    "direct.direct": (
        f"{MAXIMA}[direct",
        *_edges("fprop-direct", "dgrad-direct"),
        f"{TRANSPOSED}{EPILOGUE}[direct",
        *_ends("direct"),
    ),
    "direct.direct_wgrad": _edges("wgrad-direct"),
    "depthwise.depthwise": (
        f"{MAXIMA}[depthwise",
        *_edges("fprop-depthwise", "dgrad-depthwise"),
        f"{TRANSPOSED}{EPILOGUE}[depthwise",
        *_ends("depthwise"),
    ),
    "depthwise.depthwise_wgrad": (f"{LINES}[", *_edges("wgrad-depthwise")),
    "grouped.grouped": (
        f"{MAXIMA}[grouped",
        *_edges("fprop-grouped", "dgrad-grouped"),
        f"{FUSED}test_groups_do_not_meet",
        f"{TRANSPOSED}{EPILOGUE}[grouped",
        *_ends("grouped"),
    ),
    "tma.implicit_gemm_tma": (
        f"{MAXIMA}[implicit_gemm_tma",
        *_edges("fprop-boxes", "dgrad-boxes"),
        f"{TRANSPOSED}{EPILOGUE}[implicit_gemm_tma",
        *_ends("implicit_gemm_tma"),
    ),
    "tma.implicit_gemm_tma_wgrad": _edges("wgrad-boxes"),
    "reduce.add_splits": (
        f"{REDUCE}test_parts_are_added",
        f"{REDUCE}test_every_activation_of_the_sum",
        f"{EDGES}[fprop-gathered-splits",
    ),
    "relayout.to_channels_last": (f"{RELAYOUT}test_to_channels_last",),
    "relayout.widen": (f"{RELAYOUT}test_widened", f"{EDGES}[fprop-few"),
    "epilogue_grad.epilogue_grad": (
        f"{FUSED}test_gradients_in_shares",
        f"{FUSED}test_relu_and_residual",
        f"{FUSED}test_activation[",
        f"{FUSED}test_second_derivatives[",
    ),
    "epilogue_grad.pool_epilogue_grad": (f"{FUSED}test_gradients_in_shares", f"{FUSED}test_pool"),
    "epilogue_grad.bias_grad_sum": (f"{FUSED}test_gradients_in_shares",),
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
    **{
        f"adaptive_pool.adaptive_{kind}_{direction}": (
            f"{ADAPTIVE}test_as_torch",
            f"{ADAPTIVE}test_many_programs",
            f"{ADAPTIVE}test_indices_are_torchs",
        )[: 3 if (kind, direction) == ("max", "fprop") else 2]
        for kind in ("avg", "max")
        for direction in ("fprop", "dgrad")
    },
    **{
        f"adaptive_pool.{kind}_by_index": (
            f"{ADAPTIVE}test_unpool_is_torchs",
            f"{ADAPTIVE}test_indices_in_many_programs",
        )
        for kind in ("pick", "claim")
    },
}
