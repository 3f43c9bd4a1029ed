"""data_prep: from what a hospital has to a prepared set that fedlib trains on.

Imports fedlib.config and fedlib.data only.
"""
