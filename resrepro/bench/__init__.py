"""How fast this machine trains: the usual PyTorch loop and ours, side by side in one run.

`contestants` says who takes part, `contest` lets them take turns, each in a process of its own (`child`),
`results` holds what came out, `projection` what it means for the paper's experiments, `report` and `chart`
show it.
"""
