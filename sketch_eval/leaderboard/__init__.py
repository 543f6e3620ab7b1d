"""The leaderboard of a sweep: rows with intervals, tables, pictures, one page (DESIGN §7)."""
