"""Ops whose every entry depends on all others: whatever they touch is frozen, with a word of why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from actprune.axes.call import Call, rule
from actprune.axes.site import Dims

LOSSES = """
    cross_entropy_loss nll_loss nll_loss_nd nll_loss2d mse_loss l1_loss smooth_l1_loss huber_loss kl_div
    binary_cross_entropy binary_cross_entropy_with_logits soft_margin_loss margin_ranking_loss hinge_embedding_loss
    cosine_embedding_loss triplet_margin_loss poisson_nll_loss multi_margin_loss multilabel_margin_loss ctc_loss
""".split()
DECOMPOSED = """
    linalg_inv linalg_inv_ex linalg_pinv linalg_solve linalg_solve_triangular linalg_lstsq linalg_qr
    linalg_svd linalg_svdvals linalg_eigh linalg_eigvalsh linalg_cholesky linalg_cholesky_ex linalg_det
    linalg_slogdet linalg_lu linalg_matrix_exp linalg_matrix_power inverse det logdet slogdet
    cholesky_inverse cholesky_solve svd pinverse matrix_exp matrix_power linalg_cross linalg_cond
""".split()
COUNTED = "histc multinomial nonzero_static cov corrcoef".split()
IN_MEMORY = "as_strided as_strided_copy as_strided_scatter".split()
COMBINED = "combinations cartesian_prod put diag_embed".split()


def opaque(names: Sequence[str], why: str) -> None:
    """Register these ops."""

    @rule(*(f"aten.{name}" for name in names))
    def freeze(call: Call) -> Dims | list[Dims]:  # pyright: ignore[reportUnusedFunction]
        for source in call.node.all_input_nodes:
            for axis in call.axes(source):
                call.freeze(axis, why)
        value: Any = call.node.meta.get("val")
        if isinstance(value, tuple | list):
            return [_fixed(call, one, why) for one in cast("list[Any]", value)]
        return _fixed(call, value, why)


def _fixed(call: Call, value: Any, why: str) -> Dims:
    return tuple(call.fixed(int(n), why) for n in value.shape) if isinstance(value, Tensor) else ()


opaque(LOSSES, "averaged in a loss")
opaque(DECOMPOSED, "decomposed as a matrix")
opaque(COUNTED, "counted by value")
opaque(IN_MEMORY, "read by strides")
opaque(COMBINED, "combined with each other")
