"""Data sets, models and devices by name. The only folder of edgekd that may load torch."""
