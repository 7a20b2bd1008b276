"""The page of a leaderboard: ``index.html``, one file that asks nothing of any network."""

from vpeft_bench.leaderboard.page.html import PAGE_NAME, page, write_page

__all__ = ["PAGE_NAME", "page", "write_page"]
