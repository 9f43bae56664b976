"""Order and roles of the splits of a dataset."""

from __future__ import annotations

from collections.abc import Mapping

from retinanet.data.dataset import Dataset
from retinanet.data.formats.reading import SPLIT_ALIASES, split_role

Splits = Mapping[str, Dataset]


def without_unions(splits: Splits) -> tuple[dict[str, Dataset], dict[str, list[str]]]:
    """Remove each split that is the union of other splits, such as VOC's ``trainval``.

    Returns:
        The remaining splits, train first. For each removed split, the names of the splits whose union it is.
    """
    files = {split: {str(dataset.path(i)) for i in dataset} for split, dataset in splits.items()}
    unions = {}
    for split, own in files.items():
        subsets = [other for other, theirs in files.items() if other != split and theirs < own]
        if len(subsets) > 1 and set().union(*(files[subset] for subset in subsets)) == own:
            unions[split] = subsets
    return _in_order({split: dataset for split, dataset in splits.items() if split not in unions}), unions


def _in_order(splits: Splits) -> dict[str, Dataset]:
    """Sort the splits: train, val, test, others."""
    order = list(SPLIT_ALIASES)
    return dict(sorted(splits.items(), key=lambda s: order.index(role(s[0])) if role(s[0]) in order else len(order)))


def role(split: str) -> str:
    """Return ``train``, ``val`` or ``test`` for any usual name of these splits, otherwise the name itself."""
    return split_role(split) or split
