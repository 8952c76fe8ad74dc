"""Jobs for torchx: what the components in ``launchers/`` share. Runs inside torchx's client, so nothing heavy is imported."""
