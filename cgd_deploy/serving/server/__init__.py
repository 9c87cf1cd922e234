"""``cgd-deploy serve``: engines and galleries over HTTP."""
