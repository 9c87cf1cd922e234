"""How good an engine is: recall and neighbours against the reference, speed, and reports on both."""
