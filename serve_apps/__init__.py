"""The Serve graph: gateway → ctr | news."""
