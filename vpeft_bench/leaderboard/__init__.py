"""Leaderboards: tables that are a pure function of run records and cost cards."""
