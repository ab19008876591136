"""Statistics of low-dimensional columns, which normalisation is fitted to."""

import numpy as np
from jaxtyping import Float


def statistics(values: Float[np.ndarray, "n d"]) -> dict[str, np.ndarray]:
    """mean, std, min, max, q01 and q99 of every dim, [d] each, exact, in float64."""
    x = values.astype(np.float64)
    q01, q99 = np.quantile(x, [0.01, 0.99], axis=0)
    return {"mean": x.mean(0), "std": x.std(0), "min": x.min(0), "max": x.max(0), "q01": q01, "q99": q99}
