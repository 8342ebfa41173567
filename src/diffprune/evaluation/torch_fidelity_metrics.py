"""Inception score, KID, precision and recall from features, computed by torch-fidelity."""

from torch import Tensor
from torch_fidelity import metric_isc, metric_kid, metric_prc


def inception_score(logits: Tensor, *, splits: int, seed: int) -> tuple[float, float]:
    """Return mean and standard deviation over the splits of exp(KL(p(y|x) || p(y))) (Salimans et al. 2016, sec. 4).

    logits: (N, 1008) without bias, N at least `splits`. Images are shuffled by `seed` and divided into `splits` parts.
    """
    result = metric_isc.isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=seed)
    return result[metric_isc.KEY_METRIC_ISC_MEAN], result[metric_isc.KEY_METRIC_ISC_STD]


def kernel_distance(
    features: Tensor, reference: Tensor, *, subsets: int, subset_size: int, seed: int
) -> tuple[float, float]:
    """Return KID: mean and standard deviation over subsets of the unbiased squared MMD (Bińkowski et al. 2018, sec. 4).

    features, reference: (N, D) and (M, D), both at least `subset_size`. Kernel (x y / D + 1)^3. May be below 0.
    """
    result = metric_kid.kid_features_to_metric(
        features, reference, kid_subsets=subsets, kid_subset_size=subset_size, rng_seed=seed, verbose=False
    )
    return result[metric_kid.KEY_METRIC_KID_MEAN], result[metric_kid.KEY_METRIC_KID_STD]


def precision_and_recall(features: Tensor, reference: Tensor, *, neighborhood: int) -> tuple[float, float]:
    """Return the share of images inside the other set's manifold (Kynkäänniemi et al. 2019, eq. 2), each in [0, 1].

    features, reference: (N, D) and (M, D), N and M above `neighborhood`. A manifold is the union of balls around the
    set's features; each radius is the distance to the `neighborhood`-th nearest neighbor.
    """
    result = metric_prc.prc_features_to_metric(
        features, reference, prc_neighborhood=neighborhood, save_cpu_ram=True, verbose=False
    )
    return result[metric_prc.KEY_METRIC_PRECISION], result[metric_prc.KEY_METRIC_RECALL]
