"""data_prep: from what a hospital has to a prepared set that fedlib trains on (imports fedlib.data and fedlib.config only)."""
