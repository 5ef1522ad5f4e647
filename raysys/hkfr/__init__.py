"""HKFR: behaviour of many kinds fused into text, and instructions to tune a language model on
(Yin et al., RecSys 2023).

Events become quoted lines (`render`), at most 300 of them (`select`), anonymised (`anonymise`);
a back-end fuses them into one knowledge text per user and day (`fusion`, `summary`, `remote`),
what the events do not say is dropped (`claims`), and the store keeps the rest (`store`).
`instructions` asks the knowledge about each user's next order; `next_task` asks the same of
rivals that read the events themselves.
"""
