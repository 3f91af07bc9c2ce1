"""A Temporal Fusion Transformer in torch: configuration, windows as rows, network, loader. Only the loader is eager.

Nothing here imports torch until a bundle is loaded: that takes seconds and some hundred megabytes, which processes of
other families must not pay.
"""
