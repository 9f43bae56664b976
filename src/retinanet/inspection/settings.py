"""Settings of an inspection: a recipe and single settings become one :class:`Config`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retinanet.config import Config
from retinanet.errors import ConfigError
from retinanet.recipes import load_recipe


def resolve(recipe: str | Config, settings: Mapping[str, Any]) -> Config:
    """Return the settings of a recipe with single settings replaced.

    Args:
        recipe: name or YAML file of the recipe, or its settings.
        settings: settings by the names of their flags, such as ``{"data.size": 640}``.

    Raises:
        ConfigError: the recipe does not exist, or a setting is unknown or has an invalid value.
    """
    config = recipe if isinstance(recipe, Config) else load_recipe(recipe)
    values = config.to_dict()
    for name, value in settings.items():
        group, dot, key = name.partition(".")
        if not dot or group not in values:
            raise ConfigError(f"{name!r} is not a setting; write GROUP.NAME as in the flags, such as 'data.size'")
        values[group][key.replace("-", "_")] = value
    return Config.from_dict(values, "settings")


def settings_of(config: Config, groups: Sequence[str]) -> dict[str, Any]:
    """Return the settings of some groups by the names of their flags, as :func:`resolve` takes them."""
    values = config.to_dict()
    return {f"{group}.{name}": value for group in groups for name, value in values[group].items()}
