"""Inception score, KID, precision and recall from features, by torch-fidelity's functions."""

from torch import Tensor
from torch_fidelity import metric_isc, metric_kid, metric_prc


def inception_score(logits: Tensor, *, splits: int, seed: int) -> tuple[float, float]:
    """Mean and standard deviation over the parts of exp(KL(p(y|x) || p(y))) (Salimans et al. 2016, sec. 4).

    logits: (N, 1008) without bias, N at least `splits`. Images are shuffled by `seed` and cut into `splits` parts.
    """
    found = metric_isc.isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=seed)
    return found[metric_isc.KEY_METRIC_ISC_MEAN], found[metric_isc.KEY_METRIC_ISC_STD]


def kernel_distance(
    features: Tensor, reference: Tensor, *, subsets: int, subset_size: int, seed: int
) -> tuple[float, float]:
    """KID: mean and standard deviation over subsets of the squared MMD, unbiased (Bińkowski et al. 2018, sec. 4).

    features, reference: (N, D) and (M, D), both at least `subset_size`. Kernel (x y / D + 1)^3. May be below 0.
    """
    found = metric_kid.kid_features_to_metric(
        features, reference, kid_subsets=subsets, kid_subset_size=subset_size, rng_seed=seed, verbose=False
    )
    return found[metric_kid.KEY_METRIC_KID_MEAN], found[metric_kid.KEY_METRIC_KID_STD]


def precision_and_recall(features: Tensor, reference: Tensor, *, neighborhood: int) -> tuple[float, float]:
    """Shares of images inside the other set's manifold (Kynkäänniemi et al. 2019, eq. 2), each from 0 to 1.

    features, reference: (N, D) and (M, D), both more than `neighborhood`. A manifold is the union of the balls around
    its images that reach to their `neighborhood`-th neighbour.
    """
    found = metric_prc.prc_features_to_metric(
        features, reference, prc_neighborhood=neighborhood, save_cpu_ram=True, verbose=False
    )
    return found[metric_prc.KEY_METRIC_PRECISION], found[metric_prc.KEY_METRIC_RECALL]
