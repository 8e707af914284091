"""Chat templates: which one a data set uses, what it may do, and what is proven about it."""
