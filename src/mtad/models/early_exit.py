"""A model's own first layers as a smaller model: no second set of weights."""

import copy
from typing import Any

from torch import nn

from mtad.errors import UnsupportedModelError


def first_layers(model: Any, count: int) -> Any:
    """The first decoder layers of a model, followed by its own final norm and head.

    Draft and verify (Zhang et al., ACL 2024) and LayerSkip (Elhoushi et al., ACL 2024) draft with such a model. Only
    the few modules that hold the layers are copied, shallowly: every weight is the model's own.

    Args:
        model: A decoder-only causal language model of transformers; not changed. Its attention implementation is that
            of the result.
        count: Layers to keep, from 1 to all.

    Raises:
        UnsupportedModelError: The decoder layers are not found where an architecture usually keeps them.
    """
    *owners, name = _layers_path(model).split(".")
    config = copy.deepcopy(model.config)
    text_config = config.get_text_config(decoder=True)
    text_config.num_hidden_layers = count
    if getattr(text_config, "layer_types", None) is not None:
        text_config.layer_types = text_config.layer_types[:count]
    configs = {id(model.config): config, id(model.config.get_text_config(decoder=True)): text_config}
    shortened = parent = _shallow_copy(model, configs)
    for owner in owners:
        child = _shallow_copy(getattr(parent, owner), configs)
        setattr(parent, owner, child)
        parent = child
    setattr(parent, name, getattr(parent, name)[:count])
    return shortened


def _layers_path(model: Any) -> str:
    """Dotted name of the list of decoder layers, such as `model.layers` or `transformer.h`."""
    num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    found: list[str] = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == num_layers
        and not any(part.isdigit() for part in name.split("."))
    ]
    if len(found) != 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} ({model.config.model_type}) cannot exit early: got {len(found)} lists of its "
            f"{num_layers} decoder layers, expected one; leave out early_exit and --exit-layers, and name a draft model"
        )
    return found[0]


def _shallow_copy(module: Any, configs: dict[int, Any]) -> Any:
    """The same module with a list of children and a config of its own."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    if hasattr(twin, "config"):
        twin.config = configs.get(id(twin.config), twin.config)
    # Hooks that spread a model over devices bind its forward to the original; the layers keep theirs.
    twin.__dict__.pop("forward", None)
    return twin
