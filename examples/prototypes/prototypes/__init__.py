"""A method (method.py) and a data set (bars.py) of one's own, for ssd-train."""
