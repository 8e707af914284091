"""The report of a run, and the charts that it shares with the comparison of a sweep."""
