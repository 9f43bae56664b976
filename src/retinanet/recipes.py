"""The settings of a run: a recipe, a YAML file, single flags and a checkpoint become one :class:`Config`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retinanet.config import AnchorSpec, Config
from retinanet.errors import ConfigError
from retinanet.schema import updated

# The recipes that come with the package, as YAML: differences from the defaults in config.py.
RECIPES = Path(__file__).parent / "recipes"

DEFAULT_RECIPE = "modern"


def resolve(
    recipe: str | Config | None = None, settings: Mapping[str, Any] | None = None, stored: Config | None = None
) -> Config:
    """Return the settings of a run.

    Args:
        recipe: name or YAML file of the recipe to start from, or its settings. Unset: ``stored``, or the recipe
            ``modern`` if ``stored`` is unset, too.
        settings: single settings that replace those of the recipe, such as ``{"train.epochs": 10}``.
        stored: the settings in the checkpoint of the run that is resumed. If ``train.find_lr`` is on, its
            learning rate is used and the search is not repeated.

    Raises:
        ConfigError: the recipe does not exist, or a setting is unknown or has an invalid value.
    """
    if isinstance(recipe, Config):
        config = recipe
    elif recipe is None and stored is not None:
        config = stored
    else:
        config = load_recipe(DEFAULT_RECIPE if recipe is None else recipe)
    if settings:
        config = updated(config, _grouped(settings), "settings")
    if stored is not None and config.train.find_lr:
        config = replace(config, train=replace(config.train, lr=stored.train.lr, find_lr=False))
    return config


def _grouped(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Convert ``{"train.epochs": 10}`` to ``{"train": {"epochs": 10}}``."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        group, dot, key = name.partition(".")
        if not dot:
            raise ConfigError(f"{name!r} is not a setting; write GROUP.NAME as in the flags, such as 'train.epochs'")
        groups.setdefault(group, {})[key] = value
    return groups


def settings_of(config: Config, groups: Sequence[str]) -> dict[str, Any]:
    """Return the settings of ``groups``, keyed by flag name as :func:`resolve` takes them."""
    values = config.to_dict()
    return {f"{group}.{name}": value for group in groups for name, value in values[group].items()}


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name: str) -> Config:
    """Read a recipe that comes with the package (``paper``, ``modern``), or a YAML file.

    A file may start from another recipe: ``recipe: modern``, or ``recipe: other.yaml``, a path relative to its own
    folder. Without that key it starts from the defaults.

    Raises:
        ConfigError: there is no such recipe, its content is invalid, or recipes start from each other.
    """
    return _load_recipe(name, Path(), ())


def _load_recipe(name: str, folder: Path, chain: tuple[Path, ...]) -> Config:
    """Read a recipe; ``chain`` lists the recipe files that start from it, directly or indirectly."""
    bundled = bundled_recipes()
    path = RECIPES / f"{name}.yaml" if name in bundled else folder / name
    asked = f"{chain[-1]}: " if chain else ""
    if not path.is_file():
        raise ConfigError(f"{asked}no recipe {name!r}; there are {', '.join(bundled)}, or give the path of a YAML file")
    if path.resolve() in [other.resolve() for other in chain]:
        raise ConfigError(f"{asked}recipe {name!r} starts from this one; end the loop with {' or '.join(bundled)}")
    values = _read_yaml(path)
    where = name if name in bundled else str(path)
    if "recipe" not in values:
        return Config.from_dict(values, where=where)
    base = values.pop("recipe")
    if not isinstance(base, str):
        raise ConfigError(f"{where}: recipe is {base!r}; give the name or the file of the recipe to start from")
    return updated(_load_recipe(base, path.parent, (*chain, path)), values, where)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise ConfigError(f"{path}: cannot be read, permission denied") from error
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:  # ValueError: a date that does not exist
        raise ConfigError(f"{path}: not a readable YAML file ({' '.join(str(error).split())[:160]})") from error
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}: a recipe is a mapping such as 'train: {{epochs: 12}}'")
    return dict(values or {})


def as_yaml(config: Config) -> str:
    """Write every setting as a recipe."""
    import yaml

    values = config.to_dict()
    for group in values.values():  # YAML has no tuples
        group.update({key: list(value) for key, value in group.items() if isinstance(value, tuple)})
    return yaml.safe_dump(values, sort_keys=False)


def has_fitted_anchors(config: Config) -> bool:
    """Whether the anchors are those of no bundled recipe, as after ``retinanet data anchors``."""
    return config.anchors not in [AnchorSpec(), *(load_recipe(name).anchors for name in bundled_recipes())]
