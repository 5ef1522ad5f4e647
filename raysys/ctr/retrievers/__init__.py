"""Which past events a ranker is shown: selectors per request, retrievers per candidate.

A selector (`raysys.data.batch.Selector`) knows no candidate and chooses event rows before the
batch is gathered. A `Retriever` is a part of the ranker and chooses, for each candidate, from a
wide window of the newest events. `raysys.ctr.retrievers.config` names them all.
"""
