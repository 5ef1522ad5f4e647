"""Fair tests: arms that differ in one thing, tuned alike, judged by intervals over seeds."""
