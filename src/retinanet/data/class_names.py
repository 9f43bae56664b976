"""Class names that differ only by case or spaces stand for one class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Label of an ignore region without a class.
NO_CLASS = -1


def class_key(name: str) -> str:
    """Key that is equal for names of one class. Case distinguishes single characters, as in datasets of letters."""
    words = " ".join(name.split())
    return words if len(words) == 1 else words.casefold().replace(" ", "")


def merged_classes(names: Sequence[str]) -> tuple[tuple[str, ...], dict[str, int], list[int]]:
    """Merge the names of one class.

    Returns:
        The classes, each by its first name; the label of every name; and the position of each class in ``names``.
    """
    firsts: dict[str, int] = {}
    for number, name in enumerate(names):
        firsts.setdefault(class_key(name), number)
    label_of = {key: label for label, key in enumerate(firsts)}
    classes = tuple(names[number] for number in firsts.values())
    return classes, {name: label_of[class_key(name)] for name in names}, list(firsts.values())


def all_classes(listed: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    """The listed classes, then the other names, sorted. Of the spellings of one class, the most frequent comes first.

    Args:
        listed: names from a class list.
        counts: number of boxes of each name.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted({*counts} - {*listed}, key=lambda name: (-counts[name], name)):
        groups.setdefault(class_key(name), []).append(name)
    return [*listed, *(name for names in sorted(groups.values()) for name in names)]


def class_positions(names: Sequence[str], classes: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Find names in a list of classes: exactly, or else by their keys if neither list has the key twice.

    Returns:
        For each name its position in ``classes`` or ``NO_CLASS``, and the pairs of name and class that differ.
    """
    position = {name: i for i, name in enumerate(classes)}
    keys: dict[str, list[str]] = {}
    for name in classes:
        keys.setdefault(class_key(name), []).append(name)
    own: dict[str, int] = {}
    for name in names:
        own[class_key(name)] = own.get(class_key(name), 0) + 1
    result, matched = {}, []
    for name in names:
        key = class_key(name)
        if name not in position and own[key] == 1 and len(keys.get(key, ())) == 1:
            result[name] = position[keys[key][0]]
            matched.append((name, keys[key][0]))
        else:
            result[name] = position.get(name, NO_CLASS)
    return result, matched


def unknown_classes(unknown: Sequence[str], classes: Sequence[str]) -> str:
    """Error message about classes of a dataset that a model does not have."""
    missing = ", ".join(map(repr, unknown[:5])) + (" …" if len(unknown) > 5 else "")
    known = ", ".join(list(classes)[:8]) + (" …" if len(classes) > 8 else "")
    return (
        f"class {missing} is not one of the model's {len(classes)} classes ({known}); use data with the same class "
        "names, train a model on these, or name a converted model's outputs ('retinanet convert --classes')"
    )
