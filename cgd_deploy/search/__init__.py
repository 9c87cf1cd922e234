"""Galleries: descriptors on disk, compact forms, and exact nearest neighbours."""
