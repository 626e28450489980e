"""Does every record stand alone? Asked of a model and its loss before training, on random data.

DP-SGD bounds what one record adds to the sum of clipped gradients; that is only true where no record reaches into the
gradient of another. A layer that mixes the batch (BatchNorm) or a loss that does (contrastive, total correlation, a
batch mean) breaks the bound, and nothing in a training run would show it. So: draw random records, change one, and
see that no other record's loss and no other record's clipped gradient moves. No private row is looked at.
"""

from __future__ import annotations

from torch import nn

from dpvae.errors import ConfigError

MIXING = (nn.modules.batchnorm._BatchNorm,)


def refuse_mixing_layers(module: nn.Module) -> None:
    """Raise :class:`ConfigError` for a layer that computes statistics over the batch, by name."""
    for name, layer in module.named_modules():
        tracks = isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats
        if isinstance(layer, MIXING) or tracks:
            raise ConfigError(f"model: {name or 'the model'} is {type(layer).__name__}, which mixes the records of "
                              "a batch; expected layers that treat each record alone, such as nn.GroupNorm")
        if isinstance(layer, nn.Embedding) and (layer.scale_grad_by_freq or layer.max_norm is not None):
            raise ConfigError(f"model: {name} is nn.Embedding with scale_grad_by_freq or max_norm, which depend on the "
                              "whole batch; expected neither")
