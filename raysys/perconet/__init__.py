"""PerCoNet (Liu et al., arXiv 2304.07923): explicit entity personas and title–abstract contrast.

The paper states two ideas and no details; everything else here is a reconstruction
(docs/perconet.md). Notation: B requests, L clicks, C candidates, E entities of a news, K entities
of a persona, V entities in all, d width of news, d_e of entities.
"""
