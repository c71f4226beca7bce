"""Channels of a network: layout, activations, ablation, slices, masks, removal."""
