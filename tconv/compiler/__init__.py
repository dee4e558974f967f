"""The compiler backend: ``torch.compile(model, backend="tconv")`` runs a model on our kernels."""

from tconv.compiler.backend import tconv_backend
from tconv.compiler.export import export
from tconv.compiler.report import Report, report

__all__ = ["Report", "export", "report", "tconv_backend"]
