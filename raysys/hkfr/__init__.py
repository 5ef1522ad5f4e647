"""HKFR: behaviour of many kinds fused into text, an instruction-tuned language model, its features
(Yin et al., RecSys 2023)."""
