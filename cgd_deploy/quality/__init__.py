"""How good engines are: recall, neighbours and speed, compared with the reference, and reports on them."""
