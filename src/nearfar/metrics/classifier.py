"""The classifier that measurements share."""

from __future__ import annotations

from typing import Any

from nearfar.errors import UsageError


def logistic_pipeline(**options: Any) -> Any:
    """Logistic regression on standardized features, not yet fitted; options: scikit-learn's."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise UsageError("a classifier needs scikit-learn: pip install 'nearfar[metrics]'") from None
    return make_pipeline(StandardScaler(), LogisticRegression(**options))
