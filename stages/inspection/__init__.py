"""Looking at tokenized rows: which to show, turn by turn, in the terminal and as a page."""
