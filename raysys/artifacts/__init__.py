"""Run folders: what a trained model leaves behind, and the Predictor that reads it."""
