"""The leaderboard of a sweep: rows with intervals, tables, pictures, one page (docs/design.md §7)."""
