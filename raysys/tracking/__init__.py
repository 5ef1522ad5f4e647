"""Reading training logs, mirroring them to TensorBoard, drawing reports."""
