"""Other libraries measured beside ours, each in a virtual environment of its own."""
