"""HomoDistil: a thin student that starts as its teacher and loses its least important units.

HomoDistil (Liang et al., ICLR 2023, arXiv 2302.09632). How the paper keeps the residual stream
consistent is not known: that all of it is one group is our decision.
"""
